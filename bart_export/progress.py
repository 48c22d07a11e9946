"""Terminal output: progress bars, tables and generated texts.

Bars are drawn on a copy of standard error and stay visible while `quiet` silences native libraries.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from bart_export.errors import escaped, printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table
    from rich.text import Text

Stage = Callable[[str], None]
WIDE = 200  # columns in a file or pipe, so that names are not broken
REFRESH_SECONDS = 0.2
AVERAGED_SECONDS = 3600.0  # for the speed, because the longest texts come first


def console() -> "Console":
    """Return a console on standard output that escapes control characters and ignores markup."""
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, *args: Any, **kwargs: Any) -> "Text":
            return super().render_str(printable_lines(text), *args, **kwargs)

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE
    return Plain(width=width, markup=False, emoji=False)


def text_table(title: str, heads: Sequence[str], lines: Iterable[Iterable[str]]) -> "Table":
    """Return a table of text cells; all columns but the first are numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column(heads[0], overflow="fold")  # break names rather than numbers
    for head in heads[1:]:
        made.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        made.add_row(*line)
    return made


def print_text(text: str, *, end: str = "\n") -> None:
    """Write a generated text to standard output; for a terminal, escape control characters."""
    shown = "\n".join(map(escaped, text.split("\n"))) if sys.stdout.isatty() else text
    click.echo(shown + end, nl=False, color=True)  # otherwise click strips colors


def plural(count: int, noun: str) -> str:
    """Return a number with its noun: 1 beam, 4 beams."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@contextlib.contextmanager
def stages(total: int | None) -> Iterator[Stage]:
    """Show a bar of `total` stages (None if unknown); the yielded function starts the next."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.description}", markup=False)
    with bars(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("", total=total)
        started = False

        def stage(name: str) -> None:
            nonlocal started
            progress.update(bar, description=printable(name), advance=1 if started else 0)
            started = True

        yield stage
        progress.update(bar, completed=total)


@contextlib.contextmanager
def texts_bar(total: int | None, counts: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Show a bar of `total` texts (None if unknown), tokens per second and the time left.

    `counts` returns the numbers of texts and tokens so far; another thread calls it.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    labels = TextColumn("texts  {task.fields[rate]:.0f} tokens/s "), TextColumn("left")
    columns = BarColumn(), MofNCompleteColumn(), labels[0], TimeRemainingColumn(), labels[1]
    texts, tokens = counts()
    ended, began = threading.Event(), time.monotonic()
    with bars(*columns, speed_estimate_period=AVERAGED_SECONDS) as progress:
        bar = progress.add_task("", total=total, completed=texts, rate=0)

        def follow() -> None:
            running = True
            while running:
                running = not ended.wait(REFRESH_SECONDS)
                now, made = counts()
                rate = (made - tokens) / (time.monotonic() - began)
                progress.update(bar, completed=now, rate=rate)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


@contextlib.contextmanager
def bars(*columns: "ProgressColumn", **settings: Any) -> Iterator["Progress"]:
    """Show bars with these columns on a copy of standard error, a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    encoding, errors = sys.stderr.encoding, "replace"  # the encoding may lack the bar's characters
    with os.fdopen(os.dup(2), "w", encoding=encoding, errors=errors) as terminal:
        progress = Progress(
            *columns,
            console=Console(file=terminal, force_terminal=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,  # rich would print the silenced output
            **settings,
        )
        with progress:
            yield progress
