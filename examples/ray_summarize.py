"""Generate from the texts of JSON Lines or Parquet files with Ray Data, into Parquet files.

    python examples/ray_summarize.py artifacts/bart_mini_en texts.jsonl headlines

The rows need a "text" and a unique "id"; all their columns are kept. If the program is interrupted,
run it again: it continues after the last complete file. The directory OUTPUT.checkpoint has the
settings, and the ids that are done; they are in memory, so numbers are better than long strings.
"""

import logging
import os
import re
import socket
import sys
from typing import Any

import click

from bart_export.cli import COUNT, THREADS
from bart_export.errors import import_extra, one_line
from bart_export.locations import redacted
from bart_export.progress import plural

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send statistics to its developers

SECONDS = 10  # to connect to a cluster


def location(path: str) -> str:
    """Return a path that every process finds: an address, or an absolute path."""
    return path if "://" in path else os.path.abspath(path)


@click.command()
@click.argument("artifact", type=location)
@click.argument("source", type=location)
@click.argument("output", type=location)
@click.option(
    "--workers", type=COUNT, default=1, show_default=True, help="Processes that generate."
)
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Cores of each worker.")
@click.option(
    "--rows", type=COUNT, default=1024, show_default=True,
    help="Rows of an output file; if a worker dies, its file is computed again.",
)  # fmt: skip
@click.option("--num-beams", type=int, help="Number of beams; 1 is greedy search.")
@click.option("--max-length", type=int, help="Maximum number of tokens.")
@click.option("--truncate", is_flag=True, help="Truncate texts that are too long.")
@click.option("--address", envvar="RAY_ADDRESS", help="A Ray cluster; default: this machine.")
def main(
    artifact: str,
    source: str,
    output: str,
    workers: int,
    threads: int,
    rows: int,
    address: str | None,
    **parameters: Any,
) -> int:
    """Generate from the rows of SOURCE (JSON Lines, or .parquet) with ARTIFACT into OUTPUT.

    SOURCE is a file or a directory. On a cluster, all machines must find the three at the same
    place: use a shared file system or an object store.
    """
    import_extra("ray.data", "This example", "ray")
    import pyarrow.dataset
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.checkpoint import CheckpointConfig

    from bart_export.scale.ray import BartGenerator
    from bart_export.scale.ray_files import (
        PARQUET,
        check_places,
        job_settings,
        open_checkpoint,
        open_rows,
    )

    reach(address or "")
    check_places(source, output)
    given = {name: value for name, value in parameters.items() if value is not None}
    settings = job_settings(artifact, **given)
    texts = open_rows(source)
    if texts is None:
        click.echo(f"{redacted(source)} has no rows.")
        return 0
    ids, filesystem = open_checkpoint(output, texts, settings)
    # On this machine, declare two more CPUs than the workers have: Ray starts them first, and
    # without CPUs left the tasks that read and write would wait forever.
    cpus = None if address else workers * threads + 2
    # Ray's files of logs have the tracebacks of errors, and what workers print.
    ray.init(address, num_cpus=cpus, logging_level=logging.WARNING, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.addFilter(lambda record: record.levelno < logging.ERROR)
    context = DataContext.get_current()
    context.max_consecutive_actor_init_deaths = 3  # by default, a worker killed early ends the job
    context.checkpoint_config = CheckpointConfig(
        "id", ids, override_filesystem=filesystem, delete_checkpoint_on_success=False
    )
    read = ray.data.read_parquet if texts.format == PARQUET else ray.data.read_json
    dataset = read(texts.files, **texts.options)
    dataset.repartition(target_num_rows_per_block=rows).map_batches(
        BartGenerator,
        fn_constructor_kwargs={"location": artifact, **given},
        compute=ActorPoolStrategy(size=workers),
        num_cpus=threads,
        batch_size=min(256, rows),
        batch_format="pyarrow",
    ).write_parquet(output)

    results = pyarrow.dataset.dataset(output)
    if (count := results.count_rows()) < texts.count:  # Ray has missed a Parquet file named a?b
        raise click.ClickException(
            f"{redacted(output)} has {count} of {texts.count} texts: rename files whose names have "
            "special characters, and run the same command again."
        )
    refused = results.count_rows(filter=pyarrow.dataset.field("error").is_valid())
    click.echo(f"{redacted(output)}: {plural(count, 'text')}.")
    if refused:
        where = f'see "error" in their rows of {redacted(output)}'
        click.echo(f"No result for {refused} of {plural(count, 'text')}: {where}.", err=True)
    return 1 if refused else 0


def reach(address: str) -> None:
    """Raise ClickException if a cluster's HOST:PORT is unreachable; Ray would try without end."""
    if found := re.fullmatch(r"\[?([^/]+?)\]?:(\d{1,5})", address):
        try:
            socket.create_connection((found[1], int(found[2])), SECONDS).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise click.ClickException(
                f"{address} cannot be reached: {one_line(error)}."
            ) from error


def run() -> int:
    """Run the command, and return its exit code."""
    try:
        return int(main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return 130
    except Exception as error:  # of any library and any process
        from bart_export.scale import reason_of

        click.echo(f"Error: {reason_of(error)}", err=True)
    return 2


if __name__ == "__main__":
    sys.exit(run())
