"""The TFLite target: a file for each recipe, quantized from one float32 file."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

from bart_export import contract
from bart_export.artifact import manifest
from bart_export.artifact.drafts import Draft
from bart_export.artifact.figures import Answer, FileVerification, LayerSensitivity
from bart_export.artifact.manifest import TFLITE, BucketEntry, StaticEntry, TfliteEntry
from bart_export.bench.measurements import MeasurableFile
from bart_export.checkpoints.weight_names import layer_names
from bart_export.config import BartConfig
from bart_export.contract import StaticShapes
from bart_export.convert import tflite
from bart_export.convert.calibration import Ranges, TracedModel, calibrate
from bart_export.convert.quantize import quantize
from bart_export.errors import ConfigurationError
from bart_export.export.options import TfliteOptions
from bart_export.export.target import ExportedFile, ExportResult, LoadedModel, calibration_texts
from bart_export.progress import Stage
from bart_export.recipes.table import RECIPES, STORAGES, Recipe, require_layers, with_bounds
from bart_export.runtime import search, tflite_check
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.engine import expected_signatures
from bart_export.runtime.generator import ModelInfo
from bart_export.tune import sensitivity
from bart_export.tune.tune import RANKING_TEXTS, STORAGE_OPTIONS
from bart_export.verify.checks import Gate
from bart_export.verify.compare import Cases, TfliteFile
from bart_export.verify.data import Texts
from bart_export.verify.reference import KerasReference
from bart_export.verify.tolerance import check_measurable
from bart_export.verify.traces import teacher_force
from bart_export.verify.weights import checkpoint_matrices


def export_tflite(
    model: LoadedModel, options: TfliteOptions, draft: Draft, stage: Stage
) -> ExportResult:
    """Write `tflite/<recipe>.tflite` for each recipe, or `<recipe>.static.tflite` with shapes."""
    config, shapes = model.info.config, options.shapes
    if shapes is not None:
        drafted = model.info.generation.prompt_lookup_num_tokens
        shapes = shapes.limited_to(model.info.encoder_sequence_length).drafting(drafted)
    recipes = [with_bounds(recipe, options.tolerance) for recipe in options.recipes]
    require_fitting(model.info, recipes, shapes, options.data)
    texts, calibration = calibration_texts(options.calibration_data, model.directory)
    stage("convert the graph")
    float_file = write_float(model, recipes, shapes, draft)
    ranges = None
    if any(recipe.calibrated for recipe in recipes):
        stage("calibrate")
        ranges, samples = calibrate_file(float_file, model.info, shapes, texts)
        calibration = dataclasses.replace(calibration, samples=samples)
    name = "The float32 file that the others are made from"
    bounds = with_bounds(RECIPES["float32"], options.tolerance)
    base = TfliteFile.of_draft(name, float_file, bounds, config, shapes)
    gate = Gate(model.info, base, checkpoint_matrices(config, model.parameters), options.data)
    written = []
    for recipe in recipes:
        path = draft.directory / TFLITE / file_name(recipe, shapes)
        if recipe.mode != "float":
            stage(f"quantize {recipe.name}")
            path.write_bytes(quantize(float_file, recipe, layer_names(config), ranges))
        name = f"{TFLITE}/{path.name}"
        file = TfliteFile.of_draft(name, path, recipe, config, shapes)
        entries = {name: file_entry(draft, name, recipe, config, shapes, calibration)}
        check = functools.partial(check_tflite, gate, file)
        measurable = MeasurableFile(shapes, file.open)
        written.append(ExportedFile(name, entries, check, measurable=measurable))
    # Sensitivities help to choose between recipes, so they are not measured for a single one.
    if shapes is None and sum(recipe.mode != "float" for recipe in recipes) > 1:
        stage("measure every layer's sensitivity")
        return ExportResult(written, sensitivities(model, float_file, texts, draft))
    return ExportResult(written)


def file_name(recipe: Recipe, shapes: StaticShapes | None) -> str:
    """Return a recipe's file name."""
    return f"{recipe.name}.tflite" if shapes is None else f"{recipe.name}.static.tflite"


def write_float(
    model: LoadedModel, recipes: Sequence[Recipe], shapes: StaticShapes | None, draft: Draft
) -> pathlib.Path:
    """Write the float file that the others are made from, to scratch unless it is exported."""
    directory = draft.directory / TFLITE
    directory.mkdir()
    exported = any(recipe.mode == "float" for recipe in recipes)
    path = (directory if exported else draft.scratch) / file_name(RECIPES["float32"], shapes)
    tflite.write_float(model.parameters, path, shapes)
    return path


def calibrate_file(
    path: pathlib.Path, info: ModelInfo, shapes: StaticShapes | None, texts: Sequence[str]
) -> tuple[Ranges, int]:
    """Calibrate a float file on texts, decoded with the preset's settings; see `calibrate`."""
    generation = info.generation

    def decode(model: TracedModel, token_ids: Sequence[int], num_beams: int, longest: int) -> None:
        settings = generation.replace(
            num_beams=num_beams,
            num_return_sequences=1,
            do_sample=False,
            max_length=min(generation.max_length, longest),
            min_length=min(generation.min_length, longest),
        )
        state = model.start(token_ids, num_beams, settings.max_length)
        search.run(search.search(settings), model.step, state)

    buckets, sources = contract.tflite_buckets(info.config, shapes), list(map(info.encode, texts))
    return calibrate(path, info.config, buckets, sources, decode, generation.num_beams)


def file_entry(
    draft: Draft,
    name: str,
    recipe: Recipe,
    config: BartConfig,
    shapes: StaticShapes | None = None,
    calibration: manifest.Calibration | None = None,
) -> TfliteEntry:
    """Return the manifest entry of a recipe's file in a draft."""
    entry = TfliteEntry(
        *draft.content(name),
        TFLITE,
        recipe=recipe.name,
        mode=recipe.mode,
        layers=recipe.layers,
        tolerance=recipe.tolerance,
        runtimes=recipe.runtimes,
        refusals=recipe.refusals,
        calibration=calibration if recipe.calibrated else None,
        shapes=shapes,
        contract_version=contract.CONTRACT_VERSION,
    )
    if shapes is None:
        return entry
    sizes, buckets = contract.sizes(config), contract.tflite_buckets(config, shapes)
    signatures = {bucket.name: BucketEntry.of(bucket, sizes) for bucket in buckets}
    return StaticEntry(**vars(entry), signatures=signatures)


def require_fitting(
    info: ModelInfo, recipes: Sequence[Recipe], shapes: StaticShapes | None, texts: Texts | None
) -> None:
    """Raise ConfigurationError unless recipes and shapes fit the model, its settings and texts."""
    for recipe in recipes:
        require_layers(recipe, layer_names(info.config))
        check_measurable(recipe.tolerance, texts)
    max_length = info.generation.max_length
    if shapes is not None and shapes.target_length < max_length:
        raise ConfigurationError(
            f"--target-length must be at least {max_length}, the preset's max_length, received "
            f"{shapes.target_length}."
        )


def sensitivities(
    model: LoadedModel, base: pathlib.Path, texts: Sequence[str], draft: Draft
) -> tuple[LayerSensitivity, ...]:
    """Measure each layer's sensitivity to the storage with the fewest bits."""
    config, tokenizer = model.info.config, model.info.tokenizer
    questions = sensitivity.greedy_questions(model.info, texts[:RANKING_TEXTS])
    engine = open_compiled_model(base, config)
    teacher = functools.partial(teacher_force, engine)
    traces = Cases.ask(engine, tokenizer, questions, teacher).traces
    storage, path = STORAGES[STORAGE_OPTIONS[0]], draft.scratch / "narrowest.tflite"
    sensitivity.write_uniform(base, storage, layer_names(config), path)
    return tuple(sensitivity.measure_sensitivities(model.backbone, path, traces, storage))


def check_tflite(
    gate: Gate, file: TfliteFile, keras: KerasReference, cases: Cases
) -> tuple[FileVerification, Sequence[Answer | None]]:
    """Compare a `.tflite` file with the Keras model, and check that readers accept its graph."""
    verified = gate.check(file, cases)
    config, shapes = gate.info.config, file.shapes
    buckets = contract.tflite_buckets(config, shapes)
    tflite_check.check_graph(file.path, expected_signatures(config, buckets))
    return verified
