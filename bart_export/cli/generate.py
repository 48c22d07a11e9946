"""`bart-export generate`, which does not need TensorFlow."""

import contextlib
import itertools
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import click

from bart_export import cli
from bart_export.cli import Value
from bart_export.config import MAX_BATCH_SIZE, TEXT_OPTIONS
from bart_export.errors import BartExportError
from bart_export.locations import Location
from bart_export.progress import plural, print_text, texts_bar
from bart_export.recipes.table import LITERT

if TYPE_CHECKING:
    from bart_export.cli.batch_files import Kept
    from bart_export.runtime import Generator
    from bart_export.runtime.results import Row


GENERATION_OPTIONS: tuple[tuple[str, Value, str], ...] = (
    ("max_length", int, "Maximum number of tokens, including the start token."),
    ("max_new_tokens", int, "Maximum number of tokens, without the start token."),
    ("min_length", int, "Minimum number of tokens before the end token."),
    ("num_beams", int, "Number of beams; 1 is greedy search."),
    ("num_return_sequences", int, "Number of texts to return for each source."),
    ("length_penalty", float, "Beam scores are divided by the length to this power."),
    ("early_stopping", click.Choice(["true", "false", "never"]), "When beam search stops."),
    ("no_repeat_ngram_size", int, "Never repeat an n-gram of this size; 0 for no limit."),
    ("repetition_penalty", float, "Values above 1 make repeated tokens less likely."),
    ("do_sample", bool, "Sample tokens instead of choosing the most likely one."),
    ("temperature", float, "Values below 1 make sampling prefer likely tokens."),
    ("top_k", int, "Sample from this many most likely tokens; 0 for all."),
    ("top_p", float, "Sample from the most likely tokens with this total probability."),
    ("seed", int, "Random seed, for reproducible samples."),
    ("prompt_lookup_num_tokens", int, "Greedy search drafts up to this many tokens; 0 for none."),
)
EARLY_STOPPING = {"true": True, "false": False, "never": "never"}
NAMES = (*(name for name, _, _ in GENERATION_OPTIONS), *TEXT_OPTIONS)


def generation_option(name: str, kind: Value, text: str) -> cli.Decorator:
    """Return the option of a generation parameter."""
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    return click.option(flag, name, type=kind, help=text)


@click.command()
@click.argument("artifact", type=cli.ARTIFACT)
@click.argument("text", required=False)
@click.option(
    "--input",
    "input_file",
    type=cli.PATH,
    help='Texts to read: .txt with a text per line, or .jsonl or .ndjson with a "text" per object; '
    "- is standard input.",
)
@click.option(
    "--output",
    "output_file",
    type=cli.PATH,
    help="Where to write results: .jsonl or .ndjson; - is standard output. A result is the input "
    'object with "generated_text", "score" and "token_ids" (and "truncated"), or with "error".',
)
@click.option("--overwrite", is_flag=True, help="Replace an --output file that is not empty.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue an interrupted --output: keep its complete rows and append the rest. "
    "Use the same --input, which must be a file, and the same settings.",
)
@click.option("--stream", is_flag=True, help="Print the text as it is generated.")
@click.option("--truncate", is_flag=True, help="Truncate texts that are too long, and report it.")
@click.option(
    "--allow-empty", is_flag=True, help="Accept empty texts; the model makes up a result."
)
@click.option(
    "--special-tokens",
    is_flag=True,
    help="Treat <mask>, <s>, </s>, <pad> and <unk> in a text as tokens.",
)
@click.option("--recipe", type=cli.RECIPE, help="The recipe of the file to run.")
@click.option(
    "--engine",
    type=cli.EngineName("litert", "tflite-runtime", "edgetpu"),
    help="Engine to generate with. Default: litert, or tflite-runtime if litert is not installed. "
    "edgetpu needs an export with --target edgetpu.",
)
@click.option(
    "--threads",
    type=cli.THREADS,
    help="Number of threads. Default: 1 for a small model, all cores for a larger one.",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(1, 256),
    help="Maximum number of beams, over all texts, decoded together with --input. "
    f"Default: {MAX_BATCH_SIZE}.",
)
@cli.combined(*(generation_option(*row) for row in GENERATION_OPTIONS))
@click.pass_context
def generate(
    context: click.Context,
    /,
    artifact: Location,
    text: str | None,
    input_file: pathlib.Path | None,
    output_file: pathlib.Path | None,
    overwrite: bool,
    resume: bool,
    stream: bool,
    recipe: str | None,
    engine: str | None,
    threads: int | None,
    max_batch_size: int | None,
    **options: Value,
) -> None:
    """Generate from TEXT, from each text of a file, or from standard input as one text.

    Omitted settings default to the artifact's. TensorFlow is not needed.

    With --input, every input line has a result in the same position. The result of a line that
    cannot be processed is an error, and the exit code is then 1. Texts of similar length are
    decoded together, in windows of 256 lines, and results are written in the order of the input.
    Without --output, a line is printed for each text, and an empty line for an error.

    After Ctrl-C (exit code 130), or if the process is killed, --resume completes the --output. It
    is then byte for byte what an uninterrupted run writes, provided that the model and all settings
    are the same: rows do not record them.

    \b
      bart-export generate artifacts/bart_mini_en "A text ..." --stream
      bart-export generate artifacts/bart_mini_en --input texts.txt --output headlines.jsonl
      zcat texts.jsonl.gz | bart-export generate artifacts/bart_mini_en --input - --output -
    """
    from bart_export.cli import batch_files
    from bart_export.runtime import Generator

    if text is not None and input_file is not None:
        raise click.UsageError("Give either TEXT or --input, not both.")
    if stream and (input_file or output_file):
        raise click.UsageError(
            "--stream prints one text; it cannot be combined with --input or --output."
        )
    if text is None and input_file is None and sys.stdin.isatty():
        raise click.UsageError("Give a TEXT, --input FILE, or a text on standard input.")
    if overwrite and output_file is None:
        raise click.UsageError("--overwrite needs an --output.")
    if resume:
        check_resume(input_file, output_file, overwrite)
    if max_batch_size is not None and input_file is None:
        raise click.UsageError("--max-batch-size needs an --input.")
    source = input_file or (pathlib.Path(batch_files.STANDARD) if text is None else None)
    batch_files.check_output(output_file, source, overwrite or resume)
    flags = {name: options.pop(name) for name in TEXT_OPTIONS}
    parameters = {name: value for name, value in options.items() if value is not None}
    if "early_stopping" in parameters:
        parameters["early_stopping"] = EARLY_STOPPING[parameters["early_stopping"]]
    kept, windows = batch_files.NOTHING, None
    if input_file is not None:
        windows = batch_files.windows(batch_files.read_rows(input_file), input_file)
        if resume and output_file is not None:
            kept, windows = batch_files.resumed(output_file, windows, input_file)
    elif text is None:
        text = batch_files.read_standard_input()
    generator = Generator.from_artifact(
        artifact,
        recipe=recipe,
        engine=LITERT if engine == "litert" else engine,
        num_threads=threads,
        max_batch_size=max_batch_size or MAX_BATCH_SIZE,
    )
    if generator.engine.notice:
        click.echo(generator.engine.notice, err=True)
    with cli.errors_in_flags(*NAMES):
        generator.settings(**parameters)  # refused once, not for every text
        parameters |= flags
        if input_file is not None and windows is not None:
            failed = batch(generator, parameters, windows, input_file, output_file, kept)
            context.exit(1 if failed else 0)
        assert text is not None
        if stream:
            pieces = generator.stream(text, **parameters)
            for piece in pieces:
                print_text(piece, end="")
            click.echo()
            result = pieces.drain()
        else:
            result = generator.generate(text, **parameters)
    if output_file is not None:
        with batch_files.results(output_file) as write:
            write({"text": text, **result.to_dict()})
    elif not stream:
        for sequence in result.sequences:
            print_text(sequence.text)
    if result.truncated:
        read = len(result.source_token_ids)
        click.echo(f"The text was truncated to its first {read} tokens.", err=True)


def check_resume(source: pathlib.Path | None, output: pathlib.Path | None, overwrite: bool) -> None:
    """Raise UsageError if there is no output that can be resumed, or no input to read again."""
    from bart_export.cli import batch_files

    if overwrite:
        raise click.UsageError("Give either --resume or --overwrite, not both.")
    if output is None or str(output) == batch_files.STANDARD:
        raise click.UsageError("--resume needs an --output file.")
    if source is None or batch_files.is_stream(source):
        raise click.UsageError("--resume needs an --input file, not a pipe.")


def batch(
    generator: "Generator",
    parameters: Mapping[str, Value],
    windows: "Iterable[list[Row]]",
    source: pathlib.Path,
    output: pathlib.Path | None,
    kept: "Kept",
) -> int:
    """Write or print a result for each row after the `kept` ones; return the number of errors."""
    from bart_export.cli import batch_files

    count, failed, uncounted = kept.rows, kept.failed, kept.rows
    shown = output is not None and str(output) != batch_files.STANDARD

    def counts() -> tuple[int, int]:
        """Return the numbers of finished texts, including unwritten ones, and of tokens."""
        return uncounted + generator.scheduler.finished, generator.scheduler.tokens

    with (
        texts_bar(batch_files.line_count(source), counts) if shown else contextlib.nullcontext(),
        contextlib.nullcontext(print_row)
        if output is None
        else batch_files.results(output, kept) as write,
    ):
        try:
            for answer in itertools.chain.from_iterable(
                results_or_errors(generator, parameters, window) for window in windows
            ):
                write(answer)
                count += 1
                failed += "error" in answer
                uncounted += "error" in answer
                remark = answer.get(
                    "error", "It was truncated." if answer.get("truncated") else None
                )
                if remark and output is None:
                    click.echo(f"Text {count} of {source}: {remark}", err=True)
        except KeyboardInterrupt:
            count = max(count, kept.rows + len(kept.unfinished))
            resumable = shown and not batch_files.is_stream(source)
            raise KeyboardInterrupt(
                f"Interrupted after {plural(count, 'text')} of {source}; their rows are complete."
                + (" Repeat the command with --resume to continue." if resumable else "")
            ) from None
    if failed:
        rows = f"their rows of {output}" if shown else "their rows"
        where = "see above" if output is None else f'see "error" in {rows}'
        click.echo(f"No result for {failed} of {plural(count, 'text')}: {where}.", err=True)
    return failed


def results_or_errors(
    generator: "Generator", parameters: Mapping[str, Value], window: "list[Row]"
) -> "Iterator[Row]":
    """Yield each row with its generated text, or with the error that prevented it."""
    texts = [row["text"] for row in window if "error" not in row]
    answers = generator.generate_iter(texts, return_exceptions=True, **parameters)
    for row in window:
        if "error" in row:
            yield row
            continue
        answer = next(answers)
        if isinstance(answer, BartExportError):
            yield {**row, "error": cli.in_flags(str(answer), *NAMES)}
        else:
            yield {**row, **answer.to_dict()}
    next(answers, None)  # Python would ignore Ctrl-C while it deletes an unfinished generator


def print_row(row: "Row") -> None:
    """Print each generated text as a single line, or an empty line for an error."""
    for sequence in row.get("sequences", [row]):
        print_text(" ".join(sequence.get("generated_text", "").splitlines()))
