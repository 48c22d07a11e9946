"""The picture of what each file costs.

Every mark has its name or its number beside it, so that colours only repeat what words say. What
only chance may tell apart is not drawn.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from bart_export.report import style
from bart_export.report.facts import CALIBRATED, FLOAT, INT4, INT8, Figure, Reported, told_apart

INKS = {FLOAT: style.GREY, INT8: style.BLUE, INT4: style.VERMILION, CALIBRATED: style.GREEN}
WIDTH = 9.6  # inches
LINE = 0.34  # inches that a row of marks takes
MARK = 6.5  # points
POINT = 1 / 72  # inches


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure of the picture of costs: its head, what a file has, and how it is written.

    `origin` is where stems begin; `ahead` whether figures lie before it.
    """

    head: str
    figure: Callable[[Reported], Figure | None]
    words: str
    origin: float = 0.0
    ahead: bool = False


def costs(files: Sequence[Reported], columns: Sequence[Column]) -> Any:
    """Return the picture of what files cost: a row for each file, a column for each figure."""
    from matplotlib import figure as drawn

    names = widest(files) + 0.15
    height = LINE * len(files) + 0.75
    figure = drawn.Figure(figsize=(WIDTH, height))
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
    return max(len(one.label) for one in files) * 0.62 * style.SIZE * POINT


def cost_columns(files: Sequence[Reported], num_beams: int) -> list[Column]:
    """Return the columns of size, quality and speed by which two of the files can be told apart."""

    def size(one: Reported) -> Figure:
        return Figure(one.megabytes, one.megabytes, one.megabytes)

    def percentage(one: Reported) -> Figure | None:
        share = one.same_token
        return share and Figure(*(100 * end for end in dataclasses.astuple(share)))

    def speed(one: Reported) -> Figure | None:
        return one.tokens_per_second(num_beams)

    columns = [
        Column("Size, MB", size, ".1f"),
        Column("Same next token, %", percentage, ".1f", origin=100.0, ahead=True),
        Column("ROUGE-L lost, points", lambda one: one.rouge_loss, "+.1f"),
        Column("Tokens a second", speed, ".0f"),
    ]
    return [column for column in columns if told_apart(map(column.figure, files))]


def draw_column(axes: Any, files: Sequence[Reported], column: Column) -> None:
    """Draw a dot with its number for each file that has the figure, and its interval."""
    axes.set_title(column.head, pad=10)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelbottom=False, labelleft=False)
    known = {
        row: figure for row, one in enumerate(files) if (figure := column.figure(one)) is not None
    }
    ends = [column.origin, *(end for one in known.values() for end in (one.low, one.high))]
    room = (max(ends) - min(ends)) or 1.0
    # Numbers stand beside their dots, away from the stems.
    before, after = (0.42, 0.06) if column.ahead else (0.06, 0.42)
    axes.set_xlim(min(ends) - before * room, max(ends) + after * room)
    axes.set_ylim(len(files) - 0.5, -0.5)
    axes.axvline(column.origin, color=style.GRID.light, linewidth=0.8, zorder=0)
    for row, one in known.items():
        colour, value = INKS[files[row].kind].light, one.value
        axes.plot(
            (column.origin, value), (row, row), color=style.GRID.light, linewidth=1.5, zorder=1
        )
        axes.plot((one.low, one.high), (row, row), color=colour, linewidth=1.5, zorder=2)
        axes.plot([value], [row], "o", color=colour, markersize=MARK)
        edge = one.low if column.ahead else max(column.origin, one.high)
        axes.annotate(
            format(value, column.words).replace("-", "\N{MINUS SIGN}"), (edge, row),
            (-7 if column.ahead else 7, 0), textcoords="offset points", va="center",
            ha="right" if column.ahead else "left",
        )  # fmt: skip
    for row in set(range(len(files))) - set(known):
        axes.annotate(
            "not measured", (column.origin, row), (7, 0), textcoords="offset points", va="center",
            color=style.FAINT_TEXT.light, fontsize=style.SIZE - 1,
        )  # fmt: skip
