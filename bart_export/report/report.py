"""REPORT.md, an artifact's model card, with its pictures.

The text is in `templates/REPORT.md.j2`.
"""

import dataclasses
import functools
import pathlib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bart_export import documents
from bart_export.artifact.artifact import REPORT
from bart_export.artifact.manifest import HostEntry, Manifest, StaticEntry
from bart_export.locations import last_name
from bart_export.report import facts, pictures
from bart_export.report.facts import Figure, ReportedFile

if TYPE_CHECKING:
    import jinja2

COSTS, SENSITIVITY = "report/costs.svg", "report/sensitivity.svg"
MOST_SENSITIVE = 10
WIDTH = 100  # columns
DASH = "–"  # for figures that were not measured


def write(directory: pathlib.Path, manifest: Manifest) -> list[str]:
    """Write the report and pictures of an artifact or draft, and return their names.

    The manifest has entries for all other files.
    """
    files, drawn = facts.reported_files(manifest), {}
    with pictures.drawing():
        if columns := pictures.cost_columns(files, manifest.generation.num_beams):
            drawn[COSTS] = pictures.draw_costs(files, columns)
        if rows := manifest.sensitivity:
            divergences = {row.layer: row.kl for row in rows}
            drawn[SENSITIVITY] = pictures.draw_sensitivities(divergences, rows[0].storage)
        for name, figure in drawn.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(pictures.to_svg(figure), encoding="utf-8")
    (directory / REPORT).write_text(render(manifest, files, list(drawn)), encoding="utf-8")
    return [REPORT, *drawn]


def render(manifest: Manifest, files: Sequence[ReportedFile], drawn: Sequence[str]) -> str:
    """Return the text of a report; `drawn` has the names of its pictures."""
    measured = [row for file in files if (row := file.measurement) and row.lengths]
    known = facts.known_preset(manifest)
    return template(REPORT).render(
        COSTS=COSTS,
        SENSITIVITY=SENSITIVITY,
        GOLDEN_TEXTS=facts.GOLDEN_TEXTS,
        title=last_name(manifest.preset),
        description=known and known.description,
        manifest=manifest,
        made_by=", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
        files=files,
        pictures=drawn,
        evidence=facts.evidence(files),
        measured=measured,
        machines=", ".join(
            dict.fromkeys(
                f"{row.machine.processor} ({row.machine.architecture}) with {row.num_threads} "
                "threads"
                for row in measured
            )
        ),
        runs=len({row.export for row in measured}),
        num_beams=sorted({1, manifest.generation.num_beams}),
        storage=manifest.sensitivity[0].storage if manifest.sensitivity else None,
        sensitive=sorted(manifest.sensitivity, key=lambda row: -row.kl)[:MOST_SENSITIVE],
        targets={entry.target for entry in manifest.files.values()},
        signatures=facts.signature_lines(manifest),
        static={
            name: entry.signatures
            for name, entry in manifest.files.items()
            if isinstance(entry, (StaticEntry, HostEntry))
        },
        contents=facts.contents(manifest),
        others={
            row.file: ", ".join(
                f"{name} {value:.4g}"
                for name, value in row.to_dict().items()
                if documents.is_number(value)
            )
            for row in manifest.verification
            if row.file not in {file.name for file in files}
        },
    )


def template(document: str) -> "jinja2.Template":
    """Return the template of a document, with filters for Markdown."""
    environment = documents.templates(__file__)
    environment.filters |= {
        "paragraph": paragraph, "bullet": functools.partial(paragraph, first="- ", others="  "),
        "cell": cell, "interval": interval, "number": "{:,}".format,
    }  # fmt: skip
    return environment.get_template(f"{document}.j2")


def paragraph(text: str, first: str = "", others: str = "") -> str:
    """Return a wrapped paragraph; its lines start with `first` and `others`."""
    lines = textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return f"{lines}\n"


def cell(value: object) -> str:
    """Return a value as the text of a Markdown table cell."""
    text = "none" if value is None else str(value)
    text = text.lower() if isinstance(value, bool) else text
    return text.replace("|", "\\|").replace("\n", " ")


def interval(figure: Figure | None, words: str) -> str:
    """Return a figure with its interval in brackets, for a cell that does not wrap."""
    if figure is None:
        return DASH
    value, low, high = map(words.format, dataclasses.astuple(figure))
    text = f"{value} ({low} to {high})"
    return text.replace("-", "\N{MINUS SIGN}").replace(" ", "\N{NO-BREAK SPACE}")
