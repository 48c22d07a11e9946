"""Fill the tables of README.md from the code that they describe.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`, where NAME is a key of `TABLES`. Run
this after a change of presets or recipes; a test compares.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from bart_export.presets import PRESETS
from bart_export.recipes.table import DEFAULT, MODES, RECIPES, Tolerance

README = Path(__file__).parents[1] / "README.md"


def presets_table() -> str:
    return table(
        ("preset", "parameters", "what it is", "from"),
        (
            (
                f"`{preset.name}`",
                f"{preset.parameters / 1e6:.1f} M",
                preset.description,
                "this package" if preset.directory else f"`{preset.handle}`",
            )
            for preset in PRESETS.values()
        ),
    )


def recipes_table() -> str:
    return table(
        ("recipe", "weights", "activations", "for", "runs on", "must agree with Keras"),
        (
            (
                f"`{recipe.name}`" + (" (default)" if recipe.name == DEFAULT else ""),
                recipe.weights,
                MODES[recipe.mode].description,
                recipe.purpose,
                ", ".join(f"{name} {version}" for name, version in recipe.runtimes.items()),
                agreement(recipe.tolerance),
            )
            for recipe in RECIPES.values()
        ),
    )


def agreement(tolerance: Tolerance) -> str:
    if "rounding" in tolerance:
        logits = f"logits within {tolerance['rounding']:g} times what float32 costs Keras"
    else:
        logits = f"logits within {tolerance['relative']:.2g} of their spread"
    if "tokens" in tolerance:
        return f"{logits}, every token"
    return f"{logits}, likeliest token in {tolerance['top1']:.0%} of steps"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("| --- ", "|---")


TABLES = {"presets": presets_table, "recipes": recipes_table}


def filled(text: str) -> str:
    """Return the text with every table made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        text, count = pattern.subn(lambda match, b=begin, e=end, m=make: f"{b}{m()}\n{e}", text)
        if count != 1:
            raise SystemExit(f"{README.name} must have one {begin.strip()}, it has {count}.")
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
