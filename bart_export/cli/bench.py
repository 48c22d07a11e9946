"""`bart-export bench`: measurements of an artifact as tables or JSON."""

from typing import TYPE_CHECKING

import click

from bart_export.cli import (
    ARTIFACT,
    COUNT,
    PATH,
    RECIPE,
    THREADS,
    EngineName,
    SecondsRange,
    Value,
    flag,
    given_options,
    list_option,
    print_json,
)
from bart_export.errors import MissingExtra
from bart_export.locations import Location
from bart_export.progress import console

if TYPE_CHECKING:
    from rich.console import Group

# A report as a JSON object, and its tables.
JsonAndTables = tuple[dict[str, object], list["Group"]]
# Parameters that only apply to files, and those that only apply to servers.
OF_FILES = ("recipes", "num_beams", "num_texts", "compare")
OF_SERVERS = ("engines", "workers", "queue_size", "overload_seconds")
# Parameters with several values for files but one for a server, and their names there.
ONCE = {"sources": "source", "num_threads": "num_threads"}


@click.command()
@click.argument("artifact", type=ARTIFACT)
@click.option("--serve", is_flag=True, help="Measure servers of the artifact.")
@list_option(
    "--recipe",
    "recipes",
    kind=RECIPE,
    metavar="RECIPE,...",
    help="Files to measure. Default: all.",
)
@list_option(
    "--source",
    "sources",
    kind=COUNT,
    metavar="N,...",
    help="Source tokens. Default: 64,512; with --serve 256, and 512 for batches; lowered to the "
    "model's limit.",
)
@list_option(
    "--num-beams",
    kind=COUNT,
    metavar="N,...",
    help="Numbers of beams. Default: 1,4. Not with --serve.",
)
@list_option(
    "--num-texts",
    kind=COUNT,
    metavar="N,...",
    help="Also measure generating this many texts together. Not with --serve.",
)
@click.option(
    "--new-tokens",
    type=COUNT,
    help="Tokens to generate. Default: 64; with --serve 32, and 64 for batches; lowered to the "
    "model's limit.",
)
@click.option("--runs", type=COUNT, default=7, show_default=True, help="Number of runs per median.")
@list_option(
    "--threads",
    "num_threads",
    kind=THREADS,
    metavar="N,...",
    help="Numbers of threads. Default: 1 for a small model, all cores for a larger one.",
)
@list_option(
    "--engine",
    "engines",
    kind=EngineName("litert", "tensorflow"),
    metavar="[litert|tensorflow],...",
    help="Engines to serve with. Default: all that the artifact has files for.",
)
@click.option("--workers", type=THREADS, help="Workers of each server.")
@click.option(
    "--queue-size", type=click.IntRange(min=0), help="Calls that may wait in a server's queue."
)
@click.option(
    "--overload",
    "overload_seconds",
    type=SecondsRange(min_open=True),
    metavar="SECONDS",
    help="With --serve: also send each server twice the load that it can answer, for this long.",
)
@click.option(
    "--compare",
    type=PATH,
    metavar="OTHER.json",
    help="Also print the ratios to an earlier --json report, from this machine or another.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def bench(artifact: Location, serve: bool, as_json: bool, **options: Value) -> None:
    """Measure an artifact: sizes, openings, memory, and speed of encoding and decoding.

    Files are opened for the first time (hashing, packing weights), cold (from disk) and warm. With
    --serve, the overhead and the throughput of servers are measured instead.

    Configurations take turns, and figures are medians. Only compare figures from the same run.
    """
    given = given_options(options)
    for name in OF_FILES if serve else OF_SERVERS:
        if name in given:
            raise click.UsageError(f"{flag(name)} {'contradicts' if serve else 'needs'} --serve.")
    report, tables = (measure_server if serve else measure_files)(artifact, given)
    if as_json:
        print_json(report)
        return
    for table in tables:
        console().print(table)


def measure_files(artifact: Location, given: dict[str, Value]) -> JsonAndTables:
    """Measure an artifact's files; return the report as a JSON object, and its tables."""
    from bart_export.bench import rows
    from bart_export.bench.bench import bench as measure
    from bart_export.bench.comparison import ReportComparison

    other = rows.read(given.pop("compare")) if "compare" in given else None
    report = measure(artifact, **given)
    if other is None:
        return report.to_dict(), [report.tables()]
    comparison = ReportComparison(report, other)
    content = report.to_dict() | {"comparison": comparison.to_dict()}
    return content, [report.tables(), comparison.tables()]


def measure_server(artifact: Location, given: dict[str, Value]) -> JsonAndTables:
    """Measure an artifact's servers; return the report as a JSON object, and its tables."""
    for name, parameter in ONCE.items():
        if name in given:
            numbers = given.pop(name)
            if len(numbers) > 1:
                raise click.UsageError(f"With --serve, {flag(name)} takes one number.")
            (given[parameter],) = numbers
    try:
        from bart_export.bench.serving_bench import serve_bench
    except ModuleNotFoundError as error:
        raise MissingExtra("Measuring a server", str(error.name), "serve") from None

    report = serve_bench(artifact, **given)
    return report.to_dict(), [report.tables()]
