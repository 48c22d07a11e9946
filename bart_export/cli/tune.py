"""`bart-export tune`: a preset and a budget go in, a recipe file and a table come out.

Everything heavy is imported when the command runs.
"""

import math
import os
import pathlib
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from bart_export.errors import MissingExtra
from bart_export.progress import console, counted, stages
from bart_export.recipes import metrics
from bart_export.recipes import table as recipes

if TYPE_CHECKING:
    from bart_export.tune.tune import Tuned

STAGES = 18  # about as many as a search of a hundred layers has


@click.command()
@click.argument("preset")
@click.option(
    "--budget",
    "bounds",
    multiple=True,
    required=True,
    metavar="NAME=VALUE",
    help="A bound that the file must keep, as in top1=0.98; may be repeated. NAME is one of "
    f"{', '.join(metrics.METRICS)}.",
)
@click.option(
    "--data",
    type=click.Path(path_type=pathlib.Path),
    help='Texts to measure with: .jsonl, objects with a "text" and optionally a "reference". '
    "Default: those of the preset.",
)
@click.option(
    "--output",
    type=click.Path(path_type=pathlib.Path),
    help="The recipe file to write. Default: PRESET_BUDGET.json.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing recipe file.")
def tune(
    preset: str,
    bounds: tuple[str, ...],
    data: pathlib.Path | None,
    output: pathlib.Path | None,
    overwrite: bool,
) -> None:
    """Find the smallest dynamic file of a preset within a budget, and write its recipe.

    Layers that lose little are stored in 4 bits, the others in 8. Every candidate is a real file,
    run on LiteRT along the float file's greedy answers to the texts. The exit code is 1 if not even
    dynamic_wi8_afp32 keeps the budget.
    """
    from bart_export.checkpoints.resolve import resolve_preset
    from bart_export.quiet import native_stderr_silenced
    from bart_export.runtime import texts
    from bart_export.verify import data as examples

    budget = metrics.parse(bounds)
    path = output or pathlib.Path(f"{recipe_name(preset, budget)}.json")
    recipes.require_name(path.stem)
    place = pathlib.Path(os.path.realpath(path)).parent
    if path.suffix != ".json" or not place.is_dir() or (path.exists() and not path.is_file()):
        raise click.UsageError(
            f"A recipe file is a regular NAME.json in a directory that exists, received {path}. "
            "Name another with --output."
        )
    texts.check_loss(path, data, overwrite)
    try:
        tempfile.TemporaryFile(dir=place).close()  # refused now, or else after minutes
    except OSError as error:
        raise texts.cannot_write(path, error) from error
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with stages(STAGES) as stage:
        # What is wrong with an argument is said before TensorFlow takes its seconds to load.
        resolve_preset(preset, stage=stage)
        if data is not None:
            examples.read(data)
        stage("load TensorFlow")
        try:
            with native_stderr_silenced():
                from bart_export.tune.tune import tune as find
        except ModuleNotFoundError as error:
            package = str(error.name).replace("_", "-")
            raise MissingExtra("Tuning", package, "export") from None
        tuned = find(preset, path.stem, budget, data, stage)
    show(tuned, budget)
    try:
        recipes.write_recipe(path, tuned.recipe)
    except OSError as error:
        raise texts.cannot_write(path, error) from error
    click.echo(f"Wrote {path}. Try it:")
    given = f" --data {data}" if data else ""
    click.echo(f"  bart-export --preset {preset} --target tflite --recipe {path}{given}")


def recipe_name(preset: str, budget: Mapping[str, float]) -> str:
    """Return a name for the recipe: the last part of the preset's, and the budget."""
    name = pathlib.PurePath(preset.partition("@")[0]).name or pathlib.Path(preset).resolve().name
    parts = [name, *(f"{metric}_{bound:g}" for metric, bound in budget.items())]
    return re.sub(r"[^A-Za-z0-9_-]", "_", "_".join(parts)).lstrip("_-")


def show(tuned: "Tuned", budget: Mapping[str, float]) -> None:
    """Print a table of the file that was found beside the usual one, and how layers are stored."""
    from rich.table import Table

    table = Table(title=f"{counted(tuned.texts, 'text')}, {counted(tuned.found.steps, 'step')}")
    names = list(dict.fromkeys([*budget, "top1", "kl", "relative"]))
    for column in ("recipe", "MB", "smaller by", *names):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for name, measured in ((recipes.DEFAULT, tuned.widest), (tuned.recipe.name, tuned.found)):
        smaller = 1 - measured.size / tuned.widest.size
        figures = [f"{measured.figures[metric]:.4g}" for metric in names]
        table.add_row(name, f"{measured.size / 1e6:.2f}", f"{smaller:.1%}", *figures)
    output = console()
    output.print(table)
    for storage, count in Counter(tuned.storages.values()).most_common():
        words = recipes.STORAGES[storage].description
        output.print(
            f"{counted(count, 'layer')} in {words}{listed(tuned, storage)}", highlight=False
        )
    low, high = interval(tuned.found.figures["top1"], tuned.found.steps)
    output.print(
        f"{counted(tuned.files, 'file')} made and measured. Over unseen texts of the kind top1 is "
        f"{low:.4f} to {high:.4f} with 95 % confidence; more texts narrow that.",
        highlight=False,
    )


def interval(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share that was counted over so many.

    See E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference (1927).
    """
    squared = 1.96**2 / count
    centre = (share + squared / 2) / (1 + squared)
    half = math.sqrt(squared * share * (1 - share) + squared**2 / 4) / (1 + squared)
    return centre - half, centre + half


def listed(tuned: "Tuned", storage: str) -> str:
    """Return the layers of a storage, where it is not the usual one."""
    if tuned.recipe.layers[0][1] == storage:
        return ""
    return ": " + ", ".join(name for name, stored in tuned.storages.items() if stored == storage)
