"""The pictures of a report: the cost of each file, and the sensitivity of each layer.

Every mark has a name or number next to it, so that nothing is conveyed by color alone. An SVG has
light colors, CSS rules for the reader's dark mode, and its own background. The same figures always
give the same bytes.
"""

import contextlib
import dataclasses
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bart_export.report.facts import CALIBRATED, FLOAT, INT4, INT8, Figure, ReportedFile, differ

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


@dataclasses.dataclass(frozen=True)
class Color:
    """A color on the light and on the dark background."""

    light: str
    dark: str


# The backgrounds and greys are GitHub's; the others are Okabe and Ito's colorblind-safe blue,
# vermilion and bluish green (jfly.uni-koeln.de/color), darkened and lightened for enough contrast.
BACKGROUND = Color("#ffffff", "#0d1117")
TEXT = Color("#1f2328", "#f0f6fc")
FAINT_TEXT = Color("#59636e", "#9198a1")
GRID = Color("#d1d9e0", "#3d444d")
GREY = Color("#4b535d", "#a8b1bb")
BLUE = Color("#0064a3", "#56b4e9")
VERMILION = Color("#b04a00", "#f0883e")
GREEN = Color("#00704f", "#2dc08d")
COLORS = (BACKGROUND, TEXT, FAINT_TEXT, GRID, GREY, BLUE, VERMILION, GREEN)
KINDS = {FLOAT: GREY, INT8: BLUE, INT4: VERMILION, CALIBRATED: GREEN}

SIZE = 10.0  # points
WIDTH = 9.6  # inches
LINE = 0.34  # inches, the height of a row
MARK = 6.5  # points
POINT = 1 / 72  # inches
# The layout is computed with DejaVu Sans; Verdana is equally wide.
FONTS = ["DejaVu Sans", "Verdana", "sans-serif"]
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # keep text searchable, accessible and testable
    "svg.hashsalt": "bart-export",
    "font.family": FONTS[:1],
    "font.size": SIZE,
    "text.color": TEXT.light,
    "text.parse_math": False,  # a name may contain dollar signs
    "axes.edgecolor": GRID.light,
    "axes.labelcolor": FAINT_TEXT.light,
    "axes.labelsize": SIZE,
    "axes.titlesize": SIZE,
    "axes.titlelocation": "left",
    "axes.titlecolor": TEXT.light,
    "axes.grid": True,
    "axes.axisbelow": True,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    "grid.color": GRID.light,
    "grid.linewidth": 0.8,
    **{f"{axis}tick.color": FAINT_TEXT.light for axis in "xy"},
    **{f"{axis}tick.labelsize": SIZE - 1 for axis in "xy"},
    **{f"{axis}tick.{which}.size": 0 for axis in "xy" for which in ("major", "minor")},
    "figure.facecolor": BACKGROUND.light,
    "axes.facecolor": "none",
    "savefig.facecolor": BACKGROUND.light,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Apply `STYLE` to matplotlib within a block, without log messages."""
    logger = logging.getLogger("matplotlib")  # logs its search for fonts
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            parameters: Any = matplotlib.rcParams
            parameters.update(STYLE)
            yield
    finally:
        logger.setLevel(level)


def to_svg(figure: "Drawing") -> str:
    """Return a figure as SVG text for both backgrounds; call it within `drawing`."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    stack = ", ".join(f"'{name}'" if " " in name else name for name in FONTS)
    rules = [
        f'[style*="{name}: {color.light}"]{{{name}:{color.dark} !important}}'
        for color in COLORS
        for name in ("fill", "stroke")
    ]
    dark = f"@media (prefers-color-scheme: dark){{{''.join(rules)}}}"
    text = written.getvalue().replace(f"'{FONTS[0]}'", stack)
    return text.replace("</style>", f"{dark}</style>", 1)


@dataclasses.dataclass(frozen=True)
class CostColumn:
    """A column of the cost picture.

    `format` formats its figures. Stems begin at `origin`, and `ahead` says whether figures are to
    the left of it.
    """

    head: str
    figure: Callable[[ReportedFile], Figure | None]
    format: str
    origin: float = 0.0
    ahead: bool = False


def cost_columns(files: Sequence[ReportedFile], num_beams: int) -> list[CostColumn]:
    """Return the columns in which any two files differ significantly."""

    def percentage(file: ReportedFile) -> Figure | None:
        share = file.same_token
        return share and Figure(*(100 * end for end in dataclasses.astuple(share)))

    columns = [
        CostColumn("Size, MB", lambda file: Figure(*[file.megabytes] * 3), ".1f"),
        CostColumn("Same next token, %", percentage, ".1f", origin=100.0, ahead=True),
        CostColumn("ROUGE-L loss, points", lambda file: file.rouge_loss, "+.1f"),
        CostColumn("Tokens per second", lambda file: file.tokens_per_second(num_beams), ".0f"),
    ]
    return [column for column in columns if differ(map(column.figure, files))]


def draw_costs(files: Sequence[ReportedFile], columns: Sequence[CostColumn]) -> "Drawing":
    """Draw a row for each file and a column for each figure."""
    from matplotlib.figure import Figure as Drawing

    names = max(len(file.label) for file in files) * 0.62 * SIZE * POINT + 0.15
    height = LINE * len(files) + 0.75
    drawing = Drawing(figsize=(WIDTH, height))
    grid = drawing.add_gridspec(
        1, len(columns), left=names / WIDTH, right=1 - 0.15 / WIDTH, bottom=0.15 / height,
        top=1 - 0.6 / height, wspace=0.2,
    )  # fmt: skip
    for number, column in enumerate(columns):
        axes = drawing.add_subplot(grid[number])
        draw_column(axes, files, column)
        for row, file in enumerate(files) if number == 0 else ():
            axes.annotate(
                file.label, (0, row), (-10, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="center", color=KINDS[file.kind].light,
            )  # fmt: skip
    return drawing


def draw_column(axes: "Axes", files: Sequence[ReportedFile], column: CostColumn) -> None:
    """Draw each file's figure as a dot with its number and interval."""
    axes.set_title(column.head, pad=10)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelbottom=False, labelleft=False)
    figures = [column.figure(file) for file in files]
    known = [figure for figure in figures if figure is not None]
    ends = [column.origin, *(end for figure in known for end in (figure.low, figure.high))]
    extent = (max(ends) - min(ends)) or 1.0
    # Numbers are beside their dots, away from the stems.
    before, after = (0.42, 0.06) if column.ahead else (0.06, 0.42)
    axes.set_xlim(min(ends) - before * extent, max(ends) + after * extent)
    axes.set_ylim(len(files) - 0.5, -0.5)
    axes.axvline(column.origin, color=GRID.light, linewidth=0.8, zorder=0)
    for row, figure in enumerate(figures):
        if figure is None:
            axes.annotate(
                "not measured", (column.origin, row), (7, 0), textcoords="offset points",
                va="center", color=FAINT_TEXT.light, fontsize=SIZE - 1,
            )  # fmt: skip
            continue
        color, value = KINDS[files[row].kind].light, figure.value
        axes.plot((column.origin, value), (row, row), color=GRID.light, linewidth=1.5, zorder=1)
        axes.plot((figure.low, figure.high), (row, row), color=color, linewidth=1.5, zorder=2)
        axes.plot([value], [row], "o", color=color, markersize=MARK)
        edge = figure.low if column.ahead else max(column.origin, figure.high)
        axes.annotate(
            format(value, column.format).replace("-", "\N{MINUS SIGN}"), (edge, row),
            (-7 if column.ahead else 7, 0), textcoords="offset points", va="center",
            ha="right" if column.ahead else "left",
        )  # fmt: skip


LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/(\w+)")
SIDES = ("encoder", "decoder")
LARGEST, SMALLEST = 14.0, 1.2  # points, the diameter of a circle
NUMBERED = 5  # the number of circles, largest first, that have their divergence above them


def draw_sensitivities(divergences: Mapping[str, float], storage: str) -> "Drawing":
    """Draw a circle for each layer, with an area proportional to its divergence in `storage`.

    `divergences` maps layers to their mean Kullback-Leibler divergence in nats per step.
    """
    from matplotlib.figure import Figure as Drawing

    placed = {name: found.groups() for name in divergences if (found := LAYER.fullmatch(name))}
    others = [name for name in divergences if name not in placed]
    # Matrices in the order of the decoder, which has all of the encoder's and more.
    ordered = sorted(placed.values(), key=lambda place: SIDES.index(place[0]), reverse=True)
    kinds = list(dict.fromkeys(kind for _, _, kind in ordered))
    numbers = {
        side: sorted({int(number) for other, number, _ in placed.values() if other == side})
        for side in SIDES
    }
    height = LINE * (len(kinds) + 1) + 1.35
    drawing = Drawing(figsize=(WIDTH, height))
    grid = drawing.add_gridspec(
        1, 3, width_ratios=[*(len(numbers[side]) for side in SIDES), 1], left=2.0 / WIDTH,
        right=1 - 1.9 / WIDTH, bottom=0.55 / height, top=1 - 0.85 / height, wspace=0.15,
    )  # fmt: skip
    title = f"Divergence with a single layer in {storage}, in thousandths of a nat per step"
    drawing.text(0.15 / WIDTH, 1 - 0.22 / height, title, va="center")
    panels = [drawing.add_subplot(grid[number]) for number in range(3)]
    for axes, head in zip(panels, (*SIDES, "embeddings"), strict=True):
        axes.set_title(head, color=FAINT_TEXT.light, loc="center", pad=8)
        axes.spines["bottom"].set_visible(False)
        axes.set_ylim(len(kinds) - 0.4, -0.75)
        axes.grid(visible=False, axis="x")
    for axes, side in zip(panels, SIDES, strict=False):
        axes.set_xticks(range(len(numbers[side])), list(map(str, numbers[side])))
        axes.set_xlim(-0.5, len(numbers[side]) - 0.5)
        axes.set_xlabel("layer")
        axes.set_yticks(range(len(kinds)), words(kinds) if side == SIDES[0] else [""] * len(kinds))
    embeddings = panels[2]
    embeddings.set_xlim(-0.5, 0.5)
    embeddings.set_xticks([])
    embeddings.set_yticks(range(len(others)), words(others))
    embeddings.yaxis.tick_right()
    largest = max(divergences.values())
    numbered = sorted(divergences, key=lambda name: -divergences[name])[:NUMBERED]
    for name, divergence in divergences.items():
        axes, x, y = embeddings, 0, others.index(name) if name in others else 0
        if name in placed:
            side, number, kind = placed[name]
            axes = panels[SIDES.index(side)]
            x, y = numbers[side].index(int(number)), kinds.index(kind)
        share = max(divergence, 0.0) / largest if largest > 0 else 0.0
        size = max(LARGEST * share**0.5, SMALLEST)
        color = VERMILION if name in numbered else BLUE
        axes.plot([x], [y], "o", color=color.light, markersize=size, clip_on=False)
        if name in numbered:
            axes.annotate(
                f"{1000 * max(divergence, 0.0):.3g}", (x, y), (0, size / 2 + 1.5),
                textcoords="offset points", ha="center", va="bottom", fontsize=SIZE - 2,
            )  # fmt: skip
    return drawing


def words(names: Sequence[str]) -> list[str]:
    """Return readable names of layers."""
    return [name.removesuffix("_embedding").replace("_", " ").replace("/", " ") for name in names]
