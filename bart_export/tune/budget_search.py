"""The search for the smallest file within a budget, among files that store ever more layers wider.

Every file is a real one, run on LiteRT. A few steps that decide otherwise by chance would let a
search stop at a lucky file. `top1` is therefore judged twice: as counted, and as the file's
divergence has it. Where errors of logits are small, those steps decide otherwise whose margin is
smaller than the error, so that their share goes with the error, and the divergence with its square
(the first term of its expansion): the share goes with the square root of the divergence. By what
factor, files of about the same divergence say together. On `bart_mini_en`, of eleven files with
divergences from 0.0004 to 0.04, shares over that root were 0.30 to 0.54 without a trend.
"""

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from bart_export.artifact.artifact import sha256
from bart_export.convert.quantize import quantize
from bart_export.errors import EngineError, VerificationFailed
from bart_export.progress import Stage
from bart_export.recipes.metrics import AT_MOST, METRICS, meets_bound
from bart_export.recipes.table import DEFAULT, Layers, Recipe, parse_recipe
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.generator import ModelInfo
from bart_export.tune.sensitivity import PrecisionStep, apply_steps
from bart_export.verify import golden
from bart_export.verify.compare import Cases, compare_model
from bart_export.verify.data import Example
from bart_export.verify.golden import Question
from bart_export.verify.traces import SignaturePair, Trace, TraceOutput, teacher_force

TRIES = 4  # steps that the search tries to take back at the end
TINY = 1e-30  # stands for no divergence


@dataclasses.dataclass(frozen=True)
class Measured:
    """A file's size in bytes, its hash, and its figures by the names of `metrics.METRICS`."""

    size: int
    sha256: str
    steps: int
    figures: Mapping[str, float]


class Evaluator:
    """Measures files along a float file's greedy traces over some texts.

    Args:
        float_file: the file that others are compared with; its logits are kept beside it on disk.
        info: about the model.
        examples: the texts.
        generate: whether files are to answer as well, for `tokens` and ROUGE: that takes as long
            again.
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
        longest = min(info.generation.max_length, info.config.max_sequence_length)
        settings = golden.greedy(info, longest)
        questions = [
            Question(example.text, info.encode(example.text), "greedy", settings)
            for example in examples
        ]
        engine = open_compiled_model(float_file, info.config)
        cases = Cases.ask(engine, info.tokenizer, questions, self.stored_output)
        self.traces, self.files = cases.traces, {}
        for number, trace in enumerate(cases.traces):
            self.files[trace] = float_file.with_name(f"logits_{number}.npy")
            np.save(self.files[trace], teacher_force(engine, trace).logits)
        if generate:
            references = [example.reference for example in examples]
            self.cases = dataclasses.replace(cases, references=references)
        else:
            self.cases = dataclasses.replace(cases, questions=(), answers=())

    def stored_output(self, trace: Trace) -> TraceOutput:
        """Return the float file's logits along a trace."""
        return TraceOutput({}, np.load(self.files[trace]))

    def measure(self, path: pathlib.Path) -> Measured:
        """Run a file along the traces, and let it answer where that was asked for.

        Raises:
            VerificationFailed: for a file that cannot be run.
        """
        engine = open_compiled_model(path, self.info.config)
        pair = SignaturePair("encode", "decode_single", engine, rows=1)
        figures, _ = compare_model(path.name, engine, self.info.tokenizer, self.cases, pairs=[pair])
        known = {metric: getattr(figures, metric) for metric in METRICS}
        known = {metric: value for metric, value in known.items() if value is not None}
        return Measured(path.stat().st_size, sha256(path), figures.steps, known)


@dataclasses.dataclass(frozen=True)
class Found:
    """A recipe, and what its file was measured to be."""

    recipe: Recipe
    measured: Measured


class BudgetSearch:
    """Makes files, measures them and holds them to a budget.

    Args:
        evaluator: measures files.
        float_file: what they are made of; they are written beside it.
        layers: the names of its layers.
        name: what to call the recipes.
        budget: metric -> bound.
        stage: told which file is made.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        float_file: pathlib.Path,
        layers: Iterable[str],
        name: str,
        budget: Mapping[str, float],
        stage: Stage,
    ) -> None:
        self.evaluator, self.float_file = evaluator, float_file
        self.layers, self.name = list(layers), name
        self.budget, self.stage = budget, stage
        self.tried: dict[Layers, Found] = {}

    def measure(self, storages: Mapping[str, str]) -> Measured:
        """Make the file that stores each layer so, unless it was made before, and measure it."""
        recipe = self.recipe(storages)
        if recipe.layers not in self.tried:
            self.stage(f"measure file {len(self.tried) + 1}")
            path = self.float_file.with_name("candidate.tflite")
            path.write_bytes(quantize(self.float_file, recipe, self.layers))
            try:
                measured = self.evaluator.measure(path)
            except (EngineError, VerificationFailed, RuntimeError):
                # Kernels refuse some widths in some shapes: such a file keeps no budget.
                measured = Measured(path.stat().st_size, "", 0, dict.fromkeys(METRICS, math.nan))
            self.tried[recipe.layers] = Found(recipe, measured)
        return self.tried[recipe.layers].measured

    def run(self, start: Mapping[str, str], steps: Sequence[PrecisionStep]) -> Found:
        """Return the smallest file that keeps the budget.

        Args:
            start: how each layer is stored at its narrowest.
            steps: in their order. The file measured first is known to keep the budget.
        """
        known, count = 0, 0
        # What was kept when fewer files were known may not be now.
        while known < len(self.tried):
            known = len(self.tried)
            count = self.bisect(start, steps)
        self.take_back(start, list(steps[:count]))
        kept = [found for found in self.tried.values() if self.keeps(found.measured)]
        first = next(iter(self.tried.values()))
        found = min(kept, key=lambda found: found.measured.size, default=first)
        tolerance = export_tolerance(self.budget, found.measured)
        recipe = dataclasses.replace(found.recipe, tolerance=MappingProxyType(tolerance))
        return dataclasses.replace(found, recipe=recipe)

    def bisect(self, start: Mapping[str, str], steps: Sequence[PrecisionStep]) -> int:
        """Return how many steps are enough, by what is known now; all of them always are."""
        first, last = 0, len(steps)
        while first < last:
            middle = (first + last) // 2
            if self.keeps(self.measure(apply_steps(start, steps[:middle]))):
                last = middle
            else:
                first = middle + 1
        return last

    def take_back(self, start: Mapping[str, str], taken: list[PrecisionStep]) -> None:
        """Try to do without single steps: the last gain least, but the very last is needed."""
        for step in taken[-2 : -2 - TRIES : -1]:
            others = [other for other in taken if other is not step]
            if apply_steps(start, others) == apply_steps(start, taken):
                continue  # a later step widens the layer further
            if self.keeps(self.measure(apply_steps(start, others))):
                taken = others

    def recipe(self, storages: Mapping[str, str]) -> Recipe:
        """Return the recipe that stores each layer so."""
        (usual, _), *_ = Counter(storages.values()).most_common(1)
        others = [[layer, storage] for layer, storage in storages.items() if storage != usual]
        return parse_recipe(
            {
                "name": self.name,
                "mode": "dynamic",
                "layers": [[".*", usual], *others],
                "tolerance": {},
            }
        )

    def require(self, widest: Measured) -> None:
        """Refuse a budget that the widest file does not keep.

        Raises:
            VerificationFailed: for the first metric, with the figure.
        """
        for metric, bound in self.budget.items():
            figure = self.figure(metric, widest)
            if not meets_bound(metric, figure, bound):
                side = "at most" if METRICS[metric].side == AT_MOST else "at least"
                raise VerificationFailed(
                    f"No dynamic file keeps the budget: {METRICS[metric].description} must be "
                    f"{side} {bound:g}, and is {figure:.6g} with {DEFAULT}. Nothing was written."
                )

    def keeps(self, measured: Measured) -> bool:
        """Return whether a file keeps the budget."""
        return all(
            meets_bound(metric, self.figure(metric, measured), bound)
            for metric, bound in self.budget.items()
        )

    def figure(self, metric: str, measured: Measured) -> float:
        """Return what a metric is judged by; for `top1` the lower of the two shares."""
        figure = measured.figures[metric]
        if metric != "top1":
            return figure
        return min(figure, 1 - self.flips_per_root(root(measured)) * root(measured))

    def flips_per_root(self, about: float) -> float:
        """Return the share of other decisions over the root of the divergence.

        It is that of all steps of the files with about such a root, half of it to twice.
        """
        near = [
            found.measured
            for found in self.tried.values()
            if about / 2 <= root(found.measured) <= 2 * about
        ]
        flips = sum((1 - file.figures["top1"]) * file.steps for file in near)
        return flips / max(sum(root(file) * file.steps for file in near), TINY)


def root(measured: Measured) -> float:
    """Return the square root of a file's divergence."""
    kl = measured.figures["kl"]
    return math.nan if math.isnan(kl) else math.sqrt(max(kl, 0.0))


# An export without --data has about so many steps, of other texts than those tuned on.
EXPORT_STEPS = 60
STANDARD_ERRORS = 4.0
TIMES = 3.0


def export_tolerance(budget: Mapping[str, float], measured: Measured) -> dict[str, float]:
    """Return the bounds that an export holds the file to, loose enough for few and other texts.

    They go out from the budget, or where it says nothing from what was measured: means may be three
    times that, the share of equal decisions four standard errors less, those of a binomial share
    over the steps that an export without texts has. What needs many texts is left out.
    """
    bounds = {
        metric: float(f"{TIMES * budget.get(metric, measured.figures[metric]):.3g}")
        for metric in ("relative", "kl")
    }
    share = budget.get("top1", measured.figures["top1"])
    error = math.sqrt(max(share * (1 - share), 0.0) / EXPORT_STEPS)
    return {**bounds, "top1": round(max(share - STANDARD_ERRORS * error, 0.0), 4)}
