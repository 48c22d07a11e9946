"""Searching a budget: of files that store ever more layers wider, the first that keeps it.

An examination, a float file, bounds, and widenings in their order go in; a recipe and what its file
was measured to be come out. Every file is a real one. Where the order comes from is not known here.

A few steps more or less that decide otherwise are chance, and a search that stops at the smallest
file that keeps a bound stops at a lucky one. `top1` is therefore judged twice: as counted, and as
the file's divergence has it. Where errors of logits are small, those steps decide otherwise whose
margin is smaller than the error, so that their share goes with the error, and the divergence with
its square (the first term of its expansion): the share goes with the square root of the divergence.
How much, all files of a search say together. On `bart_mini_en`, of eleven files with divergences
from 0.0004 to 0.04, shares over that root were 0.30 to 0.54 without a trend.
"""

import dataclasses
import math
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bart_export import recipe_file
from bart_export.errors import VerificationFailed
from bart_export.metrics import AT_MOST, METRICS, within
from bart_export.progress import Stage
from bart_export.quality.examination import Examination, Measured
from bart_export.quality.widening import Widening, after
from bart_export.recipes import DEFAULT, ROUNDED, Recipe
from bart_export.targets.quantize import quantize

TRIES = 4  # widenings that are tried to be taken back at the end
TINY = 1e-30  # stands for no divergence


@dataclasses.dataclass(frozen=True)
class Found:
    """A recipe, and what its file was measured to be."""

    recipe: Recipe
    measured: Measured


class BudgetSearch:
    """Makes files, measures them and holds them to a budget.

    Args:
        examination: what files are asked.
        float_file: what they are made of; they are written beside it.
        layers: the names of its layers.
        name: what to call the recipes.
        budget: metric -> bound.
        stage: told which file is made.
    """

    def __init__(
        self,
        examination: Examination,
        float_file: pathlib.Path,
        layers: Iterable[str],
        name: str,
        budget: Mapping[str, float],
        stage: Stage,
    ) -> None:
        self.examination, self.float_file = examination, float_file
        self.layers, self.name = list(layers), name
        self.budget, self.stage = budget, stage
        self.tried: list[Found] = []

    def measure(self, recipe: Recipe) -> Measured:
        """Make the file of a recipe and measure it."""
        path = self.float_file.with_name("candidate.tflite")
        path.write_bytes(quantize(self.float_file, recipe, self.layers))
        measured = self.examination.measure(path)
        self.tried.append(Found(recipe, measured))
        return measured

    def run(self, start: Mapping[str, str], steps: Sequence[Widening]) -> Found:
        """Return the smallest file that keeps the budget.

        Args:
            start: how each layer is stored at its narrowest.
            steps: widenings in their order. That all of them keep the budget is known.
        """
        first, last = 0, len(steps)
        while first < last:
            middle = (first + last) // 2
            if self.keeps(self.measure_after(start, steps[:middle])):
                last = middle
            else:
                first = middle + 1
        self.take_back(start, list(steps[:last]))
        # What was kept when fewer files were known may not be now.
        kept = [found for found in self.tried if self.keeps(found.measured)]
        return min(kept or self.tried[:1], key=lambda found: found.measured.size)

    def take_back(self, start: Mapping[str, str], taken: list[Widening]) -> None:
        """Try to do without single widenings: the last taken are worth least, but the very last."""
        for step in taken[-2 : -2 - TRIES : -1]:
            others = [one for one in taken if one is not step]
            if after(start, others) == after(start, taken):
                continue  # a later step widens the layer further
            if self.keeps(self.measure_after(start, others)):
                taken = others

    def measure_after(self, start: Mapping[str, str], steps: Sequence[Widening]) -> Measured:
        """Measure the file with some widenings."""
        self.stage(f"measure a file with {len(steps)} layers widened")
        return self.measure(self.recipe(after(start, steps)))

    def recipe(self, storages: Mapping[str, str]) -> Recipe:
        """Return the recipe that stores each layer so."""
        (usual, _), *_ = Counter(storages.values()).most_common(1)
        others = [[layer, storage] for layer, storage in storages.items() if storage != usual]
        return recipe_file.from_dict(
            {
                "name": self.name,
                "mode": "dynamic",
                "layers": [[".*", usual], *others],
                "tolerance": export_tolerance(self.budget),
            }
        )

    def require(self, widest: Measured) -> None:
        """Refuse a budget that the widest file does not keep.

        Raises:
            VerificationFailed: for the first metric, with the figure.
        """
        for metric, bound in self.budget.items():
            figure = self.figure(metric, widest)
            if not within(metric, figure, bound):
                side = "at most" if METRICS[metric].side == AT_MOST else "at least"
                raise VerificationFailed(
                    f"No dynamic file keeps the budget: {METRICS[metric].description} must be "
                    f"{side} {bound:g}, and is {figure:.6g} with {DEFAULT}. Nothing was written."
                )

    def keeps(self, measured: Measured) -> bool:
        """Return whether a file keeps the budget."""
        return all(
            within(metric, self.figure(metric, measured), bound)
            for metric, bound in self.budget.items()
        )

    def figure(self, metric: str, measured: Measured) -> float:
        """Return what a metric is judged by; for `top1` the lower of the two shares."""
        figure = measured.figures[metric]
        if metric != "top1":
            return figure
        return min(figure, 1 - self.flips_per_root() * root(measured))

    def flips_per_root(self) -> float:
        """Return the share of other decisions over the root of the divergence, of all files."""
        flips = sum((1 - one.measured.figures["top1"]) * one.measured.steps for one in self.tried)
        roots = sum(root(one.measured) * one.measured.steps for one in self.tried)
        return flips / max(roots, TINY)


def root(measured: Measured) -> float:
    """Return the square root of a file's divergence."""
    return math.sqrt(max(measured.figures["kl"], 0.0))


# An export without --data has about so many steps, of other texts than those tuned on.
EXPORT_STEPS = 60
STANDARD_ERRORS = 4.0
LOOSER = 2.0


def export_tolerance(budget: Mapping[str, float]) -> dict[str, float]:
    """Return the bounds that an export holds the file to, looser where it has few steps.

    A share is given four standard errors of a binomial share over the steps that an export without
    texts has, a mean twice its bound; what needs many texts, or references, is left out. Other
    recipes' bounds on `relative` and `top1` stand where the budget has none.
    """
    bounds = dict(ROUNDED)
    for metric in ("relative", "kl", "logits"):
        if metric in budget:
            bounds[metric] = LOOSER * budget[metric]
    if "top1" in budget:
        share = budget["top1"]
        error = math.sqrt(max(share * (1 - share), 0.0) / EXPORT_STEPS)
        bounds["top1"] = round(max(share - STANDARD_ERRORS * error, 0.0), 4)
    return bounds
