"""The rows of a benchmark's report: as JSON, as tables, and as multiples of another report's."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any, ClassVar

from rich.console import Group
from rich.table import Table

from bart_export import documents
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.figures import Machine
from bart_export.documents import Record, absent
from bart_export.errors import InputError
from bart_export.progress import counted, filled

# History of the report: 1 had a number of threads for all rows, and openings by file; 2 (2026-11)
# has rows by threads and builds, cold openings, and memory.
SCHEMA_VERSION = 2
COLUMN = "column"
Show = Callable[[Any], str]


def decimals(digits: int, scale: float = 1) -> Show:
    """Return what writes a figure into a table, a dash for none."""
    return lambda value: "–" if value is None else f"{value * scale:.{digits}f}"


MILLISECONDS, MEGABYTES, MULTIPLE = decimals(1, 1e3), decimals(0, 1e-6), decimals(2)


@dataclasses.dataclass(frozen=True)
class Column:
    """How a table has a field of its rows: under a head and a unit, or not at all without a head.

    A column with a `show` of its own is of figures, the others tell what was measured. `field` is
    what is shown in place of the field itself.
    """

    head: str
    unit: str
    show: Show
    field: str

    @property
    def is_figure(self) -> bool:
        """Whether the column has a figure, and not what was measured."""
        return self.show is not str


def column(head: str = "", unit: str = "", show: Show = str, field: str = "") -> dict[str, Column]:
    """Return the metadata of a field that has a column."""
    return {COLUMN: Column(head, unit, show, field)}


def columns(kind: type[Any]) -> dict[str, Column]:
    """Return the columns of a kind of row, by the names of their fields."""
    fields = dataclasses.fields(kind)
    return {field.name: field.metadata[COLUMN] for field in fields if COLUMN in field.metadata}


def table(title: str, kind: type[Any], rows: Iterable[object], show: Show | None = None) -> Table:
    """Return a table with a line for each row; `show` writes all figures, None as columns say."""
    shown = {
        column.field or name: dataclasses.replace(column, unit="", show=show)
        if show and column.is_figure
        else column
        for name, column in columns(kind).items()
        if column.head
    }
    heads = [f"{column.head}\n{column.unit}".strip() for column in shown.values()]
    lines = [[column.show(getattr(row, name)) for name, column in shown.items()] for row in rows]
    return filled(title, heads, lines)


def named(recipe: str | None, build: str | None) -> str:
    """Return how a table calls a file."""
    return f"{recipe}" if build == "dynamic" else f"{recipe} ({build})"


@dataclasses.dataclass(frozen=True)
class Row(Record):
    """A row about a file: its recipe, and its build, "dynamic" or "static".

    `list_name` is the list of a report that rows of a kind are in.
    """

    list_name: ClassVar[str]
    recipe: str = field(metadata=column("recipe", field="name"))
    build: str = field(metadata=column())

    @property
    def name(self) -> str:
        """How a table calls the file."""
        return named(self.recipe, self.build)

    def keys(self) -> dict[str, object]:
        """Return the fields that tell what was measured."""
        found = columns(type(self)).items()
        return {name: getattr(self, name) for name, column in found if not column.is_figure}

    def place(self) -> dict[str, object]:
        """Return which row of which list of a report it is."""
        return {"list": self.list_name} | self.keys()

    def figures(self) -> dict[str, float | None]:
        """Return the fields that are figures."""
        found = columns(type(self)).items()
        return {name: getattr(self, name) for name, column in found if column.is_figure}


@dataclasses.dataclass(frozen=True)
class FileRow(Row):
    """The size of a file."""

    list_name = "files"
    file: str
    bytes: float = field(metadata=column("size", "MB", decimals(1, 1e-6)))
    bytes_per_parameter: float = field(metadata=column("bytes", "a weight", decimals(3)))


@dataclasses.dataclass(frozen=True)
class OpeningRow(Row):
    """What it takes to reach a stage of an opening; see `opening.Figures`.

    `opening` is "first", "cold" or "warm"; `seconds` is None for a cold one that is not known.
    """

    list_name = "openings"
    num_threads: int = field(metadata=column())
    opening: str = field(metadata=column())
    until: str = field(metadata=column())
    seconds: float | None = field(default=None, metadata=column("time", "ms", MILLISECONDS))
    private_bytes: float | None = None
    shared_bytes: float | None = None
    process_private_bytes: float | None = None
    built_weight_cache: bool | None = None


@dataclasses.dataclass(frozen=True)
class WorkRow(Row):
    """A row about a file that generates."""

    num_threads: int = field(metadata=column("threads"))
    source: int = field(metadata=column("source"))
    num_beams: int = field(metadata=column("beams"))
    new_tokens: int = field(metadata=column())


@dataclasses.dataclass(frozen=True)
class MemoryRow(WorkRow):
    """By how much a process grows that opens a file and generates, beside another with that file.

    `private_bytes` is what it has for itself, `shared_bytes` what it has in common with the other;
    None where the system does not say.
    """

    list_name = "memory"
    private_bytes: float | None = field(metadata=column("private", "MB", MEGABYTES))
    shared_bytes: float | None = field(metadata=column("shared", "MB", MEGABYTES))


@dataclasses.dataclass(frozen=True)
class GenerationRow(WorkRow):
    """The speed of a file: medians, and the seconds of all `runs`.

    `encode_seconds` is one call of the encoder with its buffers in place, `step_seconds` one call
    of the decoder, `seconds` all from source ids to generated ids.
    """

    list_name = "generation"
    encode_seconds: float | None = field(
        default=None, metadata=column("encode", "ms", MILLISECONDS)
    )
    step_seconds: float | None = field(default=None, metadata=column("step", "ms", MILLISECONDS))
    seconds: float | None = field(default=None, metadata=column("all", "ms", MILLISECONDS))
    tokens_per_second: float | None = field(
        default=None, metadata=column("tokens", "per s", decimals(0))
    )
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
        if self.num_beams is None:
            return f"Source {self.source} was skipped: {self.reason}."
        work = f"{counted(self.num_beams, 'beam')}: source {self.source}"
        return f"{named(self.recipe, self.build)} with {work} was skipped: {self.reason}."


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

    def only(self, other: "Report") -> list[Row]:
        """Return the rows that another report has not."""
        others = other.rows()
        return [row for key, row in self.rows().items() if key not in others]

    def tables(self) -> Group:
        """Return the report for a terminal: a table of each list, and notes."""
        settings = self.settings
        tokens, runs = counted(settings.new_tokens, "new token"), counted(settings.runs, "run")
        notes = list(map(str, self.skipped))
        if any(row.opening == "cold" and row.seconds is None for row in self.openings):
            notes.append("Cold openings are unknown: the system kept the files in its memory.")
        titles = {
            FileRow: self.artifact.on(self.machine),
            OpeningRow: "From the path to a model ready to run, and to its first text, in ms",
            MemoryRow: "Memory of a process beside another with the same file",
            GenerationRow: f"{tokens}, median of {runs}",
        }
        return Group(*tables_of(self.rows().values(), titles), *notes)


def tables_of(
    rows: Collection[Row], titles: Mapping[type[Row], str], show: Show | None = None
) -> Iterator[Table]:
    """Yield a table of each kind of row; `show` writes every figure, None as its column has it."""
    for kind, title in titles.items():
        if kind is OpeningRow:
            openings = [row for row in rows if isinstance(row, OpeningRow)]
            yield opening_table(title, openings, show or MILLISECONDS)
            continue
        yield table(title, kind, [row for row in rows if isinstance(row, kind)], show)


def opening_table(title: str, rows: Iterable[OpeningRow], show: Show) -> Table:
    """Return a table with a line for each file and number of threads."""
    found: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in rows:
        line = found.setdefault((row.name, str(row.num_threads)), {})
        line[row.opening, row.until] = show(row.seconds)
    stages = {"generator": "ready", "text": "text"}  # as a head has them
    columns = [(opening, until) for until in stages for opening in ("first", "cold", "warm")]
    heads = [f"{opening}\n{stages[until]}" for opening, until in columns]
    lines = [
        (*about, *(line.get(column, "–") for column in columns)) for about, line in found.items()
    ]
    return filled(title, ("recipe", "threads", *heads), lines)


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
    """The report `here` beside another, `there`."""

    here: Report
    there: Report

    def ratios(self) -> list[Row]:
        """Return the rows that both have, each figure as a multiple of the other's."""
        others = self.there.rows()
        return [
            multiple(row, others[key]) for key, row in self.here.rows().items() if key in others
        ]

    def to_dict(self) -> dict[str, object]:
        """Return the comparison as JSON has it."""
        lists: dict[str, list[object]] = {name: [] for name in LISTS}
        for row in self.ratios():
            lists[row.list_name].append(row.keys() | row.figures())
        return {
            "artifact": self.there.artifact.to_dict(),
            "machine": self.there.machine.to_dict(),
            **lists,
            "only_here": [row.place() for row in self.here.only(self.there)],
            "only_there": [row.place() for row in self.there.only(self.here)],
        }

    def tables(self) -> Group:
        """Return the comparison for a terminal: a table of each list, and what has no partner."""
        titles = {kind: name.capitalize() for name, kind in LISTS.items()}
        return Group(
            f"Figures as multiples of those of {self.there.artifact.on(self.there.machine)}:",
            *tables_of(self.ratios(), titles, MULTIPLE),
            *without_partner(self.here, self.there, "this report"),
            *without_partner(self.there, self.here, "the other"),
        )


def multiple(row: Row, other: Row) -> Row:
    """Return a row of multiples of another's figures, None where one is nothing or not known."""
    ratios: dict[str, Any] = {
        name: None if figure is None or not of else figure / of
        for (name, figure), of in zip(row.figures().items(), other.figures().values(), strict=True)
    }
    return dataclasses.replace(row, **ratios)


def without_partner(report: Report, other: Report, where: str) -> Iterator[str]:
    """Yield how many rows of a report the other lacks, if any, and which values only they have."""
    rows = report.only(other)
    known = {pair for row in other.rows().values() for pair in row.keys().items()}
    alone: dict[str, list[str]] = {}
    for name, value in dict.fromkeys(pair for row in rows for pair in row.keys().items()):
        if (name, value) not in known:
            alone.setdefault(name, []).append(str(value))
    reasons = "; ".join(f"{name} {', '.join(values)}" for name, values in alone.items())
    have = f"{len(rows)} rows of {where} have" if len(rows) > 1 else f"1 row of {where} has"
    if rows:
        yield f"{have} no partner{f': {reasons}' if reasons else ''}."
