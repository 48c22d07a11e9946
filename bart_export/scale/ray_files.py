"""Jobs of Ray Data from files to files: what is checked before the first task.

    check_places("/data/texts", "/data/headlines")
    settings = job_settings("artifacts/bart_mini_en", num_beams=4)
    rows = open_rows("/data/texts")
    ids, filesystem = open_checkpoint("/data/headlines", rows, settings)
    CheckpointConfig(
        "id", ids, override_filesystem=filesystem, delete_checkpoint_on_success=False
    )

`CheckpointConfig` treats rows without an id as new on every run, and skips rows whose id is done,
whatever their texts and the job's settings are. Locations are absolute paths or URLs that pyarrow
can open, such as s3://bucket/texts.
"""

import bisect
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bart_export.artifact.artifact import Artifact
from bart_export.config import check_flag
from bart_export.documents import Json, parse_json
from bart_export.errors import InputError, MissingExtra, printable, shown
from bart_export.locations import Location
from bart_export.runtime.engine_choice import choose_file
from bart_export.runtime.generator import call_settings
from bart_export.scale import place_of

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from pyarrow import json as pj
    from pyarrow.fs import FileSelector, FileSystem, FileType, SubTreeFileSystem
except ImportError:
    raise MissingExtra("A job of Ray Data", "pyarrow", "ray") from None

ID, TEXT = "id", "text"
PARQUET, JSON_LINES = "parquet", "json"
ID_KINDS = {pa.int64(): "integers", pa.string(): "strings"}
# Arrow detects compression by these suffixes, and not by .GZ.
ROWS = re.compile(r"\.((?i:jsonl|ndjson|json)(?:\.(?:gz|zst|lz4))?|(?i:parquet))$")
HIDDEN = re.compile(r"/[._]")
BLOCK = 1 << 22  # bytes of JSON that are parsed together; no row may be longer
BLANK = b" \t\r\n\xef\xbb\xbf"  # the last three are a byte order mark
DEEPEST = 500  # Arrow's reader ends the process with a segmentation fault at some thousands
NO_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[^\[\]{}"]+', re.DOTALL)  # strings, and anything else
SETTINGS_LIMIT = 1 << 16  # bytes
CHECKPOINT, IDS = ".checkpoint", "ids"
PENDING = ".pending"  # Ray's mark of ids whose rows are perhaps not written


def check_places(source: str, output: str) -> None:
    """Raise InputError if a source and an output are one place, or one is inside the other."""
    read, written = f"{place_of(source)}/", f"{place_of(output)}/"
    if read.startswith(written) or written.startswith(read):
        raise InputError(
            f"The output must not be the input, or inside it, or contain it, received {output} "
            f"for {source}: choose another output."
        )


def job_settings(location: Location, truncate: bool = False, **parameters: Any) -> dict[str, Json]:
    """Return what decides the results of a job: the model of an artifact, and all settings.

    Raises:
        ArtifactError: if the artifact cannot be opened, or has no `.tflite` file.
        ConfigurationError: if a parameter does not exist or is out of range.
        InputError: if `max_length` is too large for the model.
    """
    check_flag("truncate", truncate)
    artifact = Artifact.open(location)
    settings = call_settings(artifact.generation, artifact.config, **parameters)
    model = artifact.manifest.files[choose_file(artifact, None, None)]
    return {"model": model.sha256, "truncate": truncate, **settings.to_dict()}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Files with rows in one format, and the types that all of them are read with."""

    files: list[str]
    filesystem: FileSystem
    format: str  # PARQUET or JSON_LINES
    schema: pa.Schema
    count: int  # of rows

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of Ray's `read_parquet` or `read_json`, according to the format.

        Without them, Ray infers types from each file, and adds columns for directories like id=9.
        """
        where = {"filesystem": self.filesystem, "file_extensions": None, "partitioning": None}
        if self.format == PARQUET:
            return {**where, "schema": self.schema}
        return {**where, "parse_options": pj.ParseOptions(explicit_schema=self.schema)}


def open_rows(source: str) -> Rows | None:
    """Open the JSON Lines or Parquet files of a source; return None if they have no rows.

    A source is a file, or a directory, of which the files in one of these formats are read, except
    hidden ones, whose names or directories begin with "." or "_". Each row needs a text, and an id
    that no other row has. A column whose types differ has one that includes them, such as int64 for
    int32 and int64.

    Raises:
        InputError: if the source does not exist, or has no such files, or files of both formats, or
            one that cannot be read, or strings of JSON that are not UTF-8; if ids are null,
            duplicate, or neither integers of 64 bits nor strings; if texts are not strings; if no
            type includes those of a column.
    """
    with one_line_errors(source):
        filesystem, path = FileSystem.from_uri(source)
        found = filesystem.get_file_info(path := path.rstrip("/"))
        if found.type == FileType.NotFound:
            raise InputError(f"{source} does not exist: give a file, or a directory with files.")
        inside = FileSelector(path, recursive=True)
        each = filesystem.get_file_info(inside) if found.type == FileType.Directory else [found]
        visible = [
            file for file in each if file.is_file and not HIDDEN.search(file.path[len(path) :])
        ]
        readable = [
            (file, match[1].lower()) for file in visible if (match := ROWS.search(file.path))
        ]
        formats = {PARQUET if suffix == PARQUET else JSON_LINES for _, suffix in readable}
        if len(formats) != 1:
            names = [file.base_name for file in visible] or "no file"
            raise InputError(
                f"{source} must be JSON Lines (.jsonl) or .parquet, or a directory with files of "
                f"one of these formats, received {shown(names)}."
            )
        (kind,) = formats
        read = functools.partial(READERS[kind], filesystem)
        paths = sorted(file.path for file, _ in readable if file.size != 0)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            parts = [part for file in pool.map(read, paths) for part in file if len(part.ids)]
        if not parts:
            return None
        schema = pa.unify_schemas([part.schema for part in parts], promote_options="permissive")
        check_columns(source, schema)
        check_ids(source, [part.ids.cast(schema.field(ID).type) for part in parts])
        files = list(dict.fromkeys(part.path for part in parts))
        return Rows(files, filesystem, kind, schema, sum(len(part.ids) for part in parts))


class Part(NamedTuple):
    """Some rows of a file: the types of their columns, and their ids."""

    path: str
    schema: pa.Schema
    ids: pa.ChunkedArray


def parquet_parts(filesystem: FileSystem, path: str) -> list[Part]:
    """Return a Parquet file as a part."""
    with one_line_errors(path), pq.ParquetFile(path, filesystem=filesystem) as file:
        return [part_of(path, file.schema_arrow, file.read([ID]))]


def json_parts(filesystem: FileSystem, path: str) -> list[Part]:
    """Return the blocks of JSON Lines as parts, after a check that their strings are UTF-8."""
    parts, options = [], pj.ReadOptions(block_size=2 * BLOCK)
    with one_line_errors(path), filesystem.open_input_stream(path) as file:
        for block in blocks_of(path, file):
            if any(map(is_deep, block.splitlines())):
                raise InputError(
                    f"Lists and objects of {path} must be nested {DEEPEST} times at most."
                )
            rows = pj.read_json(pa.BufferReader(block), options)
            schema = pa.schema(as_written(pa.struct(rows.schema)))
            if schema != rows.schema:
                explicit = pj.ParseOptions(explicit_schema=schema)
                rows = pj.read_json(pa.BufferReader(block), options, explicit)
            rows.validate(full=True)
            parts.append(part_of(path, schema, rows))
    return parts


READERS = {PARQUET: parquet_parts, JSON_LINES: json_parts}


def blocks_of(path: str, file: pa.NativeFile) -> Iterator[bytes]:
    """Yield the lines of a file, about `BLOCK` bytes at a time, unless they are blank."""
    rest = b""
    while read := file.read(BLOCK):
        lines, _, rest = (rest + read).rpartition(b"\n")
        if len(rest) > BLOCK:
            raise InputError(f"Each row of {path} must be shorter than {BLOCK} bytes.")
        if lines.lstrip(BLANK):
            yield lines
    if rest.lstrip(BLANK):
        yield rest


def is_deep(line: bytes) -> bool:
    """Return whether a line of JSON is nested more than `DEEPEST` times."""
    if line.count(b"[") + line.count(b"{") <= DEEPEST:
        return False
    steps = (1 if bracket in b"[{" else -1 for bracket in NO_BRACKET.sub(b"", line))
    return max(itertools.accumulate(steps), default=0) > DEEPEST


def part_of(path: str, schema: pa.Schema, rows: pa.Table) -> Part:
    """Return a part with integers of one type, and strings of one type, as ids and texts."""
    fields = [
        field.with_type(plain_type(field.type)) if field.name in (ID, TEXT) else field
        for field in schema
    ]
    ids = rows[ID] if ID in rows.schema.names else pa.chunked_array([pa.nulls(len(rows))])
    return Part(path, pa.schema(fields), ids)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type for all integers or strings, or else the same type."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(kind):
        return pa.int64()
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return pa.string() if any(is_text(kind) for is_text in texts) else kind


def as_written(kind: pa.DataType) -> pa.DataType:
    """Return a type of JSON without timestamps, as which Arrow reads strings that are dates."""
    if pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(as_written(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(as_written(field.type)) for field in kind])
    return kind


def check_columns(source: str, schema: pa.Schema) -> None:
    """Raise InputError unless there are columns for ids and texts, of their types."""
    if not {ID, TEXT} <= {*schema.names}:
        raise InputError(
            f"The rows of {source} must have {ID!r} and {TEXT!r}, received {shown(schema.names)}."
        )
    kinds = [schema.field(name).type for name in (ID, TEXT)]
    if kinds[0] not in ID_KINDS or kinds[1] != pa.string():
        raise InputError(
            f"The rows of {source} must have integers of 64 bits or strings as {ID!r}, and strings "
            f"as {TEXT!r}, received {kinds[0]} and {kinds[1]}."
        )


def check_ids(source: str, parts: list[pa.ChunkedArray]) -> None:
    """Raise InputError if an id is null or duplicate."""
    ids = pa.chunked_array([chunk for part in parts for chunk in part.chunks])
    if ids.null_count:
        number = pc.index(ids.is_null(), True).as_py() + 1
        raise InputError(f"Each row of {source} must have an id, but row {number} has none.")
    counts = pc.value_counts(ids)
    for value in counts.filter(pc.greater(counts.field("counts"), 1)).slice(0, 1).to_pylist():
        raise InputError(
            f"Ids must be unique, but {value['counts']} rows of {source} have the id "
            f"{shown(value['values'])}."
        )


def open_checkpoint(
    output: str, rows: Rows, settings: Mapping[str, Json]
) -> tuple[str, FileSystem]:
    """Return the directory for the ids that are done, and the file system of OUTPUT.checkpoint.

    Of a longer path, Ray would read a directory such as id=9 as the id of all rows, and not parse
    a URL's query. The settings are stored beside the ids, and compared at the next run.

    Raises:
        InputError: if the output was begun with other settings or another kind of ids, or if it has
            not exactly the files that its checkpoint lists.
    """
    given = {**settings, ID: ID_KINDS[rows.schema.field(ID).type]}
    with one_line_errors(output):
        filesystem, path = FileSystem.from_uri(output)
        path = path.rstrip("/")
        checkpoint = f"{path}{CHECKPOINT}"
        ids, record = f"{checkpoint}/{IDS}", f"{checkpoint}/settings.json"
        over = f"delete {output} and {checkpoint} to start over"
        begun = names_in(filesystem, ids)
        check_files(output, filesystem, path, begun)
        found = read_settings(filesystem, record) if begun else given
        if found is None:
            raise InputError(
                f"{record} cannot be read: put back what was moved or deleted, choose another "
                f"output, or {over}."
            )
        changed = [name for name in given if found.get(name, ...) != given[name]]
        if changed:
            before, now = ({name: each.get(name) for name in changed} for each in (found, given))
            raise InputError(
                f"{output} was begun with {shown(before)}, received {shown(now)}: give the same, "
                f"choose another output, or {over}."
            )
        filesystem.create_dir(checkpoint, recursive=True)
        with filesystem.open_output_stream(record) as file:
            file.write(json.dumps(given).encode())
    return IDS, SubTreeFileSystem(checkpoint, filesystem)


def check_files(output: str, filesystem: FileSystem, path: str, begun: list[str]) -> None:
    """Raise InputError unless an output has the files that its checkpoint lists, and no others.

    No message advises to delete an output that may have files of another origin.
    """
    stems = sorted(name.removesuffix(PENDING) for name in begun)
    unknown, missing = [], {*begun} & {*stems}  # pending files may be missing
    for name in names_in(filesystem, path):
        stem = stems[bisect.bisect(stems, name) - 1] if stems else name
        missing.discard(stem)
        unknown += [name] * (not stems or not name.startswith(stem))
    checkpoint = f"{path}{CHECKPOINT}"
    if unknown and filesystem.get_file_info(checkpoint).type == FileType.NotFound:
        raise InputError(
            f"{output} already contains {unknown[0]}, and has no checkpoint: choose another output."
        )
    if unknown:
        raise InputError(
            f"{unknown[0]} in {output} is not in its checkpoint {checkpoint}: put back what was "
            "moved or deleted, or choose another output."
        )
    if missing:
        raise InputError(
            f"The checkpoint {checkpoint} lists {min(missing)}, but it is missing from {output}: "
            f"put back what was moved or deleted, or delete {output} and {checkpoint} to start "
            "over."
        )


def names_in(filesystem: FileSystem, path: str) -> list[str]:
    """Return the names of the visible files in a directory, without `.parquet`."""
    found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    names = [file.base_name.removesuffix(f".{PARQUET}") for file in found]
    return [name for name in names if not HIDDEN.match(f"/{name}")]


def read_settings(filesystem: FileSystem, path: str) -> dict[str, Json] | None:
    """Return stored settings, or None if they cannot be read."""
    with contextlib.suppress(OSError, ValueError), filesystem.open_input_stream(path) as file:
        found = parse_json(file.read(SETTINGS_LIMIT))
        return found if isinstance(found, dict) else None
    return None


@contextlib.contextmanager
def one_line_errors(place: str) -> Iterator[None]:
    """Raise InputError for errors of pyarrow's readers and file systems.

    A name that a schema has twice is a KeyError.
    """
    try:
        yield
    except (OSError, KeyError, UnicodeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()).rpartition("file?: ")[2]
        raise InputError(f"{place} cannot be used: {printable(reason, 300)}") from error
