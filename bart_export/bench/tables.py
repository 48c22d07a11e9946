"""Tables of a benchmark's report for a terminal.

A report, as `bench` returns it, goes in, and what rich prints comes out. Nothing is measured here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from bart_export.progress import counted

Row = Mapping[str, Any]

UNTIL = {"generator": "ready", "text": "text"}  # stages of an opening, as a head has them


def milliseconds(seconds: float | None) -> str:
    """Return a duration in milliseconds as it stands in a table, a dash for none."""
    return "–" if seconds is None else f"{1000 * seconds:.1f}"


def megabytes(count: int | None) -> str:
    """Return an amount of memory in megabytes as it stands in a table, a dash for none."""
    return "–" if count is None else f"{count / 1e6:.0f}"


def tables(report: Mapping[str, Any]) -> Group:
    """Return the report for a terminal: tables of files, openings, memory and speed, and notes."""
    about, settings = report["machine"], report["settings"]
    title = f"{report['artifact']['preset']} on {about['processor']}, {cores(about)}"
    speeds = (
        f"{counted(settings['new_tokens'], 'new token')}, median of "
        f"{counted(settings['runs'], 'run')}"
    )
    notes = [skip(row) for row in report["skipped"]]
    if any(row["opening"] == "cold" and row["seconds"] is None for row in report["openings"]):
        notes.append("Cold openings are unknown: the system kept the files in its memory.")
    return Group(
        filled(
            title,
            ("recipe", "size\nMB", "bytes a\nweight"),
            [
                (named(row), f"{row['bytes'] / 1e6:.1f}", f"{row['bytes_per_parameter']:.3f}")
                for row in report["files"]
            ],
        ),
        opening_table(
            "From the path to a model ready to run, and to its first text, in ms",
            report["openings"],
            milliseconds,
        ),
        memory_table(report["memory"]),
        filled(
            speeds,
            (
                "recipe",
                "threads",
                "source",
                "beams",
                "encode\nms",
                "step\nms",
                "all\nms",
                "tokens\nper s",
            ),
            [
                (
                    named(row),
                    *(str(row[key]) for key in ("num_threads", "source", "num_beams")),
                    *(
                        milliseconds(row[key])
                        for key in ("encode_seconds", "step_seconds", "seconds")
                    ),
                    f"{row['tokens_per_second']:.0f}",
                )
                for row in report["generation"]
            ],
        ),
        *notes,
    )


def cores(machine: Mapping[str, Any]) -> str:
    """Return how many cores a machine has, in words."""
    return counted(machine["cores"], "core")


def skip(row: Row) -> str:
    """Return the line about something that was not measured."""
    if "new_tokens" in row:
        return f"{row['new_tokens']} new tokens are too many: {row['reason']}."
    whose = "Source"
    if "recipe" in row:
        whose = f"{named(row)} with {counted(row['num_beams'], 'beam')}: source"
    return f"{whose} {row['source']} was skipped: {row['reason']}."


def opening_table(title: str, rows: Iterable[Row], shown: Callable[[float | None], str]) -> Table:
    """Return a table with a line for each file and number of threads, cells as `shown` has them."""
    grouped: dict[tuple[str, int], dict[tuple[str, str], Any]] = {}
    for row in rows:
        cells = grouped.setdefault((named(row), row["num_threads"]), {})
        cells[row["opening"], row["until"]] = row["seconds"]
    columns = [(way, until) for until in ("generator", "text") for way in ("first", "cold", "warm")]
    return filled(
        title,
        ("recipe", "threads", *(f"{way}\n{UNTIL[until]}" for way, until in columns)),
        [
            (recipe, str(threads), *(shown(cells.get(column)) for column in columns))
            for (recipe, threads), cells in grouped.items()
        ],
    )


def memory_table(rows: Sequence[Row]) -> Table:
    """Return a table of what a process takes for itself, and in common with others."""
    return filled(
        "Memory of a process beside another with the same file",
        ("recipe", "threads", "source", "beams", "private\nMB", "shared\nMB"),
        [
            (
                named(row),
                *(str(row[key]) for key in ("num_threads", "source", "num_beams")),
                megabytes(row["private_bytes"]),
                megabytes(row["shared_bytes"]),
            )
            for row in rows
        ],
    )


def named(row: Row) -> str:
    """Return how a table calls a row's file."""
    recipe: str = row["recipe"]
    return recipe if row["build"] == "dynamic" else f"{recipe} ({row['build']})"


def filled(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of rows whose columns but the first hold numbers."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    # Where a terminal is narrow, a name is broken before a number is.
    made.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made
