"""The targets of an export: for each, what writes its files and what compares them with the model.

A `Model` and a target's options go in; files appear in the draft, and for each of them, or each
directory of them, a `Written` comes out that says what the manifest is told and how it is checked.
The order of the journey is not known here.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from bart_export import deployment
from bart_export.artifact import Draft
from bart_export.checkpoints.layers import layer_names
from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.progress import Stage
from bart_export.quality import calibration_texts, golden
from bart_export.quality import saved_model as saved_model_quality
from bart_export.quality.figures import Comparison
from bart_export.quality.gate import Facts, File, Gate
from bart_export.quality.golden import Answer
from bart_export.quality.reference import KerasReference
from bart_export.quality.verify import Reference
from bart_export.quality.weights import parameters_of
from bart_export.recipe_file import check_layers
from bart_export.recipes import RECIPES, Recipe
from bart_export.targets import saved_model, tflite
from bart_export.text.tokenizer import BartTokenizer
from bart_export.tflite_options import StaticShapes


@dataclasses.dataclass(frozen=True)
class Model:
    """What every target exports: the Keras model, its tokenizer and its settings.

    `directory` is the checkpoint's.
    """

    backbone: BartBackbone
    tokenizer: BartTokenizer
    generation: GenerationConfig
    encoder_sequence_length: int
    directory: pathlib.Path


# Compares with the reference: a dataclass of figures, and the answer to each question, None to
# those that were not asked.
Check = Callable[[KerasReference, Reference], tuple[Any, Sequence[Answer | None]]]


@dataclasses.dataclass(frozen=True)
class Written:
    """One thing that a target wrote: a file, or a directory of files that go together.

    `files` maps the name of each file to what its entry in the manifest says beside size and hash.
    `settings` are those of a question that must be asked besides the usual ones, None for none.
    """

    name: str
    files: Mapping[str, Mapping[str, Any]]
    check: Check
    settings: GenerationConfig | None = None


def export_tflite(model: Model, options: Any, draft: Draft, stage: Stage) -> list[Written]:
    """Write a `.tflite` file for each recipe of a `TfliteOptions`."""
    config, shapes = model.backbone.config, options.shapes
    recipes = [with_bounds(recipe, options.tolerance) for recipe in options.recipes]
    for recipe in recipes:
        check_layers(recipe, layer_names(config))
    if shapes is not None and shapes.target_length < model.generation.max_length:
        raise ConfigurationError(
            f"--target-length must be at least {model.generation.max_length}, which the preset "
            f"generates unless asked otherwise; received {shapes.target_length}."
        )
    texts = calibration_texts.texts(options.calibration_data, model.directory)
    calibrator = calibration_texts.calibrator(
        texts, config, model.tokenizer, model.generation, model.encoder_sequence_length
    )
    base, written = tflite.write_recipes(model.backbone, recipes, shapes, draft, stage, calibrator)
    calibrated = calibrator.calibration and texts.to_dict(calibrator.calibration)
    gate = tflite_gate(model, base, shapes, options.data)
    return [
        Written(
            name,
            {
                name: {
                    "target": "tflite",
                    "recipe": recipe.name,
                    "mode": recipe.mode,
                    "layers": [list(pair) for pair in recipe.layers],
                    "tolerance": dict(recipe.tolerance),
                    "runtimes": dict(recipe.runtimes),
                    "refusals": dict(recipe.refusals),
                    **({"calibration": calibrated} if recipe.calibrated else {}),
                    **tflite.build_fields(config, shapes),
                }
            },
            functools.partial(
                check_tflite,
                gate,
                File.of_draft(name, draft.directory / name, recipe, config, shapes),
            ),
        )
        for name, recipe in written.items()
    ]


def tflite_gate(
    model: Model, base: pathlib.Path, shapes: StaticShapes | None, data: pathlib.Path | None
) -> Gate:
    """Return what holds a model's `.tflite` files to the model, by way of their float file."""
    config, weights = model.backbone.config, model.backbone.named_weights()
    parameters = InferenceParameters(config, lambda name: np.asarray(weights[name]))
    facts = Facts(config, model.tokenizer, model.generation, model.encoder_sequence_length)
    name = "The float32 file that the others are made of"
    float_file = File.of_draft(name, base, RECIPES["float32"], config, shapes)
    return Gate(facts, float_file, parameters_of(config, parameters), data)


def check_tflite(
    gate: Gate, file: File, keras: KerasReference, reference: Reference
) -> tuple[Comparison, Sequence[Answer | None]]:
    """Hold a `.tflite` file to the Keras model that `reference` asked."""
    return gate.check(file, reference)


def with_bounds(recipe: Recipe, tolerance: Mapping[str, float]) -> Recipe:
    """Return a recipe with some bounds in the place of its own."""
    bounds = MappingProxyType({**recipe.tolerance, **tolerance})
    return dataclasses.replace(recipe, tolerance=bounds)


def export_saved_model(model: Model, options: Any, draft: Draft, stage: Stage) -> list[Written]:
    """Write the next version of a SavedModel."""
    settings = options.settings(model.generation)
    deployment.model_name(draft.target)
    version = saved_model.next_version(draft.target)
    name = f"saved_model/{version}"
    directory = draft.directory / name
    stage("write the SavedModel")
    saved_model.write(
        model.backbone,
        model.tokenizer,
        settings,
        model.encoder_sequence_length,
        options.dtype,
        directory,
    )
    stage("measure what serving takes")
    served = deployment.Served(
        tokenizer=model.tokenizer,
        generation=settings,
        encoder_sequence_length=model.encoder_sequence_length,
        text=golden.TEXTS[0],
    )
    memory = deployment.write(draft, version, served).memory
    details = {"target": "saved_model", "version": version, "dtype": options.dtype}
    files = {
        path.relative_to(draft.directory).as_posix(): details
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    files[f"{name}/saved_model.pb"] = {**details, "memory": dataclasses.asdict(memory)}
    check = functools.partial(
        saved_model_quality.check, name, directory, options.dtype, model.tokenizer, settings
    )
    return [Written(name, files, check, None if settings == model.generation else settings)]


# (model, options, draft, stage) -> what was written
EXPORTERS: dict[str, Callable[[Model, Any, Draft, Stage], list[Written]]] = {
    "tflite": export_tflite,
    "saved_model": export_saved_model,
}
