"""`bart-export generate`: texts go in from the command line or a file, what is generated comes out.

Runs where there is no TensorFlow. Everything heavy is imported when the command runs.
"""

import pathlib
import sys
from typing import Any

import click

from bart_export.errors import InputError
from bart_export.progress import stages

Path = click.Path(path_type=pathlib.Path)


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
    ("max_new_tokens", int, "The same without the start token."),
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


@click.command()
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
    help="Which runtime to use, where several are installed: ai-edge-litert or tflite-runtime; or "
    "edgetpu, for an export of that target.",
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
    if notice := getattr(generator.engine, "notice", ""):
        click.echo(notice, err=True)
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
