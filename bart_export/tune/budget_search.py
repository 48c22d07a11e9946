"""The search for the smallest file within a budget.

Every candidate is written and run on LiteRT. Chance agreement on a few steps could let the search
stop at a lucky file. `top1` is therefore judged twice: as counted, and as predicted from the file's
divergence. Where logit errors are small, a step picks a different token if its margin is below
the error, so the share of such steps is proportional to the error. The divergence is proportional
to the error's square (the first term of its expansion), so the share is proportional to the square
root of the divergence. The factor is estimated from all files of about the same divergence.
For eleven files of `bart_mini_en` with divergences from 0.0004 to 0.04 it was 0.30 to 0.54, without
a trend.
"""

import bisect
import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from bart_export.artifact.artifact import sha256
from bart_export.convert.quantize import quantize
from bart_export.errors import EngineError, VerificationFailed
from bart_export.progress import Stage
from bart_export.recipes.metrics import METRICS
from bart_export.recipes.table import DEFAULT, Layers, Recipe, parse_recipe
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.generator import ModelInfo
from bart_export.tune.precision_steps import PrecisionStep, apply_steps
from bart_export.tune.sensitivity import greedy_questions
from bart_export.verify.compare import Cases, compare_model
from bart_export.verify.data import Example
from bart_export.verify.tolerance import Bound
from bart_export.verify.traces import TINY, SignaturePair, Trace, TraceOutput, teacher_force

TRIES = 4  # steps that the search tries to drop at the end


@dataclasses.dataclass(frozen=True)
class FileFigures:
    """A file's size in bytes, its hash, and its figures by metric."""

    size: int
    sha256: str
    steps: int
    figures: Mapping[str, float]

    @property
    def root_kl(self) -> float:
        """The square root of the divergence."""
        return math.sqrt(max(self.figures["kl"], 0.0))  # NaN stays NaN


class Evaluator:
    """Measures files along the float file's greedy traces, whose logits are cached on disk.

    With `generate`, files also answer the questions, for `tokens` and ROUGE, in twice the time.
    """

    def __init__(
        self,
        float_file: pathlib.Path,
        info: ModelInfo,
        examples: Sequence[Example],
        *,
        generate: bool,
    ) -> None:
        self.info = info
        questions = greedy_questions(info, [example.text for example in examples])
        engine = open_compiled_model(float_file, info.config)
        files: dict[Trace, pathlib.Path] = {}

        def stored_output(trace: Trace) -> TraceOutput:
            return TraceOutput({}, np.load(files[trace]))

        cases = Cases.ask(engine, info.tokenizer, questions, stored_output)
        self.traces = cases.traces
        for number, trace in enumerate(cases.traces):
            files[trace] = float_file.with_name(f"logits_{number}.npy")
            np.save(files[trace], teacher_force(engine, trace).logits)
        references = [example.reference for example in examples]
        changes = {"references": references} if generate else {"questions": (), "answers": ()}
        self.cases = dataclasses.replace(cases, **changes)

    def measure(self, path: pathlib.Path) -> FileFigures:
        """Run a file and return its figures, or raise VerificationFailed if it cannot be run."""
        engine = open_compiled_model(path, self.info.config)
        pair = SignaturePair("encode", "decode_single", engine, rows=1)
        figures, _ = compare_model(path.name, engine, self.info.tokenizer, self.cases, pairs=[pair])
        known = {metric: getattr(figures, metric) for metric in METRICS}
        known = {metric: value for metric, value in known.items() if value is not None}
        return FileFigures(path.stat().st_size, sha256(path), figures.steps, known)


@dataclasses.dataclass
class BudgetSearch:
    """Quantizes the float file in different layouts and checks each against a budget.

    `budget` maps metrics to bounds, and `tried` maps layouts to figures; `name` is the recipe's.
    """

    evaluator: Evaluator
    float_file: pathlib.Path
    layers: Collection[str]
    name: str
    budget: Mapping[str, float]
    stage: Stage
    tried: dict[Layers, FileFigures] = dataclasses.field(default_factory=dict)

    def measure(self, storages: Mapping[str, str]) -> FileFigures:
        """Return the figures of the file with these storages; it is measured only once."""
        (usual, _), *_ = Counter(storages.values()).most_common(1)
        others = ((layer, storage) for layer, storage in storages.items() if storage != usual)
        layers = ((".*", usual), *others)
        if layers not in self.tried:
            self.stage(f"measure file {len(self.tried) + 1}")
            path = self.float_file.with_name("candidate.tflite")
            path.write_bytes(quantize(self.float_file, self.recipe(layers), self.layers))
            try:
                self.tried[layers] = self.evaluator.measure(path)
            except (EngineError, VerificationFailed, RuntimeError):
                # Some kernels do not support every width in every shape; such a file never passes.
                figures = dict.fromkeys(METRICS, math.nan)
                self.tried[layers] = FileFigures(path.stat().st_size, "", 0, figures)
        return self.tried[layers]

    def recipe(self, layers: Layers) -> Recipe:
        """Return the recipe of a layout, without a tolerance."""
        rows = [list(row) for row in layers]
        return parse_recipe({"name": self.name, "mode": "dynamic", "layers": rows, "tolerance": {}})

    def run(
        self, start: Mapping[str, str], steps: Sequence[PrecisionStep]
    ) -> tuple[Recipe, FileFigures]:
        """Return the recipe and the figures of the smallest file within the budget.

        The first file that was measured must be within the budget. `start` is the narrowest storage
        of each layer.
        """
        known, count = 0, 0
        # A file within the budget may turn out to be outside it after others are measured.
        while known < len(self.tried):
            known = len(self.tried)
            count = bisect.bisect_left(
                range(len(steps)),
                True,
                key=lambda taken: self.within_budget(
                    self.measure(apply_steps(start, steps[:taken]))
                ),
            )
        self.drop_steps(start, list(steps[:count]))
        kept = [layers for layers, measured in self.tried.items() if self.within_budget(measured)]
        layers = min(
            kept, key=lambda layers: self.tried[layers].size, default=next(iter(self.tried))
        )
        measured = self.tried[layers]
        tolerance = MappingProxyType(export_tolerance(self.budget, measured))
        return dataclasses.replace(self.recipe(layers), tolerance=tolerance), measured

    def drop_steps(self, start: Mapping[str, str], taken: list[PrecisionStep]) -> None:
        """Try to drop single steps, beginning at the end, where they gain least; keep the last."""
        for step in taken[-2 : -2 - TRIES : -1]:
            others = [other for other in taken if other is not step]
            if apply_steps(start, others) == apply_steps(start, taken):
                continue  # a later step widens the layer further
            if self.within_budget(self.measure(apply_steps(start, others))):
                taken = others

    def require_reachable(self, widest: FileFigures) -> None:
        """Raise VerificationFailed for the first metric whose bound the widest file misses."""
        for bound in self.bounds(widest):
            if not bound.holds:
                raise VerificationFailed(
                    f"No dynamic file is within the budget: with {DEFAULT}, {bound} Nothing was "
                    "written."
                )

    def within_budget(self, measured: FileFigures) -> bool:
        """Return whether a file is within the budget."""
        return all(bound.holds for bound in self.bounds(measured))

    def bounds(self, measured: FileFigures) -> list[Bound]:
        """Return the budget's bounds; `top1` is the lower of the counted and predicted shares."""
        root = measured.root_kl
        predicted = 1 - self.flips_per_root(root) * root
        figures = {**measured.figures, "top1": min(measured.figures["top1"], predicted)}
        return [Bound(METRICS[name], figures[name], bound) for name, bound in self.budget.items()]

    def flips_per_root(self, about: float) -> float:
        """Return the share of steps with a different token, divided by the divergence's root.

        It is averaged over the steps of the files whose root is between half and twice `about`.
        """
        near = [file for file in self.tried.values() if about / 2 <= file.root_kl <= 2 * about]
        flips = sum((1 - file.figures["top1"]) * file.steps for file in near)
        return flips / max(sum(file.root_kl * file.steps for file in near), TINY)


EXPORT_STEPS = 60  # approximate number of steps in an export without --data


def export_tolerance(budget: Mapping[str, float], measured: FileFigures) -> dict[str, float]:
    """Return a tolerance for exports that is loose enough for a few other texts.

    Each bound starts from the budget, or from the measured figure if the budget does not bound it.
    Means may be three times as large, and `top1` four standard errors lower (of a binomial share
    over `EXPORT_STEPS` steps). Metrics that need many texts are omitted.
    """
    figures = {**measured.figures, **budget}
    share = figures["top1"]
    error = math.sqrt(max(share * (1 - share), 0.0) / EXPORT_STEPS)
    return {
        "relative": float(f"{3 * figures['relative']:.3g}"),
        "kl": float(f"{3 * figures['kl']:.3g}"),
        "top1": round(max(share - 4 * error, 0.0), 4),
    }
