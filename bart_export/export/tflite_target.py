"""The export to TFLite: what writes a file for each recipe, and what holds it to the model.

A `Model` and a `TfliteOptions` go in; files appear in the draft, and a `Written` for each comes
out. What a file holds is known to `targets`, what is measured of it to `quality`.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from bart_export import contract
from bart_export.artifact.artifact import Draft
from bart_export.checkpoints.layers import layer_names
from bart_export.contract import StaticShapes
from bart_export.convert import tflite
from bart_export.errors import ConfigurationError
from bart_export.export import calibration_texts
from bart_export.export.result import Exported, Model, Written
from bart_export.graph.parameters import InferenceParameters
from bart_export.progress import Stage
from bart_export.recipes.file import check_layers
from bart_export.recipes.table import RECIPES, STORAGES, Recipe, with_bounds
from bart_export.runtime import graph_rules
from bart_export.tune.evaluator import Examination
from bart_export.tune.sensitivity import measure
from bart_export.tune.tune import RANKING_TEXTS, RUNGS
from bart_export.verify.data import Example
from bart_export.verify.figures import Comparison
from bart_export.verify.gate import Facts, File, Gate, opened
from bart_export.verify.golden import Answer
from bart_export.verify.reference import KerasReference
from bart_export.verify.verify import Reference
from bart_export.verify.weights import parameters_of


def export_tflite(model: Model, options: Any, draft: Draft, stage: Stage) -> Exported:
    """Write a `.tflite` file for each recipe of a `TfliteOptions`."""
    config, shapes = model.backbone.config, options.shapes
    if shapes is not None:
        shapes = shapes.within(model.encoder_sequence_length)
    recipes = [with_bounds(recipe, options.tolerance) for recipe in options.recipes]
    check(model, recipes, shapes)
    texts = calibration_texts.texts(options.calibration_data, model.directory)
    calibrator = calibration_texts.calibrator(
        texts, config, model.tokenizer, model.generation, model.encoder_sequence_length
    )
    base, files = tflite.write_recipes(model.backbone, recipes, shapes, draft, stage, calibrator)
    calibrated = calibrator.calibration and texts.to_dict(calibrator.calibration)
    gate = tflite_gate(model, base, shapes, options)
    written = []
    for name, recipe in files.items():
        path = draft.directory / name
        file = File.of_draft(name, path, recipe, config, shapes)
        entry = {
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
        held = functools.partial(check_tflite, gate, file)
        run = functools.partial(opened, path, config, shapes)
        written.append(Written(name, {name: entry}, held, run=run))
    # Whoever exports one recipe has chosen; between several it helps to know the layers.
    if shapes is None and sum(recipe.mode != "float" for recipe in recipes) > 1:
        stage("measure every layer's sensitivity")
        return Exported(written, sensitivities(model, base, texts.texts, draft))
    return Exported(written)


def check(model: Model, recipes: Sequence[Recipe], shapes: StaticShapes | None) -> None:
    """Refuse recipes that name no layer of the model, and shapes too short for its own settings.

    Raises:
        ConfigurationError: with the expression, or the length.
    """
    for recipe in recipes:
        check_layers(recipe, layer_names(model.backbone.config))
    if shapes is not None and shapes.target_length < model.generation.max_length:
        raise ConfigurationError(
            f"--target-length must be at least {model.generation.max_length}, which the preset "
            f"generates unless asked otherwise; received {shapes.target_length}."
        )


def sensitivities(
    model: Model, base: pathlib.Path, texts: Sequence[str], draft: Draft
) -> list[dict[str, Any]]:
    """Return what the model loses by each layer, stored as the narrowest files store it."""
    with tempfile.TemporaryDirectory(dir=draft.scratch) as scratch:
        # Logits are kept beside the file meanwhile.
        float_file = pathlib.Path(scratch) / base.name
        float_file.symlink_to(base)
        examination = Examination(
            float_file,
            model.backbone.config,
            model.tokenizer,
            model.generation,
            model.encoder_sequence_length,
            [Example(text) for text in texts[:RANKING_TEXTS]],
            generate=False,
        )
        rows = measure(model.backbone, float_file, examination.traces, STORAGES[RUNGS[0]])
    return [row.to_dict() for row in rows]


def tflite_gate(
    model: Model, base: pathlib.Path, shapes: StaticShapes | None, options: Any
) -> Gate:
    """Return what holds a model's `.tflite` files to the model, by way of their float file."""
    config, weights = model.backbone.config, model.backbone.named_weights()
    parameters = InferenceParameters(config, lambda name: np.asarray(weights[name]))
    facts = Facts(config, model.tokenizer, model.generation, model.encoder_sequence_length)
    name = "The float32 file that the others are made of"
    recipe = with_bounds(RECIPES["float32"], options.tolerance)
    float_file = File.of_draft(name, base, recipe, config, shapes)
    return Gate(facts, float_file, parameters_of(config, parameters), options.data)


def check_tflite(
    gate: Gate, file: File, keras: KerasReference, reference: Reference
) -> tuple[Comparison, Sequence[Answer | None]]:
    """Hold a `.tflite` file to the Keras model that `reference` asked, and to what readers ask."""
    figures = gate.check(file, reference)
    config, shapes = gate.facts.config, file.shapes
    buckets = (
        None if shapes is None else contract.static_buckets(config, **dataclasses.asdict(shapes))
    )
    graph_rules.check(file.path, graph_rules.signatures(config, buckets))
    return figures
