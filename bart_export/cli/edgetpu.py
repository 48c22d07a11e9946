"""`bart-export edgetpu`: a `.tflite` file goes in, what an Edge TPU would run of it comes out.

Runs where there is no TensorFlow. Everything heavy is imported when the command runs.
"""

import collections
import json
import pathlib
from typing import TYPE_CHECKING

import click

from bart_export.documents import scratch_directory
from bart_export.errors import printable, printable_lines
from bart_export.progress import console

if TYPE_CHECKING:
    from bart_export.edgetpu.compiler import Compiled, Report

COLUMNS = ("Operator", "Count", "Status", "Why")


@click.group()
def edgetpu() -> None:
    """Check files for Coral's Edge TPU."""


@edgetpu.command()
@click.argument("file", type=click.Path(path_type=pathlib.Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with a row for each operation.")
@click.pass_context
def check(context: click.Context, file: pathlib.Path, as_json: bool) -> None:
    """Report which operations of a .tflite FILE an Edge TPU would run, and why not the others.

    This checks the compiler's published rules, and runs edgetpu_compiler if it is on PATH. The exit
    code is 1 if an operation would not run on the Edge TPU, and 2 for a file that is not a .tflite.

    \b
      bart-export edgetpu check artifacts/bart_mini_en/edgetpu/layer_0_feedforward.tflite
    """
    from bart_export.edgetpu import compiler

    if file.is_dir():
        inside = ", ".join(map(str, sorted(file.rglob("*.tflite"))[:3]))
        raise click.UsageError(f"{file} is a directory; name one .tflite file, as {inside or 'X'}.")
    report = compiler.check_file(file)
    compiled = None
    if compiler.program() is not None and not report.refusals:
        with scratch_directory() as directory:
            (compiled,) = compiler.compile_files([file], directory)
    if as_json:
        content = report.to_dict() | {"compiler": compiled and compiled.to_dict()}
        click.echo(printable_lines(json.dumps(content, ensure_ascii=False, indent=1)))
    else:
        show_report(report)
        show_compiled(compiled)
    context.exit(0 if report.passes and (compiled is None or compiled.passes) else 1)


def show_report(report: "Report") -> None:
    """Print the operations by operator and status, as the compiler does, and the parameters."""
    counts = collections.Counter((row.operator, row.status, row.rule) for row in report.rows)
    # Of operations that break the same rule the first says how.
    reasons = {(row.operator, row.status, row.rule): row.reason for row in reversed(report.rows)}
    show_table([(key[0], count, key[1], reasons[key]) for key, count in counts.items()])
    for refusal in report.refusals:
        click.echo(printable(f"The compiler would read nothing of this file: {refusal}"))
    mapped = sum(row.mapped for row in report.rows)
    click.echo(
        f"{mapped} of {len(report.rows)} operations would run on the Edge TPU; parameters: "
        f"{report.on_chip_bytes / 2**20:.2f} MiB kept on it, "
        f"{report.streamed_bytes / 2**20:.2f} MiB streamed at every run"
    )


def show_compiled(compiled: "Compiled | None") -> None:
    """Print what the compiler itself said, or that it is not here."""
    if compiled is None:
        click.echo("By the published rules; edgetpu_compiler itself was not run.")
        return
    click.echo("edgetpu_compiler says:")
    show_table([(row.operator, row.count, row.status, "") for row in compiled.rows])
    click.echo(
        f"parameters: {compiled.on_chip_bytes / 2**20:.2f} MiB kept on the Edge TPU, "
        f"{compiled.streamed_bytes / 2**20:.2f} MiB streamed at every run"
    )


def show_table(rows: list[tuple[str, int, str, str]]) -> None:
    """Print operations as a table; what is too long for the terminal goes on in the next line."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for column in COLUMNS:
        table.add_column(column, overflow="fold", justify="right" if column == "Count" else "left")
    for operator, count, status, why in rows:
        table.add_row(operator, str(count), status, why)
    console().print(table)
