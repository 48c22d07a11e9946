"""REPORT.md: a model card of an artifact that a person reads, and its pictures.

What a manifest does not have, the report says was not measured. The words are in
`templates/REPORT.md.j2`.
"""

import dataclasses
import pathlib
import textwrap
from collections.abc import Mapping, Sequence

from bart_export import documents
from bart_export.artifact.artifact import REPORT
from bart_export.artifact.manifest import HostEntry, Manifest, StaticEntry
from bart_export.presets import PRESETS
from bart_export.report import facts, pictures
from bart_export.report.facts import Figure, ReportedFile

COSTS, SENSITIVITY = "report/costs.svg", "report/sensitivity.svg"
DIRECTORY = "report"
MOST_SENSITIVE = 10
UNKNOWN_LICENCE = "the checkpoint's licence applies; it was not in the checkpoint"
WIDTH = 100  # columns
DASH = "–"  # stands for what was not measured


def write(directory: pathlib.Path, manifest: Manifest) -> list[str]:
    """Write the report of an artifact.

    Args:
        directory: the artifact's, or a draft's.
        manifest: what it is about, with an entry for every other file.

    Returns:
        The names of the files written, for the manifest.
    """
    others = {
        name: entry
        for name, entry in manifest.files.items()
        if name != REPORT and not name.startswith(f"{DIRECTORY}/")
    }
    manifest = dataclasses.replace(manifest, files=others)
    drawn = draw(directory, manifest, facts.reported_files(manifest))
    (directory / REPORT).write_text(render(manifest, drawn), encoding="utf-8")
    return [REPORT, *drawn]


def draw(directory: pathlib.Path, manifest: Manifest, files: Sequence[ReportedFile]) -> list[str]:
    """Draw the pictures of what was measured; return their names."""
    drawn = {}
    with pictures.drawing():
        if columns := pictures.cost_columns(files, manifest.generation.num_beams):
            drawn[COSTS] = pictures.draw_costs(files, columns)
        if rows := manifest.sensitivity:
            divergences = {row.layer: row.kl for row in rows}
            drawn[SENSITIVITY] = pictures.draw_sensitivities(divergences, rows[0].storage)
        for name, figure in drawn.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(pictures.to_svg(figure), encoding="utf-8")
    return list(drawn)


def render(manifest: Manifest, drawn: Sequence[str]) -> str:
    """Return the report of a manifest's files; `drawn` are the names of pictures."""
    files = facts.reported_files(manifest)
    measured = [row for file in files if (row := file.measurement) and row.lengths]
    known = PRESETS.get(manifest.preset)
    environment = documents.templates(__file__)
    environment.filters |= {
        "paragraph": paragraph, "bullet": bullet, "cell": cell, "interval": interval,
        "number": "{:,}".format,
    }  # fmt: skip
    return environment.get_template(f"{REPORT}.j2").render(
        COSTS=COSTS,
        SENSITIVITY=SENSITIVITY,
        UNKNOWN_LICENCE=UNKNOWN_LICENCE,
        GOLDEN_TEXTS=facts.GOLDEN_TEXTS,
        # The name of a preset that was named by a path or a handle.
        title=pathlib.PurePosixPath(manifest.preset.replace("\\", "/")).name or manifest.preset,
        description=known and known.description,
        manifest=manifest,
        made_by=", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
        files=files,
        pictures=drawn,
        evidence=facts.evidence(files),
        measured=measured,
        machines=", ".join(dict.fromkeys(map(facts.machine_of, measured))),
        runs=len({row.export for row in measured}),
        num_beams=sorted({1, manifest.generation.num_beams}),
        storage=manifest.sensitivity[0].storage if manifest.sensitivity else None,
        sensitive=sorted(manifest.sensitivity, key=lambda row: -row.kl)[:MOST_SENSITIVE],
        targets={entry.target for entry in manifest.files.values()},
        settings=settings,
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


def paragraph(text: str) -> str:
    """Return a paragraph in lines of a readable width."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def bullet(text: str) -> str:
    """Return a point of a list, in lines of a readable width."""
    lines = textwrap.fill(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )
    return f"{lines}\n"


def cell(text: str) -> str:
    """Return text that ends no cell and no row of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def interval(figure: Figure | None, words: str) -> str:
    """Return a figure, and in brackets its ends, in a cell that does not wrap."""
    if figure is None:
        return DASH
    value, low, high = map(words.format, dataclasses.astuple(figure))
    text = f"{value} ({low} to {high})"
    return text.replace("-", "\N{MINUS SIGN}").replace(" ", "\N{NO-BREAK SPACE}")


def settings(values: Mapping[str, object]) -> str:
    """Return a table of names and values."""

    def show(value: object) -> str:
        if value is None:
            return "none"
        return str(value).lower() if isinstance(value, bool) else str(value)

    rows = [f"| `{name}` | {cell(show(value))} |\n" for name, value in values.items()]
    return "".join(("|  |  |\n", "| --- | --- |\n", *rows))
