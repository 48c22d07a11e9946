"""The command line: arguments go in, calls of the rooms behind it and lines of text come out.

`bart-export --preset … --target …` exports; the other commands are sub-commands. Everything heavy
is imported by the command that needs it, so that `--help` is quick and `generate` runs where there
is no TensorFlow. An error of the family is one line on standard error and its exit code.
"""

import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import click

from bart_export import __version__, recipes
from bart_export.artifact import Artifact
from bart_export.bench_command import bench
from bart_export.errors import BartExportError, MissingExtra
from bart_export.generate_command import generate
from bart_export.progress import stages
from bart_export.saved_model_options import DTYPES, SavedModelOptions
from bart_export.serve_command import serve

EXPORT_PACKAGES = {
    "tensorflow": "tensorflow",
    "keras": "keras",
    "ai_edge_quantizer": "ai-edge-quantizer",
    "h5py": "h5py",
    "safetensors": "safetensors",
}
ALL = "all"
# What each target's export takes beside --preset and --output.
TARGETS = {
    "tflite": ("recipe_names",),
    "saved_model": ("dtype", "num_beams", "num_return_sequences", "no_repeat_ngram_size"),
}
COUNT = click.IntRange(min=1)
Path = click.Path(path_type=pathlib.Path)


class Commands(click.Group):
    """A click group whose errors are the package's: one line, and the error's exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BartExportError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
@click.option(
    "--preset",
    help="What to export: a name of `bart-export presets`, a directory with a "
    "Keras preset or a Hugging Face checkpoint, hf://ORG/MODEL, or "
    "kaggle://ORG/MODEL/keras/VARIANT.",
)
@click.option("--target", type=click.Choice(list(TARGETS)), help="What to make of it.")
@click.option(
    "--recipe",
    "recipe_names",
    multiple=True,
    metavar="RECIPE",
    help=f"How to store a .tflite file's weights; may be given more than once. One of "
    f"{', '.join(recipes.RECIPES)}, or {ALL}. Default: {recipes.DEFAULT}.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="How a SavedModel stores its matrices. Default: float32.",
)
@click.option("--num-beams", type=COUNT, help="A SavedModel's beams. Default: the preset's.")
@click.option(
    "--num-return-sequences",
    type=COUNT,
    help="Texts a SavedModel returns for each source. Default: the preset's.",
)
@click.option(
    "--no-repeat-ngram-size",
    type=click.IntRange(min=0),
    help="No sequence of so many tokens occurs twice in a SavedModel's text; 0 for none. "
    "Default: the preset's.",
)
@click.option(
    "--output", type=Path, help="The artifact directory. Default: artifacts/NAME-OF-THE-PRESET."
)
@click.pass_context
def main(
    context: click.Context,
    /,
    preset: str | None,
    target: str | None,
    output: pathlib.Path | None,
    **given: Any,
) -> None:
    """Export a BART checkpoint to run somewhere else, and prove that it still says the same.

    \b
    Export the embedded preset, then write a headline with it:
      bart-export --preset bart_mini_en --target tflite
      bart-export generate artifacts/bart_mini_en "A long description of some software ..."

    Every exported file is compared with the Keras model before anything is written in place; a file
    that differs more than its recipe allows ends the export with exit code 1.
    """
    if context.invoked_subcommand is not None:
        for name in options_given(context.params):
            raise click.UsageError(
                f"{flag(name)} belongs to the export, not to {context.invoked_subcommand}."
            )
        return
    if preset is None and target is None:
        click.echo(context.get_help())
        return
    if preset is None or target is None:
        missing = "--preset" if preset is None else "--target"
        raise click.UsageError(f"An export needs --preset and --target; {missing} is missing.")
    for name in options_given(given):
        if name not in TARGETS[target]:
            owner = next(other for other, names in TARGETS.items() if name in names)
            raise click.UsageError(f"{flag(name)} belongs to --target {owner}, not to {target}.")
    names = given.pop("recipe_names")
    if target == "tflite":
        options: Any = chosen_recipes(names)
    else:
        options = SavedModelOptions(**options_given(given))
    export_to(preset, target, options, output or default_output(preset))


def options_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that were given, by the names of their parameters."""
    return {name: value for name, value in values.items() if value not in (None, ())}


def flag(name: str) -> str:
    """Return how an option is spelled."""
    return f"--{name.removesuffix('_names').replace('_', '-')}"


def chosen_recipes(names: Sequence[str]) -> list[recipes.Recipe]:
    """Return the recipes of some names, each once."""
    if ALL in names:
        names = list(recipes.RECIPES)
    return [recipes.named(name) for name in dict.fromkeys(names or (recipes.DEFAULT,))]


def export_to(preset: str, target: str, options: Any, output: pathlib.Path) -> None:
    """Run an export with progress and say what was made."""
    from bart_export.quiet import native_stderr_silenced

    require_export_packages("Exporting")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with stages(9 if target == "saved_model" else 7 + 2 * len(options)) as stage:
        stage("load TensorFlow")
        with native_stderr_silenced():
            from bart_export.export import export
        artifact = export(preset, target, options, output, stage)
    click.echo(f"Exported {preset} to {output}")
    for row in artifact.manifest["verification"]:
        click.echo(f"  {summary(artifact, row)}")
    command = "generate" if target == "tflite" else "serve"
    click.echo(f"Try it: bart-export {command} {output}" + (' "…"' if target == "tflite" else ""))


def summary(artifact: Artifact, row: Mapping[str, Any]) -> str:
    """Return a line about something that was exported: its size, and how far it is from Keras."""
    files, name = artifact.manifest["files"], row["file"]
    if name in files:
        size, count = files[name]["bytes"], artifact.manifest["parameter_count"]
        return (
            f"{name}: {size / 1e6:.1f} MB, {size / count:.3f} bytes a parameter; against Keras: "
            f"logits within {row['logits']:.2g}, likeliest token the same in {row['top1']:.1%} of "
            f"{row['steps']} steps, {row['tokens']:.0%} of {row['questions']} texts equal"
        )
    size = sum(entry["bytes"] for file, entry in files.items() if file.startswith(f"{name}/"))
    return (
        f"{name}: {size / 1e6:.1f} MB; against Keras: log-probabilities within "
        f"{row['log_probabilities']:.2g} over {row['steps']} steps, {row['tokens']:.0%} of "
        f"{row['questions']} texts equal"
    )


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


@main.command()
@click.argument("artifact", type=Path)
def verify(artifact: pathlib.Path) -> None:
    """Check an artifact: every file's hash, and its golden answers on this machine's runtime.

    TensorFlow is not needed. Exit code 1 if a file answers otherwise than it did when exported.
    """
    from bart_export.quality.replay import replay
    from bart_export.runtime.generator import Generator

    opened = Artifact.open(artifact)
    entries = opened.manifest["files"]
    for row in replay(
        opened, lambda name: Generator.from_artifact(artifact, recipe=entries[name]["recipe"])
    ):
        click.echo(f"{row.file}: {row.equal} of {row.asked} golden answers given again")
    click.echo(f"{artifact} is whole: {len(entries)} files are what the manifest says")


@main.command()
def presets() -> None:
    """List the presets that have a name."""
    from bart_export.presets import PRESETS

    for preset in PRESETS.values():
        click.echo(f"{preset.name}  ({preset.parameters / 1e6:.1f} M parameters)")
        click.echo(f"    {preset.description}")
        click.echo(f"    {'embedded in this package' if preset.directory else preset.handle}")


@main.command()
@click.argument("preset_or_artifact")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(preset_or_artifact: str, as_json: bool) -> None:
    """Show what a preset or an artifact holds: configuration, parameters, signatures, files."""
    from bart_export.inspection import artifact_facts, preset_facts

    path = pathlib.Path(preset_or_artifact)
    artifact = (path / "manifest.json").is_file()
    facts = artifact_facts(path) if artifact else preset_facts(preset_or_artifact)
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False, indent=1))
        return
    for title, content in facts.items():
        click.echo(title)
        for name, value in content.items():
            click.echo(f"  {name}: {value}")


for command in (generate, bench, serve):
    main.add_command(command)
