"""The look of a report's pictures: colours for light and dark, type, and how an SVG is written.

A matplotlib figure goes in, drawn in the light colours; the text of an SVG comes out that shows the
dark ones where the reader's system asks for them. It has a ground of its own, so that its words can
be read on any page. Equal figures give equal bytes. What is drawn is not known here.
"""

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Ink:
    """A colour: `light` on the light ground, `dark` on the dark one."""

    light: str
    dark: str


# The grounds, greys and their contrasts are those of GitHub's pages; the others are Okabe and Ito's
# blue, vermilion and bluish green (jfly.uni-koeln.de/color), which people tell apart however they
# see colours, darkened and lightened until words in them can be read on their ground.
GROUND = Ink("#ffffff", "#0d1117")
TEXT = Ink("#1f2328", "#f0f6fc")
FAINT_TEXT = Ink("#59636e", "#9198a1")
GRID = Ink("#d1d9e0", "#3d444d")
GREY = Ink("#4b535d", "#a8b1bb")
BLUE = Ink("#0064a3", "#56b4e9")
VERMILION = Ink("#b04a00", "#f0883e")
GREEN = Ink("#00704f", "#2dc08d")
INKS = (GROUND, TEXT, FAINT_TEXT, GRID, GREY, BLUE, VERMILION, GREEN)

SIZE = 10.0  # points
# Verdana is as wide as DejaVu Sans, with which words are given their room.
FONTS = ["DejaVu Sans", "Verdana", "sans-serif"]
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # words stay words: they can be searched, read aloud and tested
    "svg.hashsalt": "bart-export",
    "font.family": FONTS[:1],
    "font.size": SIZE,
    "text.color": TEXT.light,
    "text.parse_math": False,  # a name may have two dollars
    "axes.edgecolor": GRID.light,
    "axes.labelcolor": FAINT_TEXT.light,
    "axes.labelsize": SIZE,
    "axes.titlesize": SIZE,
    "axes.titlelocation": "left",
    "axes.titlecolor": TEXT.light,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": GRID.light,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT_TEXT.light,
    "ytick.color": FAINT_TEXT.light,
    "xtick.labelsize": SIZE - 1,
    "ytick.labelsize": SIZE - 1,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": GROUND.light,
    "axes.facecolor": "none",
    "savefig.facecolor": GROUND.light,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Have matplotlib draw in this style for the length of a block, without a word to the user."""
    logger = logging.getLogger("matplotlib")  # tells of fonts that it looks for
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            parameters: Any = matplotlib.rcParams
            parameters.update(SETTINGS)
            yield
    finally:
        logger.setLevel(level)


def to_svg(figure: Any) -> str:
    """Return a figure as SVG text, for both grounds; call it while `drawing`."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    stack = ", ".join(f"'{name}'" if " " in name else name for name in FONTS)
    text = text.replace(f"'{FONTS[0]}'", stack)
    ending = "</style>"
    return text.replace(ending, f"{dark_rules()}{ending}", 1)


def dark_rules() -> str:
    """Return the style rules that put the dark colours in the place of the light ones."""
    rules = [
        f'[style*="{what}: {ink.light}"]{{{what}:{ink.dark} !important}}'
        for ink in INKS
        for what in ("fill", "stroke")
    ]
    return "@media (prefers-color-scheme: dark){" + "".join(rules) + "}"
