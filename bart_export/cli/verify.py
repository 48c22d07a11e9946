"""`bart-export verify` and `bart-export edgetpu check`: checks of finished files."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bart_export import cli
from bart_export.documents import scratch_directory
from bart_export.errors import VerificationFailed, printable
from bart_export.locations import Location
from bart_export.progress import console, stages, text_table
from bart_export.recipes import metrics

if TYPE_CHECKING:
    from rich.table import Table

    from bart_export.artifact.artifact import Artifact
    from bart_export.artifact.figures import FileVerification
    from bart_export.edgetpu.compiler import Compiled, CompilerReport
    from bart_export.verify.compare import FileComparison
    from bart_export.verify.data import Texts

GOLDEN = 6  # about half the golden questions and traces, for the progress bar


@click.command()
@click.argument("artifact", type=cli.ARTIFACT)
@cli.texts_option(
    "--data",
    "compare the files with",
    "Without --against, the baseline is the artifact's float32 file.",
)
@click.option(
    "--against",
    type=cli.PRESET,
    help="Compare with the Keras model and weights of the artifact's preset, given in any form of "
    "--preset. Needs TensorFlow.",
)
@cli.TOLERANCE
@cli.JSON
def verify(
    artifact: Location,
    data: pathlib.Path | None,
    against: str | None,
    tolerance: Sequence[str],
    as_json: bool,
) -> None:
    """Check the hashes of an artifact, and the answers of its .tflite files.

    Without options, the golden questions are repeated with every file. With --data or --against,
    files are compared with the float model: logits and most likely tokens at each step, generated
    texts, ROUGE if there are references, every row of every matrix, and the graphs.

    The exit code is 1 if an answer has changed since the export, or a file is outside its
    recipe's tolerance. Only --against needs TensorFlow.
    """
    from bart_export.artifact.artifact import Artifact
    from bart_export.runtime.weight_cache import discard_damaged
    from bart_export.verify.data import read_texts

    bounds = metrics.parse_bounds(tolerance)
    opened = Artifact.open(artifact)
    for name in opened.manifest.tflite():
        if discard_damaged(opened, name):
            click.echo(f"{name}: the weight cache was damaged and was rebuilt", err=True)
    segments = ["edgetpu"] if opened.files("edgetpu") else []
    versions = opened.manifest.saved_model_versions
    unasked = [*(f"saved_model/{version}" for version in versions), *segments]
    if data is None and against is None:
        if tolerance:
            raise click.UsageError("--tolerance needs --data, --against or both.")
        replay_golden(opened, unasked, as_json)
        return
    texts = None if data is None else read_texts(data)
    rows = compare_artifact(opened, texts, against, bounds)
    if as_json:
        described = texts and texts.file.to_dict()
        files = [row.to_dict() for row in rows]
        report = {"against": against, "data": described, "files": files, "not_asked": unasked}
        cli.print_json(report)
    else:
        print_table(rows)
        print_unasked(unasked)
    failures = [failure for row in rows for failure in row.failures]
    if failures:
        count = sum(bool(row.failures) for row in rows)
        raise VerificationFailed(
            f"{count} of {len(rows)} files are outside their tolerance. The first: {failures[0]}"
        )


def replay_golden(artifact: "Artifact", unasked: Sequence[str], as_json: bool) -> None:
    """Check every hash and repeat the golden questions."""
    from bart_export.verify.checks import replay

    rows = replay(artifact)
    if as_json:
        cli.print_json({"files": list(map(dataclasses.asdict, rows)), "not_asked": unasked})
        return
    for row in rows:
        click.echo(f"{row.file}: {row.equal} of {row.asked} golden answers are the same")
    print_unasked(unasked)
    count = len(artifact.manifest.files)
    click.echo(f"{artifact.location} is complete: {count} files match the manifest")


def print_unasked(names: Sequence[str]) -> None:
    """Print the parts whose golden questions cannot be repeated."""
    for name in names:
        click.echo(f"{name}: only hashes were checked; the export compared it with the Keras model")


def compare_artifact(
    artifact: "Artifact", texts: "Texts | None", against: str | None, bounds: dict[str, float]
) -> "list[FileComparison]":
    """Compare an artifact's files with its float32 file or with a preset."""
    from bart_export.checkpoints.resolve import ResolvedPreset
    from bart_export.runtime.generator import ModelInfo
    from bart_export.verify.checks import artifact_files, compare_files, float_baseline

    for name in artifact.manifest.files:
        artifact.path(name, rehash=True)
    info, files = ModelInfo.from_artifact(artifact), artifact_files(artifact, bounds)
    shapes = {file.shapes for file in files}
    count = GOLDEN if texts is None else len(texts.examples)
    with stages(2 * count * (len(files) + len(shapes))) as stage:
        if against is None:
            baseline = float_baseline(info, files)
            others = [file for file in files if file.recipe.mode != "float"]
            return compare_files(others, baseline, texts, stage)
        cli.require_packages("Comparing with a preset", cli.EXPORT_PACKAGES, "export")
        # Read before TensorFlow is loaded, which takes seconds.
        resolved = ResolvedPreset(against, stage=stage)
        with cli.loading_tensorflow(stage):
            from bart_export.verify.reference import preset_baseline
        with scratch_directory() as scratch:
            baseline = preset_baseline(artifact, info, files, resolved, bounds, scratch, stage)
            return compare_files(files, baseline, texts, stage)


def print_table(rows: "Sequence[FileComparison]") -> None:
    """Print the figures of files, two per cell, and their failures."""
    heads = ("file", "relative error\nKL, nats", "top-1\nequal texts", "worst\nrow",
             "ROUGE-L\nlost (95 %)")  # fmt: skip
    output = console()
    lines = [(row.file.name, *(cells(row.figures) if row.figures else ())) for row in rows]
    output.print(text_table("", heads, lines))
    for row in rows:
        for failure in row.failures:
            output.print(failure, soft_wrap=True, highlight=False)


def cells(figures: "FileVerification") -> tuple[str, ...]:
    """Return the table cells of a file's figures, with a dash for None."""
    texts = "–" if figures.tokens is None else f"{figures.tokens:.1%}"
    row = "–" if figures.weights is None else f"{figures.weights:.2f}"
    rouge = "–"
    if figures.rouge is not None:
        loss = figures.rouge["rouge_l"]
        rouge = f"{loss.file:.2f}\n{loss.loss:.2f} ({loss.low:.2f} to {loss.high:.2f})"
    error = f"{figures.relative:.2g}\n{figures.kl:.2g}"
    return error, f"{figures.top1:.2%}\n{texts}", row, rouge


@click.group(no_args_is_help=False)  # its help would be escaped as one line
def edgetpu() -> None:
    """Check files for Coral's Edge TPU."""


@edgetpu.command()
@click.argument("file", type=cli.PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with a row for each operation.")
@click.pass_context
def check(context: click.Context, file: pathlib.Path, as_json: bool) -> None:
    """Report which operations of a .tflite FILE an Edge TPU would run, and why others would not.

    The compiler's published rules are checked, and edgetpu_compiler is run if it is on PATH. The
    exit code is 1 if an operation would not run on the Edge TPU, and 2 if FILE cannot be read.

    \b
      bart-export edgetpu check artifacts/bart_mini_en/edgetpu/layer_0_feedforward.tflite
    """
    from bart_export.edgetpu import compiler

    if file.is_dir():
        inside = ", ".join(map(str, sorted(file.rglob("*.tflite"))[:3]))
        raise click.UsageError(
            f"{file} is a directory; name a .tflite file, such as {inside or 'FILE.tflite'}."
        )
    report = compiler.check_file(file)
    compiled = None
    if compiler.compiler_path() is not None and not report.refusals:
        with scratch_directory() as directory:
            (compiled,) = compiler.compile_files([file], directory)
    if as_json:
        cli.print_json(report.to_dict() | {"compiler": compiled and compiled.to_dict()})
    else:
        show_report(report)
        show_compiled(compiled)
    context.exit(0 if report.passes and (compiled is None or compiled.passes) else 1)


def show_report(report: "CompilerReport") -> None:
    """Print the operations by operator and status, like the compiler, and the parameters."""
    counts = collections.Counter((row.operator, row.status, row.rule) for row in report.rows)
    # The first operation's reason stands for all that break the same rule.
    reasons = {(row.operator, row.status, row.rule): row.reason for row in reversed(report.rows)}
    lines = [(key[0], str(count), key[1], reasons[key]) for key, count in counts.items()]
    console().print(operations(lines))
    for refusal in report.refusals:
        click.echo(printable(f"The compiler would reject this file: {refusal}"))
    mapped = sum(row.mapped for row in report.rows)
    click.echo(
        f"{mapped} of {len(report.rows)} operations would run on the Edge TPU; "
        + parameters(report.on_chip_bytes, report.streamed_bytes)
    )


def show_compiled(compiled: "Compiled | None") -> None:
    """Print the compiler's own report, or that it was not run."""
    if compiled is None:
        click.echo("According to the published rules; edgetpu_compiler itself was not run.")
        return
    click.echo("edgetpu_compiler reports:")
    lines = [(row.operator, str(row.count), row.status, "") for row in compiled.rows]
    console().print(operations(lines))
    click.echo(parameters(compiled.on_chip_bytes, compiled.streamed_bytes))


def parameters(on_chip: int, streamed: int) -> str:
    """Return a description of where a running file's parameters are."""
    return (
        f"parameters: {on_chip / 2**20:.2f} MiB kept on the Edge TPU, {streamed / 2**20:.2f} MiB "
        "streamed on every run"
    )


def operations(lines: Sequence[tuple[str, str, str, str]]) -> "Table":
    """Return a table of operations, whose text columns wrap on a narrow terminal."""
    table = text_table("", ("Operator", "Count", "Status", "Why"), lines)
    for column in table.columns[2:]:
        column.justify, column.no_wrap, column.overflow = "left", False, "fold"
    return table
