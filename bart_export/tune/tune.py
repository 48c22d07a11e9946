"""Tuning: the smallest dynamic file of a preset that keeps a budget of quality.

A preset, bounds on metrics and texts go in; a recipe comes out, with what its file was measured to
be. Everything starts at its narrowest, and the layers that lose most for a byte are stored wider
first, in the order of `quality.tuning.widening`; how far, a bisection over real files decides, each
run on LiteRT along the float file's greedy traces. Where the recipe goes is not known here.
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
from bart_export.tune import precision_steps, sensitivity
from bart_export.tune.budget_search import BudgetSearch
from bart_export.tune.evaluator import Examination, Measured
from bart_export.verify import data, rouge
from bart_export.verify.tolerance import check_measurable

# Ways of storing a layer, the narrowest first, up to that of DEFAULT. One scale a tensor stands
# between: a row's scale and zero point take 12 bytes in every signature.
RUNGS = ("int4", "int8_tensorwise", "int8")
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
        preset: what `origin.resolve` takes.
        name: what to call the recipe.
        budget: metric -> bound.
        texts: a file that `quality.data` reads; None for the texts that ship with the preset.
        stage: told the name of each stage as it begins.

    Raises:
        ConfigurationError: for a budget that cannot be measured, or where there are no texts.
        VerificationFailed: if not even `DEFAULT` keeps the budget.
    """
    check_budget(budget)
    stage("resolve the preset")
    source = resolve.find(preset)
    examples = data.read(texts or shipped_texts(preset, source.directory))
    check_measurable(budget, any(example.reference for example in examples))
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
        examination = Examination(
            float_file,
            ModelInfo(
                checkpoint.config,
                checkpoint.tokenizer(),
                resolve.defaults(source, checkpoint).generation,
                checkpoint.encoder_sequence_length,
            ),
            examples,
            generate=any(metric in ("tokens", *rouge.KINDS) for metric in budget),
        )
        search = BudgetSearch(examination, float_file, layers, name, budget, stage)
        widest = search.measure(dict.fromkeys(layers, RUNGS[-1]))
        search.require(widest)
        stage("store every layer in each way")
        files = {storage: directory / f"all_{storage}.tflite" for storage in RUNGS}
        for storage, path in files.items():
            sensitivity.write_everywhere(float_file, STORAGES[storage], layers, path)
        rungs = [
            precision_steps.survey(storage, path, float_file) for storage, path in files.items()
        ]
        stage("measure every layer's sensitivity")
        sensitivities = sensitivity.measure_file(
            backbone, files[RUNGS[0]], examination.traces[:RANKING_TEXTS], STORAGES[RUNGS[0]]
        )
        found = search.run(*precision_steps.order(sensitivities, rungs))
    return Tuned(
        found.recipe,
        found.measured,
        widest,
        files=len(search.tried),
        texts=len(examples),
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
