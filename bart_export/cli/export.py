"""The export on the command line: options go in, a call of the journey and lines of text come out.

Which options a target takes is a table; those of another target are refused by name. Everything
heavy is imported when an export runs.
"""

import importlib.util
import os
import pathlib
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from bart_export.artifact import bundle
from bart_export.artifact.artifact import Artifact, check_replaceable
from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.errors import MissingExtra, lookup
from bart_export.export.options import (
    DTYPES,
    EdgeTpuOptions,
    Options,
    SavedModelOptions,
    TfliteOptions,
)
from bart_export.progress import stages
from bart_export.recipes import metrics, table

EXPORT_PACKAGES = {
    "tensorflow": "tensorflow",
    "keras": "keras",
    "ai_edge_quantizer": "ai-edge-quantizer",
    "h5py": "h5py",
    "safetensors": "safetensors",
}
ALL = "all"
SHAPES = ("dynamic", "static")
# Of a static build, where the command line does not say.
SOURCE_LENGTHS, TARGET_LENGTH, NUM_BEAMS = (128, 512), 128, (1, 4)
COUNT = click.IntRange(min=1)
Path = click.Path(path_type=pathlib.Path)


def counts(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """Return the numbers of at least 1 that are written with commas between them."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is no list of numbers of at least 1, as in 128,512.")
    return tuple(map(int, parts))


NUMBERS: dict[str, Any] = {"callback": counts, "metavar": "N,N,..."}

TOLERANCE = click.option(
    "--tolerance",
    "tolerances",
    multiple=True,
    metavar="NAME=VALUE",
    help="A bound to use instead of the recipe's; may be repeated. NAME is one of "
    f"{', '.join(metrics.METRICS)}.",
)
OPTIONS = (
    click.option(
        "--preset",
        help="What to export: a name of `bart-export presets`, a directory with a "
        "Keras preset or a Hugging Face checkpoint, hf://ORG/MODEL, or "
        "kaggle://ORG/MODEL/keras/VARIANT.",
    ),
    click.option(
        "--task",
        help="Use the generation settings of this task in the checkpoint's config.json "
        "(task_specific_params), for example summarization.",
    ),
    click.option(
        "--recipe",
        "recipe_names",
        multiple=True,
        metavar="RECIPE",
        help=f"How to store a .tflite file's weights; may be repeated. One of "
        f"{', '.join(table.RECIPES)}, a recipe file NAME.json, or {ALL}. "
        f"Default: {table.DEFAULT}.",
    ),
    click.option(
        "--shapes",
        type=click.Choice(SHAPES),
        help="dynamic, the default: the inputs of a .tflite file can be resized. static: they have "
        "the sizes of the following options, for GPUs, NPUs and Android.",
    ),
    click.option(
        "--android",
        type=Path,
        is_flag=False,
        flag_value=str(bundle.ASSETS),
        metavar="[DIRECTORY]",
        help="Also write a bundle for an Android app, with a static build of one recipe, to this "
        f"directory. Default, in a clone of bart-export: {bundle.ASSETS}. "
        "Implies --shapes static.",
    ),
    click.option(
        "--source-lengths",
        **NUMBERS,
        help="Source lengths of a static file in tokens, at most what the preset reads; default: "
        f"{','.join(map(str, SOURCE_LENGTHS))}. With --target edgetpu one number, the tokens per "
        f"call of a segment; default: {EdgeTpuOptions.source_length}.",
    ),
    click.option(
        "--target-length",
        type=COUNT,
        help=f"Maximum number of tokens that a static file generates. Default: {TARGET_LENGTH}.",
    ),
    click.option(
        "--num-beams",
        **NUMBERS,
        help="Numbers of beams. One for a SavedModel; default: the preset's. One or more for a "
        f"static file; default: {','.join(map(str, NUM_BEAMS))}.",
    ),
    click.option(
        "--calibration-data",
        type=Path,
        help='Texts to calibrate static recipes with: .jsonl, objects with a "text". '
        "Default: those of the preset.",
    ),
    click.option(
        "--data",
        type=Path,
        help='Texts to verify .tflite files with: .jsonl, objects with a "text" and optionally a '
        '"reference". Default: three texts of bart-export.',
    ),
    TOLERANCE,
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        help="How a SavedModel stores its matrices. Default: float32.",
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
        type=Path,
        help="The artifact directory. Default: artifacts/NAME-OF-THE-PRESET.",
    ),
)


def export_options(command: Any) -> Any:
    """Add the options of an export to a command."""
    target = click.option("--target", type=click.Choice(list(TARGETS)), help="What to make of it.")
    for option in reversed((OPTIONS[0], target, *OPTIONS[1:])):
        command = option(command)
    return command


def tflite_options(given: Mapping[str, Any]) -> TfliteOptions:
    """Return what the command line says about `.tflite` files."""
    chosen = chosen_recipes(given.get("recipe_names", ()))
    if "android" in given and len(chosen) > 1:
        names = ", ".join(recipe.name for recipe in chosen)
        raise click.UsageError(
            f"--android takes one recipe, for an app carries one model; received {names}."
        )
    return TfliteOptions(
        chosen,
        static_shapes(given),
        given.get("calibration_data"),
        given.get("data"),
        metrics.parse(given.get("tolerances", ())),
    )


def static_shapes(given: Mapping[str, Any]) -> StaticShapes | None:
    """Return the buckets of a static build, None for a dynamic one."""
    if "android" in given and given.get("shapes", "static") != "static":
        raise click.UsageError("--android needs --shapes static, which it implies.")
    if given.get("shapes") == "static" or "android" in given:
        return StaticShapes(
            given.get("source_lengths", SOURCE_LENGTHS),
            given.get("target_length", TARGET_LENGTH),
            given.get("num_beams", NUM_BEAMS),
        )
    for name in ("source_lengths", "target_length", "num_beams"):
        if name in given:
            raise click.UsageError(f"{flag(name)} needs --shapes static.")
    return None


def saved_model_options(given: Mapping[str, Any]) -> SavedModelOptions:
    """Return what the command line says about a SavedModel."""
    beams = given.get("num_beams")
    if beams is None:
        return SavedModelOptions(**given)
    if len(beams) > 1:
        raise click.UsageError("A SavedModel has one number of beams: give --num-beams one.")
    return SavedModelOptions(**{**given, "num_beams": beams[0]})


def edgetpu_options(given: Mapping[str, Any]) -> EdgeTpuOptions:
    """Return what the command line says about segments for the Edge TPU."""
    lengths = given.get("source_lengths", (EdgeTpuOptions.source_length,))
    if len(lengths) > 1:
        raise click.UsageError("Segments have one length: give --source-lengths one number.")
    return EdgeTpuOptions(
        lengths[0], given.get("calibration_data"), metrics.parse(given.get("tolerances", ()))
    )


# Target -> the options it takes beside --preset and --output, and what makes its options of them.
TARGETS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Options]]] = {
    "tflite": (
        (
            "recipe_names",
            "shapes",
            "android",
            "source_lengths",
            "target_length",
            "num_beams",
            "calibration_data",
            "data",
            "tolerances",
        ),
        tflite_options,
    ),
    "saved_model": (
        ("dtype", "num_beams", "num_return_sequences", "no_repeat_ngram_size"),
        saved_model_options,
    ),
    "edgetpu": (("source_lengths", "calibration_data", "tolerances"), edgetpu_options),
}
# Target -> how to try what was exported.
TRIES = {
    "tflite": 'generate {} "…"',
    "saved_model": "serve {}",
    "edgetpu": 'generate {} --engine edgetpu "…"',
}


def run(
    preset: str | None,
    target: str | None,
    output: pathlib.Path | None,
    task: str | None = None,
    **values: Any,
) -> None:
    """Export as the options of `OPTIONS` say."""
    if preset is None or target is None:
        missing = "--preset" if preset is None else "--target"
        raise click.UsageError(f"An export needs --preset and --target; {missing} is missing.")
    names, make_options = TARGETS[target]
    given = options_given(values)
    for name in given:
        if name not in names:
            owners = " and ".join(other for other, (owned, _) in TARGETS.items() if name in owned)
            raise click.UsageError(f"{flag(name)} belongs to --target {owners}, not to {target}.")
    options, output = make_options(given), output or default_output(preset)
    android = given.get("android")
    if android is not None:
        bundle.check(android, output)
    export_to(preset, target, options, output, android, task)


def options_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that were given, by the names of their parameters."""
    return {name: value for name, value in values.items() if value not in (None, ())}


def flag(name: str) -> str:
    """Return how an option is spelled."""
    spelled = {"recipe_names": "recipe", "tolerances": "tolerance"}.get(name, name)
    return f"--{spelled.replace('_', '-')}"


def chosen_recipes(names: Sequence[str]) -> tuple[table.Recipe, ...]:
    """Return the recipes of some names and files, each once."""
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
    """Run an export with progress, bundle it where that is asked, and say what was made."""
    from bart_export.checkpoints.resolve import resolve_preset
    from bart_export.cli import inspect
    from bart_export.quiet import native_stderr_silenced

    require_export_packages("Exporting")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    recipes = options.recipes if isinstance(options, TfliteOptions) else ()
    with stages(8 + 2 * len(recipes) + (android is not None) if recipes else 9) as stage:
        # What is wrong with an argument is said before TensorFlow takes its seconds to load.
        resolved = resolve_preset(preset, task, stage)
        check_early(options, resolved.defaults.generation, output)
        stage("load TensorFlow")
        with native_stderr_silenced():
            from bart_export.export.pipeline import export_resolved
        artifact = export_resolved(resolved, options, output, stage)
        if android is not None:
            stage("bundle it for Android")
            bundled = bundle.write(artifact, recipes[0].name, android)
    click.echo(f"Exported {preset} to {output}")
    for note in artifact.manifest.notes:
        click.echo(f"  {note}")
    rows = artifact.manifest.verification
    for row in rows:
        click.echo(f"  {inspect.summary(artifact, row)}")
    if any(row.tokens not in (None, 1.0) for row in rows):
        click.echo(
            textwrap.fill(
                inspect.ABOUT_EQUAL_TEXTS, 100, initial_indent="  ", subsequent_indent="  "
            )
        )
    click.echo(f"Try it: bart-export {TRIES[target].format(shlex.quote(str(output)))}")
    if android is not None:
        for line in bundle_lines(bundled):
            click.echo(line)


def check_early(options: Options, generation: GenerationConfig, output: pathlib.Path) -> None:
    """Refuse what the export itself would refuse, but only once TensorFlow is loaded.

    Raises:
        ArtifactError: for a place that cannot become an artifact.
        InputError: for texts that cannot be read.
        ConfigurationError: for settings that a SavedModel cannot have.
    """
    from bart_export.verify import data

    check_replaceable(pathlib.Path(os.path.realpath(output)))
    for name in ("data", "calibration_data"):
        if (path := getattr(options, name, None)) is not None:
            data.read(path)
    if isinstance(options, SavedModelOptions):
        options.settings(generation)


def bundle_lines(bundled: Artifact) -> Iterator[str]:
    """Yield the lines about a bundle: where it lies and what it takes, and a limit it is beyond."""
    size = bundle.size(bundled)
    use = (
        "Open android/ in Android Studio to build the app."
        if bundled.directory == bundle.ASSETS
        else "An app has it as assets/bart; android/README.md of bart-export says the rest."
    )
    yield (
        f"Bundle for Android: {bundled.directory}, {bundle.megabytes(size)}, and as much again on "
        f"the device, where the app unpacks it. {use}"
    )
    if (warning := bundle.warning(size)) is not None:
        yield warning


def require_export_packages(what: str) -> None:
    """Raise MissingExtra for the first package of the extra `export` that is not installed."""
    for module, package in EXPORT_PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(what, package, "export")


def default_output(preset: str) -> pathlib.Path:
    """Return where a preset's artifact goes: artifacts/ and the last part of its name."""
    parts = [part for part in preset.split("@")[0].split("/") if part not in ("", ".", "..")]
    if preset.startswith("kaggle://") and parts[-1].isdigit():
        parts.pop()
    name = parts[-1] if parts else pathlib.Path(preset).resolve().name
    return pathlib.Path("artifacts") / (name or "artifact")
