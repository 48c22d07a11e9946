"""The command line: arguments go in, calls of the rooms behind it and lines of text come out.

`bart-export --preset … --target …` exports; the other commands are sub-commands. Everything heavy
is imported by the command that needs it, so that `--help` is quick and `generate` runs where there
is no TensorFlow. An error of the family is one line on standard error and its exit code.
"""

import importlib.util
import json
import os
import pathlib
import sys
from typing import Any

import click

from bart_export import __version__, recipes
from bart_export.errors import BartExportError, InputError, MissingExtra
from bart_export.progress import stages

EXPORT_PACKAGES = {
    "tensorflow": "tensorflow",
    "keras": "keras",
    "ai_edge_quantizer": "ai-edge-quantizer",
    "h5py": "h5py",
    "safetensors": "safetensors",
}
TARGETS = ("tflite",)
ALL = "all"
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
@click.option("--target", type=click.Choice(TARGETS), help="What to make of it.")
@click.option(
    "--recipe",
    "recipe_names",
    multiple=True,
    metavar="RECIPE",
    help=f"How to store the weights; may be given more than once. One of "
    f"{', '.join(recipes.RECIPES)}, or {ALL}. Default: {recipes.DEFAULT}.",
)
@click.option(
    "--output", type=Path, help="The artifact directory. Default: artifacts/NAME-OF-THE-PRESET."
)
@click.pass_context
def main(
    context: click.Context,
    preset: str | None,
    target: str | None,
    recipe_names: tuple[str, ...],
    output: pathlib.Path | None,
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
        given = [name for name, value in context.params.items() if value]
        if given:
            raise click.UsageError(
                f"--{given[0].removesuffix('_names')} belongs to the export, not to "
                f"{context.invoked_subcommand}."
            )
        return
    if preset is None and target is None:
        click.echo(context.get_help())
        return
    if preset is None or target is None:
        missing = "--preset" if preset is None else "--target"
        raise click.UsageError(f"An export needs --preset and --target; {missing} is missing.")
    chosen = [recipes.named(name) for name in recipe_names if name != ALL]
    if ALL in recipe_names:
        chosen = list(recipes.RECIPES.values())
    elif not chosen:
        chosen = [recipes.named(recipes.DEFAULT)]
    export_to(
        preset,
        target,
        list({recipe.name: recipe for recipe in chosen}.values()),
        output or default_output(preset),
    )


def export_to(preset: str, target: str, chosen: list[recipes.Recipe], output: pathlib.Path) -> None:
    """Run an export with progress and say what was made."""
    from bart_export.quiet import native_stderr_silenced

    require_export_packages("Exporting")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with stages(7 + 2 * len(chosen)) as stage:
        stage("load TensorFlow")
        with native_stderr_silenced():
            from bart_export.export import export
        artifact = export(preset, target, chosen, output, stage)
    click.echo(f"Exported {preset} to {output}")
    count = artifact.manifest["parameter_count"]
    for row in artifact.manifest["verification"]:
        size = artifact.manifest["files"][row["file"]]["bytes"]
        click.echo(
            f"  {row['file']}: {size / 1e6:.1f} MB, {size / count:.3f} bytes a parameter; against "
            f"Keras: logits within {row['logits']:.2g}, likeliest token the same in "
            f"{row['top1']:.1%} of {row['steps']} steps, {row['tokens']:.0%} of "
            f"{row['questions']} texts equal"
        )
    click.echo(f'Try it: bart-export generate {output} "…"')


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


def generation_options(command: Any) -> Any:
    """Add an option for every generation parameter a call may set."""
    for name, kind, text in reversed(GENERATION_OPTIONS):
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            option = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
        else:
            option = click.option(flag, name, type=kind, default=None, help=text)
        command = option(command)
    return command


GENERATION_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("max_length", int, "Most tokens to generate, the start token included."),
    ("min_length", int, "Fewest tokens before the end token."),
    ("num_beams", int, "Sequences that beam search keeps; 1 is greedy."),
    ("num_return_sequences", int, "Texts to return for each source."),
    ("length_penalty", float, "Exponent of the length that a beam's score is divided by."),
    ("early_stopping", click.Choice(["true", "false", "never"]), "When beam search ends."),
    ("no_repeat_ngram_size", int, "No sequence of so many tokens may occur twice."),
    ("repetition_penalty", float, "Above 1 makes tokens that occurred less likely."),
    ("do_sample", bool, "Draw tokens at random instead of taking the likeliest."),
    ("temperature", float, "Below 1 makes likely tokens likelier when sampling."),
    ("top_k", int, "Sample among so many likeliest tokens; 0 for all."),
    ("top_p", float, "Sample among the likeliest tokens that make up this probability."),
    ("seed", int, "Makes sampling repeat itself."),
)
EARLY_STOPPING = {"true": True, "false": False, "never": "never"}


@main.command()
@click.argument("artifact", type=Path)
@click.argument("text", required=False)
@click.option(
    "--input",
    "input_file",
    type=Path,
    help='Texts to read: .txt, one a line, or .jsonl, objects with a "text".',
)
@click.option(
    "--output",
    "output_file",
    type=Path,
    help='Where to write results as .jsonl: each object read, with "generated_text", '
    '"score" and "token_ids".',
)
@click.option("--stream", is_flag=True, help="Print the text as it is generated.")
@click.option("--truncate", is_flag=True, help="Cut texts that are too long at their end.")
@click.option("--recipe", metavar="RECIPE", help="Which of the artifact's files to run.")
@click.option(
    "--engine",
    metavar="ENGINE",
    help="Which runtime to use, where several are installed: ai-edge-litert or tflite-runtime.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to use. Default: all cores.")
@generation_options
def generate(
    artifact: pathlib.Path,
    text: str | None,
    input_file: pathlib.Path | None,
    output_file: pathlib.Path | None,
    stream: bool,
    truncate: bool,
    recipe: str | None,
    engine: str | None,
    threads: int | None,
    **given: Any,
) -> None:
    """Generate from TEXT, from each text of a file, or from standard input.

    Settings that are not given are those of the artifact. TensorFlow is not needed.

    \b
      bart-export generate artifacts/bart_mini_en "A text ..." --stream
      bart-export generate artifacts/bart_mini_en --input texts.txt --output headlines.jsonl
    """
    from bart_export.runtime import Generator, texts

    if (text is not None) + (input_file is not None) > 1:
        raise click.UsageError("Give either TEXT or --input, not both.")
    if stream and (input_file or output_file):
        raise click.UsageError("--stream prints one text; it takes no --input and no --output.")
    parameters = {name: value for name, value in given.items() if value is not None}
    if "early_stopping" in parameters:
        parameters["early_stopping"] = EARLY_STOPPING[parameters["early_stopping"]]
    if text is None and input_file is None and sys.stdin.isatty():
        raise click.UsageError("Give a TEXT, --input FILE, or a text on standard input.")
    if input_file is not None:
        rows = texts.read(input_file)
    else:
        rows = [{"text": text if text is not None else sys.stdin.read().strip()}]
    generator = Generator.from_artifact(artifact, recipe=recipe, engine=engine, num_threads=threads)
    if stream:
        for piece in generator.stream(rows[0]["text"], truncate=truncate, **parameters):
            click.echo(piece, nl=False)
        click.echo()
        return
    with stages(len(rows)) as stage, texts.results(output_file) as file:
        for number, row in enumerate(rows, 1):
            stage(f"text {number}")
            try:
                result = generator.generate(row["text"], truncate=truncate, **parameters)
            except InputError as error:
                place = f"Text {number} of {input_file}: " if input_file else ""
                raise InputError(f"{place}{error}") from error
            for sequence in result.sequences:
                if file is None:
                    click.echo(sequence.text)
                else:
                    file.write(texts.line(row, sequence))


@main.command()
@click.argument("artifact", type=Path)
def verify(artifact: pathlib.Path) -> None:
    """Check an artifact: every file's hash, and its golden answers on this machine's runtime.

    TensorFlow is not needed. Exit code 1 if a file answers otherwise than it did when exported.
    """
    from bart_export.artifact import Artifact
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


@main.command()
@click.argument("artifact", type=Path)
@click.option(
    "--recipe",
    "recipe_names",
    multiple=True,
    metavar="RECIPE",
    help="Which files to measure; may be given more than once. Default: all.",
)
@click.option(
    "--source",
    "sources",
    type=click.IntRange(min=1),
    multiple=True,
    default=(64, 512),
    show_default=True,
    help="Source tokens; may be given more than once.",
)
@click.option(
    "--num-beams",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 4),
    show_default=True,
    help="Beams; may be given more than once.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Tokens to generate.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="Runs that the medians are of.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to use. Default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench(
    artifact: pathlib.Path,
    recipe_names: tuple[str, ...],
    sources: tuple[int, ...],
    num_beams: tuple[int, ...],
    new_tokens: int,
    runs: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure an artifact here: sizes, opening, memory, encoding, decoding, tokens per second.

    Configurations take turns, figures are medians; compare them within one run only.
    """
    from bart_export.quality import bench as benchmark

    report = benchmark.bench(
        artifact,
        recipes=recipe_names or None,
        sources=sources,
        new_tokens=new_tokens,
        num_beams=num_beams,
        num_threads=threads,
        runs=runs,
    )
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=1))
        return
    from rich.console import Console

    Console().print(benchmark.tables(report))
