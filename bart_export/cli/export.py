"""`bart-export --preset … --target …`: an export, and the options of each target (`TARGETS`)."""

import dataclasses
import os
import pathlib
import shlex
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from bart_export import cli
from bart_export.artifact import ASSETS
from bart_export.cli import COUNT, PATH, Value, Values, flag, given_options
from bart_export.contract import StaticShapes
from bart_export.errors import lookup
from bart_export.export.options import (
    DTYPES,
    EdgeTpuOptions,
    Options,
    SavedModelOptions,
    TfliteOptions,
)
from bart_export.locations import last_name
from bart_export.progress import stages
from bart_export.recipes import metrics, table

if TYPE_CHECKING:
    from bart_export.artifact.artifact import Artifact
    from bart_export.verify.data import Texts

ALL = "all"
SHAPES = ("dynamic", "static")
# Defaults of a static build.
SOURCE_LENGTHS, TARGET_LENGTH, NUM_BEAMS = (128, 512), 128, (1, 4)


@dataclasses.dataclass(frozen=True)
class Target:
    """A target: how to make its `Options`, the flags it takes, and a command to try it."""

    make: Callable[[Values], Options]
    takes: tuple[str, ...]
    trial: str


def tflite_options(values: Values) -> TfliteOptions:
    """Return the options of a TFLite export."""
    recipes = chosen_recipes(values.get("recipes", ()))
    if "android" in values and len(recipes) > 1:
        names = ", ".join(recipe.name for recipe in recipes)
        raise click.UsageError(
            f"--android takes one recipe, because an app carries one model; received {names}."
        )
    return TfliteOptions(
        recipes,
        static_shapes(values),
        given_texts(values, "calibration_data"),
        given_texts(values, "data"),
        metrics.parse_bounds(values.get("tolerance", ())),
    )


def static_shapes(values: Values) -> StaticShapes | None:
    """Return the buckets of a static build, or None for a dynamic one."""
    shapes = values.get("shapes", "static" if "android" in values else "dynamic")
    if "android" in values and shapes != "static":
        raise click.UsageError("--android cannot be combined with --shapes dynamic.")
    if shapes == "static":
        return StaticShapes(
            values.get("source_lengths", SOURCE_LENGTHS),
            values.get("target_length", TARGET_LENGTH),
            values.get("num_beams", NUM_BEAMS),
            sources=values.get("sources", (1,)),
        )
    for name in ("source_lengths", "target_length", "num_beams", "sources"):
        if name in values:
            raise click.UsageError(f"{flag(name)} needs --shapes static.")
    return None


def saved_model_options(values: Values) -> SavedModelOptions:
    """Return the options of a SavedModel export."""
    beams = values.get("num_beams", (None,))
    if len(beams) > 1:
        raise click.UsageError(
            "A SavedModel has a fixed number of beams: give --num-beams a single value."
        )
    return SavedModelOptions(**{**values, "num_beams": beams[0]})


def edgetpu_options(values: Values) -> EdgeTpuOptions:
    """Return the options of an export for the Edge TPU."""
    lengths = values.get("source_lengths", (EdgeTpuOptions.source_length,))
    if len(lengths) > 1:
        raise click.UsageError(
            "Segments have a fixed length: give --source-lengths a single value."
        )
    bounds = metrics.parse_bounds(values.get("tolerance", ()))
    return EdgeTpuOptions(lengths[0], given_texts(values, "calibration_data"), bounds)


def given_texts(values: Values, name: str) -> "Texts | None":
    """Return the texts in the file of a parameter, or None if it was not given."""
    from bart_export.verify.data import read_texts

    return read_texts(values[name]) if name in values else None


TARGETS = {
    "tflite": Target(
        tflite_options,
        (
            "recipes", "shapes", "android", "source_lengths", "target_length", "num_beams",
            "sources", "calibration_data", "data", "tolerance",
        ),
        'generate {} "…"',
    ),
    "saved_model": Target(
        saved_model_options,
        ("dtype", "num_beams", "num_return_sequences", "no_repeat_ngram_size"),
        "serve {}",
    ),
    "edgetpu": Target(
        edgetpu_options,
        ("source_lengths", "calibration_data", "tolerance"),
        'generate {} --engine edgetpu "…"',
    ),
}  # fmt: skip
export_options = cli.combined(
    click.option(
        "--preset",
        type=cli.PRESET,
        help="The model: a name from `bart-export presets`, a directory with a Keras preset or a "
        "Hugging Face checkpoint, hf://ORG/MODEL, or kaggle://ORG/MODEL/keras/VARIANT.",
    ),
    click.option("--target", type=click.Choice(list(TARGETS)), help="Format to export to."),
    click.option(
        "--task",
        help="Use the generation settings of this task in the checkpoint's config.json "
        "(task_specific_params), for example summarization.",
    ),
    cli.list_option(
        "--recipe",
        "recipes",
        kind=cli.Known("recipe", (*table.RECIPES, ALL)),
        metavar="RECIPE,...",
        help="How to store the weights of a .tflite file; one file per recipe: "
        f"{', '.join(table.RECIPES)}, a recipe file NAME.json, or {ALL}. "
        f"Default: {table.DEFAULT}.",
    ),
    click.option(
        "--shapes",
        type=click.Choice(SHAPES),
        help="dynamic, the default: the inputs of a .tflite file can be resized. static: their "
        "sizes are fixed by the following options, for GPUs, NPUs and Android.",
    ),
    click.option(
        "--android",
        type=PATH,
        is_flag=False,
        flag_value=str(ASSETS),
        metavar="[DIRECTORY]",
        help="Also write a bundle for an Android app, with a static build of one recipe, to this "
        f"directory. Default, in a clone of bart-export: {ASSETS}. Implies --shapes static.",
    ),
    cli.list_option(
        "--source-lengths",
        kind=COUNT,
        metavar="N,...",
        help="Source lengths of a static file in tokens; those above the preset's limit are "
        f"lowered to it. Default: {','.join(map(str, SOURCE_LENGTHS))}. With --target edgetpu a "
        f"single value, the tokens per call of a segment; default: {EdgeTpuOptions.source_length}.",
    ),
    click.option(
        "--target-length",
        type=COUNT,
        help=f"Maximum number of tokens that a static file generates. Default: {TARGET_LENGTH}.",
    ),
    cli.list_option(
        "--num-beams",
        kind=COUNT,
        metavar="N,...",
        help="Numbers of beams: one for a SavedModel, default: the preset's; one or more for a "
        f"static file, default: {','.join(map(str, NUM_BEAMS))}.",
    ),
    cli.list_option(
        "--sources",
        kind=COUNT,
        metavar="N,...",
        help="Numbers of source texts that a static file decodes together, in addition to 1.",
    ),
    cli.texts_option(
        "--calibration-data",
        "calibrate static recipes with",
        "Default: the preset's.",
        references=False,
    ),
    cli.texts_option("--data", "verify .tflite files with", "Default: three built-in texts."),
    cli.TOLERANCE,
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        help="Data type of a SavedModel's matrices. Default: float32.",
    ),
    click.option(
        "--num-return-sequences",
        type=COUNT,
        help="Number of texts that a SavedModel returns for each source. Default: the preset's.",
    ),
    click.option(
        "--no-repeat-ngram-size",
        type=click.IntRange(min=0),
        help="A SavedModel never generates an n-gram of this size twice; 0 for no limit. "
        "Default: the preset's.",
    ),
    click.option(
        "--output",
        type=PATH,
        help="The artifact directory. Default: artifacts/NAME-OF-THE-PRESET.",
    ),
)


def run(
    preset: str | None,
    target: str | None,
    output: pathlib.Path | None,
    task: str | None = None,
    **values: Value,
) -> None:
    """Export with the values of `export_options`."""
    if preset is None or target is None:
        missing = "--preset" if preset is None else "--target"
        raise click.UsageError(f"An export needs --preset and --target; {missing} is missing.")
    given = given_options(values)
    for name in given:
        if name not in TARGETS[target].takes:
            owners = " and ".join(other for other, row in TARGETS.items() if name in row.takes)
            raise click.UsageError(f"{flag(name)} applies to --target {owners}, not to {target}.")
    with cli.errors_in_flags():
        options, output = TARGETS[target].make(given), output or default_output(preset)
    android = given.get("android")
    if android is not None:
        from bart_export.artifact import bundle

        bundle.check_target(android, output)
    export_to(preset, target, options, output, android, task)


def chosen_recipes(names: Sequence[str]) -> tuple[table.Recipe, ...]:
    """Return the recipes with these names or files, without duplicates."""
    if ALL in names:
        files = [name for name in names if name.endswith(".json")]
        names = [*table.RECIPES, *files]
    return tuple(
        table.read_recipe(pathlib.Path(name))
        if name.endswith(".json")
        else lookup("A recipe", name, table.RECIPES, ", or a file NAME.json")
        for name in dict.fromkeys(names or (table.DEFAULT,))
    )


def export_to(
    preset: str,
    target: str,
    options: Options,
    output: pathlib.Path,
    android: pathlib.Path | None = None,
    task: str | None = None,
) -> None:
    """Run an export with progress, write the Android bundle if requested, and print a summary."""
    from bart_export.artifact import bundle
    from bart_export.artifact.drafts import check_replaceable
    from bart_export.checkpoints.resolve import ResolvedPreset
    from bart_export.cli import inspect

    cli.require_packages("Exporting", cli.EXPORT_PACKAGES, "export")
    recipes = options.recipes if isinstance(options, TfliteOptions) else ()
    with stages(8 + 2 * len(recipes) + (android is not None) if recipes else 9) as stage:
        # Check all arguments before TensorFlow is loaded, which takes seconds.
        resolved = ResolvedPreset(preset, task, stage)
        check_replaceable(pathlib.Path(os.path.realpath(output)))
        if isinstance(options, SavedModelOptions):
            with cli.errors_in_flags():
                options.settings(resolved.defaults.generation)
        with cli.loading_tensorflow(stage):
            from bart_export.export.pipeline import export
        with cli.errors_in_flags():
            artifact = export(resolved, options, output, stage)
        if android is not None:
            stage("write the Android bundle")
            bundled = bundle.write(artifact, recipes[0].name, android)
    click.echo(f"Exported {preset} to {output}")
    for note in artifact.manifest.notes:
        click.echo(f"  {note}")
    rows = artifact.manifest.verification
    for row in rows:
        click.echo(f"  {inspect.summary(artifact, row)}")
    if any(row.tokens not in (None, 1.0) for row in rows):
        click.echo(textwrap.indent(textwrap.fill(inspect.ABOUT_EQUAL_TEXTS, 98), "  "))
    trial = TARGETS[target].trial.format(shlex.quote(str(output)))
    click.echo(f"Try it: bart-export {trial}")
    if android is not None:
        for line in bundle_lines(bundled):
            click.echo(line)


def bundle_lines(bundled: "Artifact") -> Iterator[str]:
    """Yield the location and size of a bundle, and a warning if it exceeds a limit."""
    from bart_export.artifact import bundle

    size = bundle.size(bundled)
    use = (
        "Open android/ in Android Studio to build the app."
        if bundled.directory == ASSETS
        else "An app needs it as assets/bart; see android/README.md in bart-export."
    )
    yield (
        f"Bundle for Android: {bundled.directory}, {bundle.megabytes(size)}, and as much again on "
        f"the device, where the app unpacks it. {use}"
    )
    if (warning := bundle.warning(size)) is not None:
        yield warning


def default_output(preset: str) -> pathlib.Path:
    """Return the default output: artifacts/ and the last part of the preset's name."""
    return pathlib.Path("artifacts") / (last_name(preset) or "artifact")
