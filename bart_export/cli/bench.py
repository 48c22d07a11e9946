"""`bart-export bench`: tables or JSON of what was measured of an artifact.

What is measured are the artifact's files, or how it is served. Everything heavy is imported when
the command runs.
"""

import json
import pathlib
from typing import Any

import click

from bart_export.config import MOST_THREADS
from bart_export.errors import MissingExtra
from bart_export.progress import console

Path = click.Path(path_type=pathlib.Path)
Count = click.IntRange(min=1)
Threads = click.IntRange(1, MOST_THREADS)


# Options of the files' measurement alone, and of the servers' alone.
OF_FILES = {"recipe_names": "--recipe", "num_beams": "--num-beams", "compare": "--compare"}
OF_SERVERS = {
    "engines": "--engine",
    "workers": "--workers",
    "queue_size": "--queue-size",
    "overload_seconds": "--overload",
}


@click.command()
@click.argument("artifact", type=Path)
@click.option("--serve", is_flag=True, help="Measure a server of the artifact.")
@click.option(
    "--recipe",
    "recipe_names",
    multiple=True,
    metavar="RECIPE",
    help="Which files to measure; may be repeated. Default: all.",
)
@click.option(
    "--source",
    "sources",
    type=Count,
    multiple=True,
    help="Source tokens; may be repeated. Default: 64 and 512; with --serve 256, and 512 for "
    "batches; fewer if the model has no room for them.",
)
@click.option(
    "--num-beams",
    type=Count,
    multiple=True,
    help="Numbers of beams; may be repeated. Default: 1 and 4. Those of a server are fixed.",
)
@click.option(
    "--new-tokens",
    type=Count,
    help="Tokens to generate. Default: 64; with --serve 32, and 64 for batches; fewer if the "
    "model has no room for them.",
)
@click.option(
    "--runs", type=Count, default=7, show_default=True, help="Number of runs for each median."
)
@click.option(
    "--threads",
    "num_threads",
    type=Threads,
    multiple=True,
    help="Numbers of threads; may be repeated. Default: as in generate, one for a small model, "
    "all cores for a larger one.",
)
@click.option(
    "--engine",
    "engines",
    type=click.Choice(["tensorflow", "litert"]),
    multiple=True,
    help="Which engines to serve with. Default: all that the artifact has files for.",
)
@click.option("--workers", type=Threads, help="Calls that a server runs in parallel.")
@click.option("--queue-size", type=click.IntRange(min=0), help="Calls that may wait in a server.")
@click.option(
    "--overload",
    "overload_seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="With --serve: afterwards send each server twice the load that it can answer, for this "
    "many seconds.",
)
@click.option(
    "--compare",
    type=Path,
    metavar="OTHER.json",
    help="An earlier report of --json, from here or elsewhere: print the ratios of the new figures "
    "to it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def bench(artifact: pathlib.Path, serve: bool, as_json: bool, **options: Any) -> None:
    """Measure an artifact here: sizes, opening, memory, encoding, decoding, tokens per second.

    A file is opened for the first time (hashing, packing weights), cold (from disk) and warm.

    With --serve, measure the overhead and the throughput of a server. Configurations take turns and
    figures are medians; compare them within one run only.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    for name, flag in (OF_FILES if serve else OF_SERVERS).items():
        if name in given:
            raise click.UsageError(f"{flag} {'contradicts' if serve else 'needs'} --serve.")
    report, tables = (serving if serve else files)(artifact, given)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=1))
        return
    console().print(tables)


def files(artifact: pathlib.Path, given: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Measure an artifact's files; return the report, and tables of it."""
    from bart_export.bench import bench as benchmark
    from bart_export.bench import comparison
    from bart_export.bench import tables as bench_tables

    other = comparison.read(given.pop("compare")) if "compare" in given else None
    if "recipe_names" in given:
        given["recipes"] = given.pop("recipe_names")
    report = benchmark.bench(artifact, **given)
    if other is None:
        return report, bench_tables.tables(report)
    from rich.console import Group

    compared = comparison.compare(report, other)
    tables = Group(bench_tables.tables(report), comparison.tables(compared))
    return {**report, "comparison": compared}, tables


def serving(artifact: pathlib.Path, given: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Measure how an artifact is served; return the report, and tables of it."""
    for name, flag, parameter in (
        ("sources", "--source", "source"),
        ("num_threads", "--threads", "num_threads"),
    ):
        if name in given:
            values = given.pop(name)
            if len(values) > 1:
                raise click.UsageError(f"With --serve, {flag} can be given once.")
            given[parameter] = values[0]
    try:
        from bart_export.bench import serving_bench as serve_bench
    except ModuleNotFoundError as error:
        raise MissingExtra("Measuring a server", str(error.name), "serve") from None

    report = serve_bench.serve_bench(artifact, **given)
    return report, serve_bench.tables(report)
