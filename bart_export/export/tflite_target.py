"""The export to TFLite: what writes a file for each recipe, and what holds it to the model.

What a file holds is known to `convert`, what is measured of it to `verify`.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from bart_export import contract
from bart_export.artifact.artifact import Draft
from bart_export.artifact.figures import Answer, FileVerification, LayerSensitivity
from bart_export.artifact.manifest import (
    TFLITE,
    BucketEntry,
    Calibration,
    StaticEntry,
    TfliteEntry,
)
from bart_export.bench.measurements import Measured
from bart_export.checkpoints.names import layer_names
from bart_export.config import BartConfig
from bart_export.contract import StaticShapes
from bart_export.convert import tflite
from bart_export.errors import ConfigurationError
from bart_export.export import calibration_texts
from bart_export.export.options import TfliteOptions
from bart_export.export.result import ExportedFile, ExportResult, Model
from bart_export.graph.parameters import InferenceParameters
from bart_export.progress import Stage
from bart_export.recipes.table import RECIPES, STORAGES, Recipe, require_layers, with_bounds
from bart_export.runtime import graph_rules
from bart_export.tune.evaluator import Examination
from bart_export.tune.sensitivity import measure
from bart_export.tune.tune import RANKING_TEXTS, RUNGS
from bart_export.verify.data import Example
from bart_export.verify.gate import File, Gate, opened
from bart_export.verify.reference import KerasReference
from bart_export.verify.verify import Reference
from bart_export.verify.weights import parameters_of


def export_tflite(model: Model, options: TfliteOptions, draft: Draft, stage: Stage) -> ExportResult:
    """Write a `.tflite` file for each recipe of a `TfliteOptions`."""
    config, shapes = model.info.config, options.shapes
    if shapes is not None:
        shapes = shapes.within(model.info.encoder_sequence_length)
    recipes = [with_bounds(recipe, options.tolerance) for recipe in options.recipes]
    check_fitting(model, recipes, shapes)
    texts = calibration_texts.texts(options.calibration_data, model.directory)
    calibrator = calibration_texts.calibrator(texts, model.info)
    base, files = tflite.write_recipes(model.backbone, recipes, shapes, draft, stage, calibrator)
    calibrated = texts.entry(calibrator.calibration) if calibrator.calibration else None
    gate = tflite_gate(model, base, shapes, options)
    written = []
    for name, recipe in files.items():
        path = draft.directory / name
        file = File.of_draft(name, path, recipe, config, shapes)
        calibration = calibrated if recipe.calibrated else None
        entry = entry_of(draft.content(name), recipe, config, shapes, calibration)
        check = functools.partial(check_tflite, gate, file)
        measured = Measured(shapes, functools.partial(opened, path, config, shapes))
        written.append(ExportedFile(name, {name: entry}, check, measured=measured))
    # Whoever exports one recipe has chosen; between several it helps to know the layers.
    if shapes is None and sum(recipe.mode != "float" for recipe in recipes) > 1:
        stage("measure every layer's sensitivity")
        return ExportResult(written, sensitivities(model, base, texts.texts, draft))
    return ExportResult(written)


def entry_of(
    content: tuple[int, str],
    recipe: Recipe,
    config: BartConfig,
    shapes: StaticShapes | None = None,
    calibration: Calibration | None = None,
) -> TfliteEntry:
    """Return the manifest's entry of a file of a recipe, whose size and hash are `content`."""
    entry = TfliteEntry(
        *content,
        TFLITE,
        recipe=recipe.name,
        mode=recipe.mode,
        layers=recipe.layers,
        tolerance=recipe.tolerance,
        runtimes=recipe.runtimes,
        refusals=recipe.refusals,
        calibration=calibration,
        shapes=shapes,
    )
    if shapes is None:
        return entry
    sizes, buckets = contract.sizes(config), tflite.buckets(config, shapes)
    signatures = {bucket.name: BucketEntry.of(bucket, sizes) for bucket in buckets}
    return StaticEntry(**vars(entry), signatures=signatures)


def check_fitting(model: Model, recipes: Sequence[Recipe], shapes: StaticShapes | None) -> None:
    """Refuse recipes that name no layer of the model, and shapes too short for its own settings.

    Raises:
        ConfigurationError: with the expression, or the length.
    """
    for recipe in recipes:
        require_layers(recipe, layer_names(model.info.config))
    most = model.info.generation.max_length
    if shapes is not None and shapes.target_length < most:
        raise ConfigurationError(
            f"--target-length must be at least {most}, which the preset "
            f"generates unless asked otherwise; received {shapes.target_length}."
        )


def sensitivities(
    model: Model, base: pathlib.Path, texts: Sequence[str], draft: Draft
) -> list[LayerSensitivity]:
    """Return what the model loses by each layer, stored as the narrowest files store it."""
    with tempfile.TemporaryDirectory(dir=draft.scratch) as scratch:
        # Logits are kept beside the file meanwhile.
        float_file = pathlib.Path(scratch) / base.name
        float_file.symlink_to(base)
        examination = Examination(
            float_file,
            model.info,
            [Example(text) for text in texts[:RANKING_TEXTS]],
            generate=False,
        )
        return measure(model.backbone, float_file, examination.traces, STORAGES[RUNGS[0]])


def tflite_gate(
    model: Model, base: pathlib.Path, shapes: StaticShapes | None, options: TfliteOptions
) -> Gate:
    """Return what holds a model's `.tflite` files to the model, by way of their float file."""
    config, weights = model.info.config, model.backbone.named_weights()
    parameters = InferenceParameters(config, lambda name: np.asarray(weights[name]))
    name = "The float32 file that the others are made of"
    recipe = with_bounds(RECIPES["float32"], options.tolerance)
    float_file = File.of_draft(name, base, recipe, config, shapes)
    return Gate(model.info, float_file, parameters_of(config, parameters), options.data)


def check_tflite(
    gate: Gate, file: File, keras: KerasReference, reference: Reference
) -> tuple[FileVerification, Sequence[Answer | None]]:
    """Hold a `.tflite` file to the Keras model that `reference` asked, and to what readers ask."""
    figures = gate.check(file, reference)
    config, shapes = gate.info.config, file.shapes
    buckets = (
        None if shapes is None else contract.static_buckets(config, **dataclasses.asdict(shapes))
    )
    graph_rules.check_graph(file.path, graph_rules.expected_signatures(config, buckets))
    return figures
