"""A picture of a report: how much each layer of the model minds being stored narrowly.

Divergences by layer name go in, a matplotlib figure comes out; `ink` has its look. How they were
measured is not known here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bart_export.report import style

LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/(\w+)")
SIDES = ("encoder", "decoder")
WIDTH = 9.6  # inches
LINE = 0.34  # inches that a row of circles takes
LARGEST = 14.0  # points across
SMALLEST = 1.2
NUMBERED = 5  # the largest that have their number above them


def sensitivities(divergences: Mapping[str, float], storage: str) -> Any:
    """Return the picture of what each layer alone costs: circles whose areas are divergences.

    Args:
        divergences: for each layer, by name, what the model's distribution loses when this layer
            alone is narrow: the mean Kullback-Leibler divergence of a step, in nats.
        storage: what narrow means.
    """
    from matplotlib.figure import Figure

    placed = {name: found.groups() for name in divergences if (found := LAYER.fullmatch(name))}
    others = [name for name in divergences if name not in placed]
    kinds = sorted({kind for _, _, kind in placed.values()}, key=rank(divergences))
    columns = {
        side: sorted({int(number) for other, number, _ in placed.values() if other == side})
        for side in SIDES
    }
    height = LINE * (len(kinds) + 1) + 1.35
    figure = Figure(figsize=(WIDTH, height))
    grid = figure.add_gridspec(
        1, 3, width_ratios=[*(len(columns[side]) for side in SIDES), 1], left=2.0 / WIDTH,
        right=1 - 1.9 / WIDTH, bottom=0.55 / height, top=1 - 0.85 / height, wspace=0.15,
    )  # fmt: skip
    title = f"Divergence with one layer alone in {storage}, in thousandths of a nat a step"
    figure.text(0.15 / WIDTH, 1 - 0.22 / height, title, va="center")
    sizes = Sizes(divergences)
    for panel, side in enumerate(SIDES):
        axes = empty(figure.add_subplot(grid[panel]), side, len(kinds))
        axes.set_xticks(range(len(columns[side])), list(map(str, columns[side])))
        axes.set_xlim(-0.5, len(columns[side]) - 0.5)
        axes.set_xlabel("layer")
        axes.set_yticks(range(len(kinds)), words(kinds) if panel == 0 else [""] * len(kinds))
        for name, (other, number, kind) in placed.items():
            if other == side:
                sizes.draw(axes, name, columns[side].index(int(number)), kinds.index(kind))
    axes = empty(figure.add_subplot(grid[2]), "embeddings", len(kinds))
    axes.set_xlim(-0.5, 0.5)
    axes.set_xticks([])
    axes.set_yticks(range(len(others)), words(others))
    axes.yaxis.tick_right()
    for row, name in enumerate(others):
        sizes.draw(axes, name, 0, row)
    return figure


def rank(names: Mapping[str, float]) -> Any:
    """Return a key that sorts kinds of matrices as the decoder has them, or else the encoder."""
    order: dict[str, int] = {}
    for side in reversed(SIDES):
        for name in names:
            if (found := LAYER.fullmatch(name)) and found[1] == side:
                order.setdefault(found[3], len(order))
    return order.__getitem__


def words(names: Sequence[str]) -> list[str]:
    """Return names of layers as a reader has them."""
    return [name.removesuffix("_embedding").replace("_", " ").replace("/", " ") for name in names]


def empty(axes: Any, title: str, rows: int) -> Any:
    """Return axes with so many rows and nothing in them."""
    axes.set_title(title, color=style.FAINT_TEXT.light, loc="center", pad=8)
    axes.spines["bottom"].set_visible(False)
    axes.set_ylim(rows - 0.4, -0.75)
    axes.grid(visible=False, axis="x")
    return axes


class Sizes:
    """Draws a circle for a layer, with its number if it is one of the largest."""

    def __init__(self, divergences: Mapping[str, float]) -> None:
        self.divergences = divergences
        self.largest = max(divergences.values())
        self.numbered = sorted(divergences, key=lambda name: -divergences[name])[:NUMBERED]

    def draw(self, axes: Any, name: str, x: float, y: float) -> None:
        """Draw the circle of a layer; its area is the divergence."""
        value = max(self.divergences[name], 0.0)
        share = value / self.largest if self.largest > 0 else 0.0
        size = max(LARGEST * share**0.5, SMALLEST)
        colour = style.VERMILION if name in self.numbered else style.BLUE
        axes.plot([x], [y], "o", color=colour.light, markersize=size, clip_on=False)
        if name in self.numbered:
            axes.annotate(
                f"{1000 * value:.3g}", (x, y), (0, size / 2 + 1.5), textcoords="offset points",
                ha="center", va="bottom", fontsize=style.SIZE - 2,
            )  # fmt: skip
