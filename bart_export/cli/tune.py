"""`bart-export tune`: the smallest file of a preset within a budget, and its recipe."""

import os
import pathlib
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from bart_export import cli
from bart_export.locations import last_name
from bart_export.progress import console, plural, stages, text_table
from bart_export.recipes import metrics
from bart_export.recipes import table as recipes

if TYPE_CHECKING:
    from bart_export.tune.tune import Tuned

STAGES = 16  # approximately, for a search over a hundred layers


@click.command()
@click.argument("preset", type=cli.PRESET)
@cli.bounds_option("--budget", "Bounds that the file must stay within.", required=True)
@cli.texts_option("--data", "measure with", "Default: the preset's.")
@click.option(
    "--output",
    type=cli.PATH,
    help="The recipe file to write. Default: PRESET_BUDGET.json.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing recipe file.")
def tune(
    preset: str,
    budget: Sequence[str],
    data: pathlib.Path | None,
    output: pathlib.Path | None,
    overwrite: bool,
) -> None:
    """Find the smallest dynamic file of a preset within a budget, and write its recipe.

    Layers that lose little in 4 bits are stored in 4 bits, and the others in 8. Each candidate is
    exported and run with LiteRT on the texts and the float file's greedy output. The exit code is
    1 if even dynamic_wi8_afp32 exceeds the budget.
    """
    from bart_export.checkpoints.resolve import ResolvedPreset
    from bart_export.cli import batch_files
    from bart_export.verify.data import read_texts

    bounds = metrics.parse_bounds(budget)
    path = output or pathlib.Path(f"{recipe_name(preset, bounds)}.json")
    recipes.require_name(path.stem)
    place = pathlib.Path(os.path.realpath(path)).parent
    if path.suffix != ".json" or not place.is_dir() or (path.exists() and not path.is_file()):
        raise click.UsageError(
            "A recipe file must be a regular file NAME.json in an existing directory, received "
            f"{path}. Choose another with --output."
        )
    batch_files.check_loss(path, data, overwrite)
    with batch_files.writing(path):
        tempfile.TemporaryFile(dir=place).close()  # fails now, not after minutes
    cli.require_packages("Tuning", cli.EXPORT_PACKAGES, "export")
    with stages(STAGES) as stage:
        # Check all arguments before TensorFlow is loaded, which takes seconds.
        resolved = ResolvedPreset(preset, stage=stage)
        texts = None if data is None else read_texts(data)
        with cli.loading_tensorflow(stage):
            from bart_export.tune.tune import tune as search
        tuned = search(resolved, path.stem, bounds, texts, stage)
    show(tuned, bounds)
    with batch_files.writing(path):
        recipes.write_recipe(path, tuned.recipe)
    click.echo(f"Wrote {path}. Try it:")
    option = f" --data {data}" if data else ""
    click.echo(f"  bart-export --preset {preset} --target tflite --recipe {path}{option}")


def recipe_name(preset: str, budget: Mapping[str, float]) -> str:
    """Return a name for the recipe: the last part of the preset's name, and the budget."""
    parts = [last_name(preset), *(f"{metric}_{bound:g}" for metric, bound in budget.items())]
    return re.sub(r"[^A-Za-z0-9_-]", "_", "_".join(parts)).lstrip("_-")


def show(tuned: "Tuned", budget: Mapping[str, float]) -> None:
    """Print a table of the default file and the tuned one, and the storage of the layers."""
    from bart_export.report.facts import share

    names = list(dict.fromkeys([*budget, "top1", "kl", "relative"]))
    lines = [
        (
            name,
            f"{measured.size / 1e6:.2f}",
            f"{1 - measured.size / tuned.widest.size:.1%}",
            *(f"{measured.figures[metric]:.4g}" for metric in names),
        )
        for name, measured in ((recipes.DEFAULT, tuned.widest), (tuned.recipe.name, tuned.found))
    ]
    title = f"{plural(tuned.texts, 'text')}, {plural(tuned.found.steps, 'step')}"
    output = console()
    output.print(text_table(title, ("recipe", "MB", "smaller by", *names), lines))
    for storage, count in Counter(tuned.storages.values()).most_common():
        layers = ""
        if storage != tuned.recipe.layers[0][1]:  # the default, for all other layers
            layers = ": " + ", ".join(
                name for name, stored in tuned.storages.items() if stored == storage
            )
        words = recipes.STORAGES[storage].description
        output.print(f"{plural(count, 'layer')} in {words}{layers}", highlight=False)
    top1 = share(tuned.found.figures["top1"], tuned.found.steps)
    assert top1 is not None
    output.print(
        f"{plural(tuned.files, 'file')} measured. On other texts of this kind, top1 is between "
        f"{top1.low:.4f} and {top1.high:.4f} with 95 % confidence; more texts narrow this.",
        highlight=False,
    )
