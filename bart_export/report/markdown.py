"""Markdown: words and rows go in, blocks of text come out. What they say is not known here."""

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100


def paragraph(text: str) -> str:
    """Return a paragraph in lines of a readable width."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def bullets(texts: Iterable[str]) -> str:
    """Return a list of points."""
    return "\n".join(
        textwrap.fill(
            text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )
        for text in texts
    )


def code(text: str) -> str:
    """Return text as code, which has no backtick of its own."""
    return f"`{text}`"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Return a table; its last columns, so many as `numbers`, are aligned to the right."""
    rules = ["---"] * (len(heads) - numbers) + ["---:"] * numbers
    lines = [heads, rules, *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def cell(text: str) -> str:
    """Return text that ends no cell and no row."""
    return text.replace("|", "\\|").replace("\n", " ")
