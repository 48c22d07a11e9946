"""The smallest dynamic file of a preset within a quality budget.

Every layer starts in its narrowest storage. `precision_steps` orders the layers to store wider, and
`budget_search` finds how many of these steps the budget needs.
"""

import dataclasses
from collections.abc import Mapping

from bart_export.checkpoints.resolve import ResolvedPreset
from bart_export.checkpoints.weight_names import layer_names
from bart_export.convert.tflite import write_float
from bart_export.documents import scratch_directory
from bart_export.errors import ConfigurationError
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.presets import CALIBRATION_FILE
from bart_export.progress import Stage
from bart_export.recipes.metrics import METRICS
from bart_export.recipes.table import STORAGES, Recipe
from bart_export.runtime.generator import ModelInfo
from bart_export.tune import sensitivity
from bart_export.tune.budget_search import BudgetSearch, Evaluator, FileFigures
from bart_export.tune.precision_steps import measure_storage, precision_steps
from bart_export.verify import data
from bart_export.verify.data import Texts
from bart_export.verify.tolerance import check_measurable

# From the narrowest to DEFAULT's. One scale per tensor takes less space than one per row, because
# each row's scale and zero point take 12 bytes in every signature.
STORAGE_OPTIONS = ("int4", "int8_tensorwise", "int8")
RANKING_TEXTS = 24  # enough to rank layers by divergence
UNBOUNDED = ("weights", "rounding")  # they measure correctness, not quality


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The recipe of the smallest file, with the figures of that file and of `DEFAULT` (`widest`).

    `files` and `texts` are the numbers of files and texts measured; `storages` maps each layer to
    its storage.
    """

    recipe: Recipe
    found: FileFigures
    widest: FileFigures
    files: int
    texts: int
    storages: Mapping[str, str]


def tune(
    resolved: ResolvedPreset,
    name: str,
    budget: Mapping[str, float],
    texts: Texts | None = None,
    stage: Stage = lambda name: None,
) -> Tuned:
    """Find the recipe, called `name`, of a preset's smallest file within a budget.

    `budget` maps metrics to bounds. Files are measured on the given texts, or on those that ship
    with the preset. `stage` is called with the name of each stage when it starts.

    Raises:
        ConfigurationError: if the budget cannot be measured, or there are no texts.
        VerificationFailed: if even `DEFAULT` is outside the budget.
    """
    if not budget:
        raise ConfigurationError("Tuning needs a budget, as in --budget top1=0.98.")
    for metric in budget:
        if metric in UNBOUNDED:
            names = ", ".join(name for name in METRICS if name not in UNBOUNDED)
            raise ConfigurationError(f"A budget must bound one of {names}, received {metric}.")
    own = resolved.source.directory / CALIBRATION_FILE
    if texts is None and not own.is_file():
        raise ConfigurationError(
            f"{resolved.preset} does not ship with texts ({CALIBRATION_FILE}): give some with "
            "--data FILE.jsonl."
        )
    texts = texts or data.read_texts(own)
    check_measurable(budget, texts)
    checkpoint = resolved.checkpoint
    backbone = BartBackbone.from_checkpoint(checkpoint)
    layers = layer_names(checkpoint.config)
    with scratch_directory() as directory:
        float_file = directory / "float32.tflite"
        stage("convert the graph")
        read = backbone.named_weights().__getitem__
        write_float(InferenceParameters(checkpoint.config, read), float_file)
        stage("ask the float model")
        info = ModelInfo(
            checkpoint.config,
            checkpoint.tokenizer(),
            resolved.defaults.generation,
            checkpoint.encoder_sequence_length,
        )
        generate = any(metric in ("tokens", *data.ROUGE) for metric in budget)
        evaluator = Evaluator(float_file, info, texts.examples, generate=generate)
        search = BudgetSearch(evaluator, float_file, layers, name, budget, stage)
        widest = search.measure(dict.fromkeys(layers, STORAGE_OPTIONS[-1]))
        search.require_reachable(widest)
        stage("store every layer in each way")
        files = {storage: directory / f"all_{storage}.tflite" for storage in STORAGE_OPTIONS}
        for storage, path in files.items():
            sensitivity.write_uniform(float_file, STORAGES[storage], layers, path)
        options = [measure_storage(storage, path, float_file) for storage, path in files.items()]
        stage("measure every layer's sensitivity")
        narrowest = STORAGE_OPTIONS[0]
        sensitivities = sensitivity.measure_sensitivities(
            backbone, files[narrowest], evaluator.traces[:RANKING_TEXTS], STORAGES[narrowest]
        )
        recipe, found = search.run(*precision_steps(sensitivities, options))
    storages = {layer: recipe.storage(layer).name for layer in layers}
    return Tuned(recipe, found, widest, len(search.tried), len(texts.examples), storages)
