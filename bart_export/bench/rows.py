"""The rows of a benchmark's report: as JSON, as tables, and as multiples of another report's."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.console import Group
from rich.table import Table

from bart_export import documents
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.figures import Machine
from bart_export.documents import Record, absent
from bart_export.errors import InputError
from bart_export.progress import Column, Show, counted, decimals, filled, table

# History of the report: 1 had a number of threads for all rows, and openings by file; 2 (2026-11)
# has rows by threads and builds, cold openings, and memory.
SCHEMA_VERSION = 2
MILLISECONDS, MEGABYTES, MULTIPLE = decimals(1, 1e3), decimals(0, 1e-6), decimals(2)


def named(recipe: str | None, build: str | None) -> str:
    """Return how a table calls a file."""
    return f"{recipe}" if build == "dynamic" else f"{recipe} ({build})"


@dataclasses.dataclass(frozen=True)
class Row(Record):
    """A row about a file: its recipe, and its build, "dynamic" or "static".

    `list_name` is the list of a report that rows of a kind are in, `KEYS` are the fields that tell
    them apart, `COLUMNS` those of their table, of which the others are figures.
    """

    list_name: ClassVar[str]
    KEYS: ClassVar[tuple[str, ...]] = ("recipe", "build")
    COLUMNS: ClassVar[tuple[Column, ...]] = (Column("recipe", "", "name"),)
    recipe: str
    build: str

    @property
    def name(self) -> str:
        """How a table calls the file."""
        return named(self.recipe, self.build)

    def keys(self) -> dict[str, object]:
        """Return the fields of `KEYS`."""
        return {name: getattr(self, name) for name in self.KEYS}

    def figures(self) -> dict[str, float | None]:
        """Return the fields that are figures."""
        names = (column.field for column in self.COLUMNS if column.is_figure)
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class FileRow(Row):
    """The size of a file."""

    list_name = "files"
    COLUMNS = (
        *Row.COLUMNS,
        Column("size", "MB", "bytes", decimals(1, 1e-6)),
        Column("bytes", "a weight", "bytes_per_parameter", decimals(3)),
    )
    file: str
    bytes: float
    bytes_per_parameter: float


@dataclasses.dataclass(frozen=True)
class OpeningRow(Row):
    """What it takes to reach a stage of an opening; see `opening.Figures`.

    `opening` is "first", "cold" or "warm"; `seconds` is None for a cold one that is not known.
    """

    list_name = "openings"
    KEYS = (*Row.KEYS, "num_threads", "opening", "until")
    COLUMNS = (*Row.COLUMNS, Column("time", "ms", "seconds", MILLISECONDS))
    num_threads: int
    opening: str
    until: str
    seconds: float | None = None
    private_bytes: float | None = None
    shared_bytes: float | None = None
    process_private_bytes: float | None = None
    built_weight_cache: bool | None = None


@dataclasses.dataclass(frozen=True)
class WorkRow(Row):
    """A row about a file that generates."""

    KEYS = (
        *Row.KEYS, "num_threads", "source", "num_beams", "new_tokens",
    )  # fmt: skip
    COLUMNS = (
        *Row.COLUMNS,
        Column("threads", "", "num_threads"),
        Column("source", "", "source"),
        Column("beams", "", "num_beams"),
    )
    num_threads: int
    source: int
    num_beams: int
    new_tokens: int


@dataclasses.dataclass(frozen=True)
class MemoryRow(WorkRow):
    """By how much a process grows that opens a file and generates, beside another with that file.

    `private_bytes` is what it has for itself, `shared_bytes` what it has in common with the other;
    None where the system does not say.
    """

    list_name = "memory"
    COLUMNS = (
        *WorkRow.COLUMNS,
        Column("private", "MB", "private_bytes", MEGABYTES),
        Column("shared", "MB", "shared_bytes", MEGABYTES),
    )
    private_bytes: float | None
    shared_bytes: float | None


@dataclasses.dataclass(frozen=True)
class GenerationRow(WorkRow):
    """The speed of a file: medians, and the seconds of all `runs`.

    `encode_seconds` is one call of the encoder with its buffers in place, `step_seconds` one call
    of the decoder, `seconds` all from source ids to generated ids.
    """

    list_name = "generation"
    COLUMNS = (
        *WorkRow.COLUMNS,
        Column("encode", "ms", "encode_seconds", MILLISECONDS),
        Column("step", "ms", "step_seconds", MILLISECONDS),
        Column("all", "ms", "seconds", MILLISECONDS),
        Column("tokens", "per s", "tokens_per_second", decimals(0)),
    )
    encode_seconds: float | None = None
    step_seconds: float | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    runs: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class SkippedRow(Record):
    """A source, a number of new tokens, or a file's source and beams that was not measured."""

    reason: str
    source: int | None = absent()
    new_tokens: int | None = absent()
    recipe: str | None = absent()
    build: str | None = absent()
    num_beams: int | None = absent()

    def __str__(self) -> str:
        if self.new_tokens is not None:
            return f"{self.new_tokens} new tokens are too many: {self.reason}."
        whose = "Source"
        if self.num_beams is not None:
            name = named(self.recipe, self.build)
            whose = f"{name} with {counted(self.num_beams, 'beam')}: source"
        return f"{whose} {self.source} was skipped: {self.reason}."


@dataclasses.dataclass(frozen=True)
class Subject(Record):
    """The artifact that a report is of."""

    preset: str
    parameter_count: int

    @classmethod
    def of(cls, artifact: Artifact) -> "Subject":
        """Return what a report says of an artifact."""
        return cls(artifact.manifest.preset, artifact.manifest.parameter_count)

    def on(self, machine: Machine) -> str:
        """Return what was measured and where, in words."""
        return f"{self.preset} on {machine.processor}, {counted(machine.cores or 0, 'core')}"


@dataclasses.dataclass(frozen=True)
class Settings(Record):
    """What is the same for all rows of a report."""

    new_tokens: int
    num_threads: tuple[int, ...]
    runs: int


@dataclasses.dataclass(frozen=True)
class Report(Record):
    """What `bart-export bench` measures of an artifact's files, and prints with `--json`."""

    schema_version: int
    artifact: Subject
    machine: Machine
    settings: Settings
    files: tuple[FileRow, ...]
    openings: tuple[OpeningRow, ...]
    memory: tuple[MemoryRow, ...]
    generation: tuple[GenerationRow, ...]
    skipped: tuple[SkippedRow, ...]

    def rows(self) -> dict[tuple[object, ...], Row]:
        """Return all rows that have figures, by their list and keys."""
        rows = (*self.files, *self.openings, *self.memory, *self.generation)
        return {(row.list_name, *row.keys().values()): row for row in rows}

    def tables(self) -> Group:
        """Return the report for a terminal: a table of each list, and notes."""
        settings = self.settings
        tokens, runs = counted(settings.new_tokens, "new token"), counted(settings.runs, "run")
        notes = list(map(str, self.skipped))
        if any(row.opening == "cold" and row.seconds is None for row in self.openings):
            notes.append("Cold openings are unknown: the system kept the files in its memory.")
        openings = "From the path to a model ready to run, and to its first text, in ms"
        memory = "Memory of a process beside another with the same file"
        return Group(
            table(self.artifact.on(self.machine), FileRow.COLUMNS, self.files),
            opening_table(openings, self.openings, MILLISECONDS),
            table(memory, MemoryRow.COLUMNS, self.memory),
            table(f"{tokens}, median of {runs}", GenerationRow.COLUMNS, self.generation),
            *notes,
        )


def opening_table(title: str, rows: Iterable[OpeningRow], show: Show) -> Table:
    """Return a table with a line for each file and number of threads."""
    found: dict[tuple[str, int], dict[tuple[str, str], float | None]] = {}
    for row in rows:
        cells = found.setdefault((row.name, row.num_threads), {})
        cells[row.opening, row.until] = row.seconds
    stages = {"generator": "ready", "text": "text"}  # as a head has them
    columns = [(opening, until) for until in stages for opening in ("first", "cold", "warm")]
    return filled(
        title,
        ("recipe", "threads", *(f"{opening}\n{stages[until]}" for opening, until in columns)),
        [
            (name, str(threads), *(show(cells.get(column)) for column in columns))
            for (name, threads), cells in found.items()
        ],
    )


LISTS: dict[str, type[Row]] = {
    kind.list_name: kind for kind in (FileRow, OpeningRow, MemoryRow, GenerationRow)
}


def read(path: pathlib.Path) -> Report:
    """Read a report that `bart-export bench --json` printed.

    Raises:
        InputError: for a file that cannot be read, is no report, or is one of another schema.
    """
    try:
        report = documents.parse_json(documents.read_bounded(path, 64 * documents.MEBIBYTE))
    except OSError as error:
        raise InputError(f"Cannot read the report {path}: {error.strerror}.") from error
    except ValueError:
        report = None
    version = report.get("schema_version") if isinstance(report, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} must be a report of bart-export bench --json of schema version "
            f"{SCHEMA_VERSION}, received {'one of ' if version else ''}{version or 'none'}. "
            "Measure again with this version of bart-export."
        )
    try:
        return Report.from_dict(report)
    except ValueError as error:
        raise InputError(f"{path} is no whole report: {error}. Measure again.") from None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A report beside another.

    `ratios` are the rows that both have, each figure as a multiple of the other's, None where one
    does not have it. `only_here` and `only_there` are the rows without a partner.
    """

    other: Report
    ratios: Sequence[Row]
    only_here: Sequence[Row]
    only_there: Sequence[Row]

    def to_dict(self) -> dict[str, object]:
        """Return the comparison as JSON has it."""
        lists: dict[str, list[object]] = {name: [] for name in LISTS}
        for row in self.ratios:
            lists[row.list_name].append(row.keys() | row.figures())
        only = {
            side: [{"list": row.list_name} | row.keys() for row in rows]
            for side, rows in (("only_here", self.only_here), ("only_there", self.only_there))
        }
        about = {"artifact": self.other.artifact, "machine": self.other.machine}
        return {**{name: record.to_dict() for name, record in about.items()}, **lists, **only}

    def tables(self) -> Group:
        """Return the comparison for a terminal: a table of each list, and what has no partner."""
        other = self.other.artifact.on(self.other.machine)
        parts: list[Table | str] = [f"Figures as multiples of those of {other}:"]
        for name, kind in LISTS.items():
            if kind is OpeningRow:
                openings = [row for row in self.ratios if isinstance(row, OpeningRow)]
                parts.append(opening_table("Openings", openings, MULTIPLE))
                continue
            columns = [
                dataclasses.replace(column, unit="", show=MULTIPLE) if column.is_figure else column
                for column in kind.COLUMNS
            ]
            rows = [row for row in self.ratios if row.list_name == name]
            parts.append(table(name.capitalize(), columns, rows))
        if self.only_here:
            parts.append(
                without_partner(self.only_here, self.only_there, self.ratios, "this report")
            )
        if self.only_there:
            parts.append(without_partner(self.only_there, self.only_here, self.ratios, "the other"))
        return Group(*parts)


def without_partner(
    rows: Sequence[Row], others: Sequence[Row], ratios: Sequence[Row], where: str
) -> str:
    """Return how many rows of one report have no partner, and which values only they have."""
    known = {pair for row in (*others, *ratios) for pair in row.keys().items()}
    alone: dict[str, list[str]] = {}
    for name, value in dict.fromkeys(pair for row in rows for pair in row.keys().items()):
        if (name, value) not in known:
            alone.setdefault(name, []).append(str(value))
    reasons = "; ".join(f"{name} {', '.join(values)}" for name, values in alone.items())
    have = f"{len(rows)} rows of {where} have" if len(rows) > 1 else f"1 row of {where} has"
    return f"{have} no partner{f': {reasons}' if reasons else ''}."


def compare(report: Report, other: Report) -> Comparison:
    """Compare the figures of a report with another's, row by row."""
    here, there = report.rows(), other.rows()
    ratios = []
    for key, row in here.items():
        if key in there:
            others = there[key].figures()
            figures = {name: ratio(value, others[name]) for name, value in row.figures().items()}
            ratios.append(dataclasses.replace(row, **figures))  # type: ignore[arg-type]
    only_here = [row for key, row in here.items() if key not in there]
    only_there = [row for key, row in there.items() if key not in here]
    return Comparison(other, ratios, only_here, only_there)


def ratio(here: float | None, there: float | None) -> float | None:
    """Return how many times `there` a figure is, None where that is nothing or not known."""
    return None if here is None or not there else here / there
