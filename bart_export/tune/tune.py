"""The smallest dynamic file of a preset that keeps a budget of quality.

Every layer starts at its narrowest, and the layers that lose most for a byte are stored wider
first, as `sensitivity` ranks them; how far, `budget_search` decides.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from bart_export.artifact.figures import LayerSensitivity
from bart_export.checkpoints import resolve
from bart_export.checkpoints.names import layer_names
from bart_export.convert.tflite import write_float
from bart_export.documents import scratch_directory
from bart_export.errors import ConfigurationError
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.progress import Stage
from bart_export.recipes.metrics import METRICS
from bart_export.recipes.table import STORAGES, Recipe
from bart_export.runtime.generator import ModelInfo
from bart_export.tune import sensitivity
from bart_export.tune.budget_search import BudgetSearch, Evaluator, Measured
from bart_export.verify import data
from bart_export.verify.tolerance import check_measurable

# How a layer can be stored, the narrowest first, up to that of DEFAULT. One scale a tensor stands
# between: a row's scale and zero point take 12 bytes in every signature.
STORAGE_OPTIONS = ("int4", "int8_tensorwise", "int8")
# Texts that sensitivities are measured over: they rank layers, and a divergence needs few.
RANKING_TEXTS = 24
UNBOUNDED = ("weights", "rounding")  # say whether a file is right, not how good it is


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was found.

    `recipe` is the recipe and `found` its file; `widest` is the file of `DEFAULT`; `files` says how
    many were made and measured, `texts` over how many texts. `storages` maps each layer to how it
    is stored.
    """

    recipe: Recipe
    found: Measured
    widest: Measured
    files: int
    texts: int
    storages: Mapping[str, str]
    sensitivities: Sequence[LayerSensitivity]


def tune(
    preset: str,
    name: str,
    budget: Mapping[str, float],
    texts: pathlib.Path | None = None,
    stage: Stage = lambda name: None,
) -> Tuned:
    """Find the recipe of the smallest file of a preset that keeps a budget.

    Args:
        preset: what `resolve.find` takes.
        name: what to call the recipe.
        budget: metric -> bound.
        texts: a file that `verify.data` reads; None for the texts that ship with the preset.
        stage: told the name of each stage as it begins.

    Raises:
        ConfigurationError: for a budget that cannot be measured, or where there are no texts.
        VerificationFailed: if not even `DEFAULT` keeps the budget.
    """
    check_budget(budget)
    stage("resolve the preset")
    source = resolve.find(preset)
    read_texts = data.read(texts or shipped_texts(preset, source.directory))
    check_measurable(budget, read_texts)
    stage("read the checkpoint")
    checkpoint = resolve.read(source.directory)
    backbone = BartBackbone.from_checkpoint(checkpoint)
    layers = layer_names(checkpoint.config)
    with scratch_directory() as directory:
        float_file = directory / "float32.tflite"
        stage("convert the graph")
        weights = backbone.named_weights()
        read = InferenceParameters(checkpoint.config, lambda name: np.asarray(weights[name]))
        write_float(read, float_file)
        stage("ask the float model")
        evaluator = Evaluator(
            float_file,
            ModelInfo(
                checkpoint.config,
                checkpoint.tokenizer(),
                resolve.defaults(source, checkpoint).generation,
                checkpoint.encoder_sequence_length,
            ),
            read_texts.examples,
            generate=any(metric in ("tokens", *data.ROUGE) for metric in budget),
        )
        search = BudgetSearch(evaluator, float_file, layers, name, budget, stage)
        widest = search.measure(dict.fromkeys(layers, STORAGE_OPTIONS[-1]))
        search.require(widest)
        stage("store every layer in each way")
        files = {storage: directory / f"all_{storage}.tflite" for storage in STORAGE_OPTIONS}
        for storage, path in files.items():
            sensitivity.write_uniform(float_file, STORAGES[storage], layers, path)
        options = [
            sensitivity.measure_storage(storage, path, float_file)
            for storage, path in files.items()
        ]
        stage("measure every layer's sensitivity")
        narrowest = STORAGE_OPTIONS[0]
        sensitivities = sensitivity.measure_sensitivities(
            backbone, files[narrowest], evaluator.traces[:RANKING_TEXTS], STORAGES[narrowest]
        )
        found = search.run(*sensitivity.precision_steps(sensitivities, options))
    return Tuned(
        found.recipe,
        found.measured,
        widest,
        files=len(search.tried),
        texts=len(read_texts.examples),
        storages={layer: found.recipe.storage(layer).name for layer in layers},
        sensitivities=sensitivities,
    )


def check_budget(budget: Mapping[str, float]) -> None:
    """Refuse a budget of nothing, or of what says nothing about quality."""
    for metric in budget:
        if metric in UNBOUNDED:
            names = ", ".join(name for name in METRICS if name not in UNBOUNDED)
            raise ConfigurationError(f"A budget must be of {names}, received {metric}.")
    if not budget:
        raise ConfigurationError("Tuning needs a budget, as in --budget top1=0.98.")


def shipped_texts(preset: str, directory: pathlib.Path) -> pathlib.Path:
    """Return the file of texts that ships with a preset.

    Raises:
        ConfigurationError: if there is none.
    """
    path = directory / SHIPPED
    if not path.is_file():
        raise ConfigurationError(
            f"{preset} has no texts of its own ({SHIPPED}): give some with --data FILE.jsonl."
        )
    return path


SHIPPED = "calibration.jsonl"
