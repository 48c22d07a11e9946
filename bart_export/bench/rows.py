"""The rows of a benchmark report, as JSON and as tables."""

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
from bart_export.documents import Record, absent, dataclass
from bart_export.errors import InputError
from bart_export.progress import plural, text_table

# Version 1 had one number of threads, and openings by file. Version 2 (2026-11) has rows by threads
# and build, cold openings, and memory.
SCHEMA_VERSION = 2
COLUMN = "column"
Show = Callable[[Any], str]


def decimals(digits: int, scale: float = 1) -> Show:
    """Return a formatter of figures; None becomes a dash."""
    return lambda value: "–" if value is None else f"{value * scale:.{digits}f}"


MILLISECONDS, MEGABYTES, MULTIPLE = decimals(1, 1e3), decimals(0, 1e-6), decimals(2)
PERCENT, PER_SECOND = decimals(0, 100), decimals(0)


@dataclasses.dataclass(frozen=True)
class Column:
    """A row field's table column, hidden if `head` is empty; `field` names a field to show instead.

    Columns with their own `show` have figures; the others identify the row.
    """

    head: str
    unit: str
    show: Show
    field: str

    @property
    def is_figure(self) -> bool:
        """Whether the column has figures, rather than identifying the row."""
        return self.show is not str


def column(head: str = "", unit: str = "", show: Show = str, field: str = "") -> dict[str, Column]:
    """Return the metadata that gives a dataclass field a column."""
    return {COLUMN: Column(head, unit, show, field)}


def columns(kind: type[Any]) -> dict[str, Column]:
    """Return the columns of a class of rows, by field name."""
    fields = dataclasses.fields(kind)
    return {field.name: field.metadata[COLUMN] for field in fields if COLUMN in field.metadata}


def table(title: str, kind: type[Any], rows: Iterable[object], show: Show | None = None) -> Table:
    """Return a table of rows; `show` overrides how columns format figures."""
    shown = {
        column.field or name: dataclasses.replace(column, unit="", show=show)
        if show and column.is_figure
        else column
        for name, column in columns(kind).items()
        if column.head
    }
    heads = [f"{column.head}\n{column.unit}".strip() for column in shown.values()]
    lines = [[column.show(getattr(row, name)) for name, column in shown.items()] for row in rows]
    return text_table(title, heads, lines)


def file_label(recipe: str | None, build: str | None) -> str:
    """Return a file's name in tables and messages."""
    return f"{recipe}" if build == "dynamic" else f"{recipe} ({build})"


@dataclass(frozen=True)
class Row(Record):
    """A row about a file of a "dynamic" or "static" `build`, in the report's list `list_name`."""

    list_name: ClassVar[str]
    recipe: str = field(metadata=column("recipe", field="name"))
    build: str = field(metadata=column())

    @property
    def name(self) -> str:
        """The file's name in a table."""
        return file_label(self.recipe, self.build)

    def keys(self) -> dict[str, object]:
        """Return the fields that identify the row."""
        return self.fields(figures=False)

    def figures(self) -> dict[str, float | None]:
        """Return the figures by field name."""
        return self.fields(figures=True)

    def fields(self, figures: bool) -> dict[str, Any]:
        """Return the fields whose columns have figures, or those that identify the row."""
        return {
            name: getattr(self, name)
            for name, column in columns(type(self)).items()
            if column.is_figure == figures
        }


@dataclass(frozen=True)
class FileRow(Row):
    """The size of a file."""

    list_name = "files"
    file: str
    bytes: float = field(metadata=column("size", "MB", decimals(1, 1e-6)))
    bytes_per_parameter: float = field(metadata=column("bytes", "a weight", decimals(3)))


@dataclass(frozen=True)
class OpeningRow(Row):
    """The cost of a "first", "cold" or "warm" opening; see `opening_cost.Figures`."""

    list_name = "openings"
    num_threads: int = field(metadata=column())
    opening: str = field(metadata=column())
    until: str = field(metadata=column())
    seconds: float | None = field(default=None, metadata=column("time", "ms", MILLISECONDS))
    private_bytes: float | None = None
    shared_bytes: float | None = None
    process_private_bytes: float | None = None
    peak_bytes: float | None = None
    built_weight_cache: bool | None = None


@dataclass(frozen=True)
class WorkRow(Row):
    """A row about a file that generates."""

    num_threads: int = field(metadata=column("threads"))
    source: int = field(metadata=column("source"))
    num_beams: int = field(metadata=column("beams"))
    new_tokens: int = field(metadata=column())


@dataclass(frozen=True)
class MemoryRow(WorkRow):
    """The memory of a process that generates with a file that another process has open, too."""

    list_name = "memory"
    private_bytes: float | None = field(metadata=column("private", "MB", MEGABYTES))
    shared_bytes: float | None = field(metadata=column("shared", "MB", MEGABYTES))


@dataclass(frozen=True)
class GenerationRow(WorkRow):
    """The speed of a file: medians of an encoder call, a decoder call and a complete generation."""

    list_name = "generation"
    encode_seconds: float | None = field(
        default=None, metadata=column("encode", "ms", MILLISECONDS)
    )
    step_seconds: float | None = field(default=None, metadata=column("step", "ms", MILLISECONDS))
    seconds: float | None = field(default=None, metadata=column("all", "ms", MILLISECONDS))
    tokens_per_second: float | None = field(
        default=None, metadata=column("tokens", "per s", PER_SECOND)
    )
    runs: tuple[float, ...] = ()


@dataclass(frozen=True)
class ThroughputRow(WorkRow):
    """The speed with several texts at a time: medians of complete generations.

    `encode_share`, `decode_share` and `search_share` are fractions of the time; the rest is
    detokenization and the caller's. `peak_bytes` is the peak memory of a process that generates.
    """

    list_name = "throughput"
    num_texts: int = field(metadata=column("texts"))
    tokens_per_second: float | None = field(
        default=None, metadata=column("tokens", "per s", PER_SECOND)
    )
    seconds_per_text: float | None = field(
        default=None, metadata=column("per text", "ms", MILLISECONDS)
    )
    encode_share: float | None = field(default=None, metadata=column("encode", "%", PERCENT))
    decode_share: float | None = field(default=None, metadata=column("decode", "%", PERCENT))
    search_share: float | None = field(default=None, metadata=column("search", "%", PERCENT))
    peak_bytes: float | None = field(default=None, metadata=column("peak", "MB", MEGABYTES))
    runs: tuple[float, ...] = ()


@dataclass(frozen=True)
class SkippedRow(Record):
    """A source length, number of new tokens, or configuration of a file that was not measured."""

    reason: str
    source: int | None = absent()
    new_tokens: int | None = absent()
    recipe: str | None = absent()
    build: str | None = absent()
    num_beams: int | None = absent()
    num_texts: int | None = absent()

    def __str__(self) -> str:
        if self.num_texts is not None:
            file, texts = file_label(self.recipe, self.build), plural(self.num_texts, "text")
            return f"{file} with {texts} was skipped: {self.reason}."
        if self.new_tokens is not None:
            return f"{self.new_tokens} new tokens were skipped: {self.reason}."
        if self.num_beams is None:
            return f"Source {self.source} was skipped: {self.reason}."
        work = f"{plural(self.num_beams, 'beam')}: source {self.source}"
        return f"{file_label(self.recipe, self.build)} with {work} was skipped: {self.reason}."


@dataclass(frozen=True)
class Subject(Record):
    """The measured artifact."""

    preset: str
    parameter_count: int

    @classmethod
    def of(cls, artifact: Artifact) -> "Subject":
        """Return the description of an artifact."""
        return cls(artifact.manifest.preset, artifact.manifest.parameter_count)

    def on(self, machine: Machine) -> str:
        """Return the artifact and the machine, for a title."""
        return f"{self.preset} on {machine.processor}, {plural(machine.cores or 0, 'core')}"


@dataclass(frozen=True)
class Settings(Record):
    """The settings of all rows of a report."""

    new_tokens: int
    num_threads: tuple[int, ...]
    runs: int


@dataclass(frozen=True)
class Report(Record):
    """The measurements of an artifact's files, as `bart-export bench --json` prints them."""

    schema_version: int
    artifact: Subject
    machine: Machine
    settings: Settings
    files: tuple[FileRow, ...]
    openings: tuple[OpeningRow, ...]
    memory: tuple[MemoryRow, ...]
    generation: tuple[GenerationRow, ...]
    skipped: tuple[SkippedRow, ...]
    throughput: tuple[ThroughputRow, ...] = ()

    def rows(self) -> dict[tuple[object, ...], Row]:
        """Return all rows with figures, by list name and keys."""
        rows = (*self.files, *self.openings, *self.memory, *self.generation, *self.throughput)
        return {(row.list_name, *row.keys().values()): row for row in rows}

    def unmatched(self, other: "Report") -> list[Row]:
        """Return the rows that another report lacks."""
        others = other.rows()
        return [row for key, row in self.rows().items() if key not in others]

    def tables(self) -> Group:
        """Return a table for each list, and notes."""
        settings = self.settings
        tokens, runs = plural(settings.new_tokens, "new token"), plural(settings.runs, "run")
        notes = list(map(str, self.skipped))
        if any(row.opening == "cold" and row.seconds is None for row in self.openings):
            notes.append("Cold openings are unknown: the system kept the files in its memory.")
        titles = {
            FileRow: self.artifact.on(self.machine),
            OpeningRow: "From the path to a model ready to run, and to its first text, in ms",
            MemoryRow: "Memory of a process while another has the same file open",
            GenerationRow: f"{tokens}, median of {runs}",
            ThroughputRow: f"Texts generated together: {tokens} each, median of {runs}",
        }
        return Group(*tables_of(self.rows().values(), titles), *notes)


def tables_of(
    rows: Collection[Row], titles: Mapping[type[Row], str], show: Show | None = None
) -> Iterator[Table]:
    """Yield a table for each class of rows; `show` overrides how columns format figures."""
    for kind, title in titles.items():
        chosen = [row for row in rows if isinstance(row, kind)]
        if kind is OpeningRow:
            openings = [row for row in chosen if isinstance(row, OpeningRow)]
            yield opening_table(title, openings, show or MILLISECONDS)
        elif chosen:
            yield table(title, kind, chosen, show)


def opening_table(title: str, rows: Iterable[OpeningRow], show: Show) -> Table:
    """Return a table with a line for each file and number of threads."""
    found: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in rows:
        line = found.setdefault((row.name, str(row.num_threads)), {})
        line[row.opening, row.until] = show(row.seconds)
    stages = {"generator": "ready", "text": "text"}  # and their heads
    columns = [(opening, until) for until in stages for opening in ("first", "cold", "warm")]
    heads = [f"{opening}\n{stages[until]}" for opening, until in columns]
    lines = [
        (*about, *(line.get(column, "–") for column in columns)) for about, line in found.items()
    ]
    return text_table(title, ("recipe", "threads", *heads), lines)


LISTS: dict[str, type[Row]] = {
    kind.list_name: kind for kind in (FileRow, OpeningRow, MemoryRow, GenerationRow, ThroughputRow)
}


def read(path: pathlib.Path) -> Report:
    """Read a report of `bart-export bench --json`, or raise InputError."""
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
            "Run the benchmark again with this version of bart-export."
        )
    try:
        return Report.from_dict(report)
    except ValueError as error:
        raise InputError(
            f"{path} is not a complete report: {error}. Run the benchmark again."
        ) from None
