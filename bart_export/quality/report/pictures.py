"""Two pictures of a report: what each file costs, and how its time grows.

Values of `reported` go in, matplotlib figures come out, one for each picture; `ink` has their look
and writes them. Every mark has its name or its number beside it, so that colours only repeat what
words say. Where figures are from is not known here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bart_export.quality.report import ink
from bart_export.quality.report.reported import CALIBRATED, FLOAT, INT4, INT8, Reported

INKS = {FLOAT: ink.GREY, INT8: ink.BLUE, INT4: ink.VERMILION, CALIBRATED: ink.GREEN}
WIDTH = 9.6  # inches
LINE = 0.34  # inches that a row of marks takes
MARK = 6.5  # points
POINT = 1 / 72  # inches


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure of the picture of costs: its head, what a file has, and how it is written.

    `origin` is where stems begin; `ahead` whether figures lie before it. `interval` has what holds
    the figure with some confidence.
    """

    head: str
    value: Callable[[Reported], float | None]
    words: str
    origin: float = 0.0
    ahead: bool = False
    interval: Callable[[Reported], tuple[float, float] | None] = lambda one: None


def costs(files: Sequence[Reported], num_beams: int, new_tokens: int | None) -> Any:
    """Return the picture of size, quality and speed: a row for each file, a column for each figure.

    Columns of what was measured for no file are left out.
    """
    from matplotlib.figure import Figure

    columns = [
        column
        for column in cost_columns(num_beams, new_tokens)
        if any(column.value(one) is not None for one in files)
    ]
    names = widest(files) + 0.15
    height = LINE * len(files) + 0.75
    figure = Figure(figsize=(WIDTH, height))
    grid = figure.add_gridspec(
        1, len(columns), left=names / WIDTH, right=1 - 0.15 / WIDTH, bottom=0.15 / height,
        top=1 - 0.6 / height, wspace=0.2,
    )  # fmt: skip
    for number, column in enumerate(columns):
        axes = figure.add_subplot(grid[number])
        draw_column(axes, files, column)
        for row, one in enumerate(files) if number == 0 else ():
            axes.annotate(
                one.label, (0, row), (-10, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="center", color=INKS[one.kind].light,
            )  # fmt: skip
    return figure


def widest(files: Sequence[Reported]) -> float:
    """Return how many inches the longest name takes at most."""
    return max(len(one.label) for one in files) * 0.62 * ink.SIZE * POINT


def cost_columns(num_beams: int, new_tokens: int | None) -> list[Column]:
    """Return the columns of the picture of costs."""

    def speed(one: Reported) -> float | None:
        return None if new_tokens is None else one.tokens_per_second(num_beams, new_tokens)

    def percentage(one: Reported) -> float | None:
        return 100 * one.figures["top1"] if "top1" in one.figures else None

    def loss(one: Reported) -> float | None:
        return one.rouge_l["loss"] if one.rouge_l else None

    def ends(one: Reported) -> tuple[float, float] | None:
        return (one.rouge_l["low"], one.rouge_l["high"]) if one.rouge_l else None

    return [
        Column("Size, MB", lambda one: one.megabytes, ".1f"),
        Column("Same next token, %", percentage, ".1f", origin=100.0, ahead=True),
        Column("ROUGE-L lost, points", loss, "+.1f", interval=ends),
        Column("Tokens a second", speed, ".0f"),
    ]


def draw_column(axes: Any, files: Sequence[Reported], column: Column) -> None:
    """Draw a dot with its number for each file that has the figure, and its interval."""
    axes.set_title(column.head, pad=10)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelbottom=False, labelleft=False)
    known = {
        row: found for row, one in enumerate(files) if (found := column.value(one)) is not None
    }
    spans = {row: column.interval(files[row]) or (found, found) for row, found in known.items()}
    ends = [column.origin, *(end for span in spans.values() for end in span)]
    room = (max(ends) - min(ends)) or 1.0
    # Numbers stand beside their dots, away from the stems.
    before, after = (0.42, 0.06) if column.ahead else (0.06, 0.42)
    axes.set_xlim(min(ends) - before * room, max(ends) + after * room)
    axes.set_ylim(len(files) - 0.5, -0.5)
    axes.axvline(column.origin, color=ink.GRID.light, linewidth=0.8, zorder=0)
    for row, found in known.items():
        colour = INKS[files[row].kind].light
        axes.plot((column.origin, found), (row, row), color=ink.GRID.light, linewidth=1.5, zorder=1)
        axes.plot(spans[row], (row, row), color=colour, linewidth=1.5, zorder=2)
        axes.plot([found], [row], "o", color=colour, markersize=MARK)
        edge = found if column.ahead else max(column.origin, *spans[row])
        axes.annotate(
            format(found, column.words).replace("-", "\N{MINUS SIGN}"), (edge, row),
            (-7 if column.ahead else 7, 0), textcoords="offset points", va="center",
            ha="right" if column.ahead else "left",
        )  # fmt: skip
    for row in set(range(len(files))) - set(known):
        axes.annotate(
            "not measured", (column.origin, row), (7, 0), textcoords="offset points", va="center",
            color=ink.FAINT_TEXT.light, fontsize=ink.SIZE - 1,
        )  # fmt: skip


def times(files: Sequence[Reported], num_beams: int) -> Any:
    """Return the picture of times: of a token by source length, of a text by its length."""
    from matplotlib.figure import Figure

    shown = [one for one in files if one.lengths(num_beams)]
    height = max(3.4, LINE * 0.62 * len(shown) + 1.3)
    names = widest(shown) + 0.35
    figure = Figure(figsize=(WIDTH, height))
    panels = figure.add_gridspec(
        1, 2, left=0.55 / WIDTH, right=1 - names / WIDTH, bottom=0.55 / height,
        top=1 - 0.5 / height, wspace=0.28,
    )  # fmt: skip
    by_source, by_length = figure.add_subplot(panels[0]), figure.add_subplot(panels[1])
    beams = "greedy" if num_beams == 1 else f"{num_beams} beams"
    draw_lines(
        by_source,
        [(one, one.sources(num_beams, "token_seconds")) for one in shown],
        (f"A token, ms, {beams}", "source tokens"),
    )
    source = shown[0].times["lengths"][0]["source"]
    ends = draw_lines(
        by_length,
        [(one, one.lengths(num_beams)) for one in shown],
        (f"A text from {source} tokens, ms, {beams}", "new tokens"),
    )
    label_lines(figure, by_length, ends)
    return figure


Curve = tuple[Reported, Mapping[int, float]]


def draw_lines(
    axes: Any, curves: Sequence[Curve], words: tuple[str, str]
) -> list[tuple[Reported, float, float]]:
    """Draw milliseconds against a length; return where each line ends."""
    title, below = words
    axes.set_title(title, pad=10)
    axes.set_xlabel(below)
    axes.grid(visible=False, axis="x")
    ends = []
    for one, curve in curves:
        if not curve:
            continue
        along = sorted(curve)
        values = [1000 * curve[length] for length in along]
        axes.plot(
            along, values, "o-", color=INKS[one.kind].light, linewidth=1.6, markersize=3.5,
            solid_capstyle="round",
        )  # fmt: skip
        ends.append((one, float(along[-1]), values[-1]))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    return ends


def label_lines(figure: Any, axes: Any, ends: Sequence[tuple[Reported, float, float]]) -> None:
    """Write each file's name beside the end of its line, apart from the others."""
    inches = axes.get_position().height * figure.get_figheight()
    bottom, top = axes.get_ylim()
    line = 1.35 * ink.SIZE * POINT / inches  # of the axes' height
    ordered = sorted(ends, key=lambda end: end[2])
    places = spread([(value - bottom) / (top - bottom) for _, _, value in ordered], line)
    for (one, length, value), place in zip(ordered, places, strict=True):
        colour = INKS[one.kind].light
        axes.annotate(
            one.label, (length, value), (1.09, place), textcoords="axes fraction", va="center",
            color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1,
                        "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(places: Sequence[float], distance: float) -> list[float]:
    """Return ascending places moved as little as it takes to lie `distance` apart, and below 1.

    Neighbours that are too near form a group about their mean, and groups that meet join.
    """
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and lowest(groups[-1], distance) < highest(groups[-2], distance):
            groups[-2:] = [groups[-2] + groups[-1]]
    apart = [
        lowest(group, distance) + (number + 0.5) * distance
        for group in groups
        for number in range(len(group))
    ]
    above = reversed(range(len(apart)))
    return [min(place, 1 - number * distance) for number, place in zip(above, apart, strict=True)]


def lowest(group: Sequence[float], distance: float) -> float:
    """Return where a group of places that lie `distance` apart begins."""
    return sum(group) / len(group) - len(group) * distance / 2


def highest(group: Sequence[float], distance: float) -> float:
    """Return where a group of places that lie `distance` apart ends."""
    return lowest(group, distance) + len(group) * distance
