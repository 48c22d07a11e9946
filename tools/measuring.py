"""Timed runs and the command line of the comparisons with other packages.

Runs take turns, so that other work of the machine affects all packages alike.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console, RenderableType

from bart_export.bench.measurements import memory_sizes
from bart_export.errors import BartExportError

PAUSE = 0.25  # seconds between runs: the threads of a pool spin for a while after work

Key = TypeVar("Key", bound=Hashable)


def take_turns(works: Mapping[Key, Callable[[], Any]], runs: int) -> dict[Key, list[float]]:
    """Return the seconds of each work's runs, after a warm-up round."""
    seconds: dict[Key, list[float]] = {key: [] for key in works}
    for run in range(runs + 1):
        for key, work in works.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            work()
            if run:
                seconds[key].append(time.perf_counter() - began)
    return seconds


def anonymous_bytes() -> int:
    """Return the resident bytes of this process without the pages of files.

    Its private memory would include pages of a file, such as the weights, that no other process has
    mapped at the moment.
    """
    return memory_sizes()["Anonymous:"]


def command(
    parser: argparse.ArgumentParser,
    compare: Callable[[argparse.Namespace], dict[str, Any]],
    table: Callable[[dict[str, Any]], RenderableType],
) -> None:
    """Parse the command line, compare, print the table, and write the report to --json."""
    parser.add_argument("--json", type=Path, help="write the complete report to this file")
    arguments = parser.parse_args()
    try:
        report = compare(arguments)
    except BartExportError as error:
        sys.exit(str(error))
    Console().print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
