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
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bart_export.artifact.artifact import Artifact
from bart_export.documents import Json, parse_json
from bart_export.errors import InputError, MissingExtra, printable, shown
from bart_export.locations import Location
from bart_export.runtime.engine_choice import choose_file
from bart_export.runtime.generator import call_settings
from bart_export.scale import place_of

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as pd
    from pyarrow import json as pj
    from pyarrow.fs import FileSelector, FileSystem, FileType
except ImportError:
    raise MissingExtra("A job of Ray Data", "pyarrow", "ray") from None

ID, TEXT = "id", "text"
PARQUET = "parquet"
ROWS = re.compile(r"\.((?:jsonl|ndjson|json)(?:\.(?:gz|br|zst|lz4))?|parquet)$", re.IGNORECASE)
HIDDEN = re.compile(r"/[._]")
BLOCK = 1 << 22  # bytes of JSON that are parsed together; no row may be longer
BLANK = b" \t\r\n\xef\xbb\xbf"  # the last three are a byte order mark
SETTINGS_LIMIT = 1 << 16  # bytes
CHECKPOINT = ".checkpoint"
PENDING = ".pending"  # Ray's mark of ids whose rows are perhaps not written


def check_places(source: str, output: str) -> None:
    """Raise InputError if a source and an output are one place, or one is inside the other."""
    read, written = f"{place_of(source)}/", f"{place_of(output)}/"
    if read.startswith(written) or written.startswith(read):
        raise InputError(
            f"The output must not be the input, or inside it, or contain it, received {output} "
            f"for {source}: choose another output."
        )


def job_settings(location: Location, **parameters: Any) -> dict[str, Json]:
    """Return what decides the results of a job: the model of an artifact, and all settings.

    Raises:
        ArtifactError: if the artifact cannot be opened, or has no `.tflite` file.
        ConfigurationError: if a parameter does not exist or is out of range.
        InputError: if `max_length` is too large for the model.
    """
    artifact = Artifact.open(location)
    settings = call_settings(artifact.generation, artifact.config, **parameters)
    model = artifact.manifest.files[choose_file(artifact, None, None)]
    return {"model": model.sha256, **settings.to_dict()}


def open_rows(source: str) -> pd.FileSystemDataset | None:
    """Open the JSON Lines or Parquet files of a source; return None if they have no rows.

    A source is a file, or a directory, of which the files in one of these formats are read, except
    hidden ones, whose names or directories begin with "." or "_". Each row needs a text, and an id
    that no other row has.

    Raises:
        InputError: if the source does not exist, or has no such files, or files of both formats, or
            one that cannot be read, or strings of JSON that are not UTF-8; if ids are null,
            duplicate, or neither integers nor strings; if texts are not strings.
    """
    with one_line_errors(source):
        filesystem, path = FileSystem.from_uri(source)
        found = filesystem.get_file_info(path := path.rstrip("/"))
        if found.type == FileType.NotFound:
            raise InputError(f"{source} does not exist: give a file, or a directory with files.")
        inside = FileSelector(path, recursive=True)
        each = filesystem.get_file_info(inside) if found.type == FileType.Directory else [found]
        files = [
            file for file in each if file.is_file and not HIDDEN.search(file.path[len(path) :])
        ]
        readable = [(file, match[1].lower()) for file in files if (match := ROWS.search(file.path))]
        if len({suffix == PARQUET for _, suffix in readable}) != 1:
            names = [file.base_name for file in files] or "no file"
            raise InputError(
                f"{source} must be JSON Lines (.jsonl) or .parquet, or a directory with files of "
                f"one of these formats, received {shown(names)}."
            )
        options = pj.ReadOptions(block_size=BLOCK)
        paths = sorted(file.path for file, _ in readable if file.size != 0)
        kind = PARQUET
        if readable[0][1] != PARQUET:
            kind = pd.JsonFileFormat(read_options=options)
            paths = [path for path in paths if has_rows(filesystem, path)]
        if not paths:
            return None
        rows = pd.dataset(paths, filesystem=filesystem, format=kind)
        check_columns(source, rows.schema)
        return rows if check_ids(source, ids_of(rows)) else None


def has_rows(filesystem: FileSystem, path: str) -> bool:
    """Return whether a file of JSON Lines has a row; raise InputError if the first does not end.

    Without rows, Arrow's reader raises an error; if its first block of bytes has no line break, it
    returns nulls.
    """
    with filesystem.open_input_stream(path) as file:
        while block := file.read(BLOCK):
            if row := block.lstrip(BLANK):
                if b"\n" not in row:
                    raise InputError(
                        f"The first row of {path} must end with a line break, and be shorter than "
                        f"{BLOCK} bytes."
                    )
                return True
    return False


def check_columns(source: str, schema: pa.Schema) -> None:
    """Raise InputError unless there are columns for ids and texts, of their types."""
    if not {ID, TEXT} <= {*schema.names}:
        raise InputError(
            f"The rows of {source} must have {ID!r} and {TEXT!r}, received {shown(schema.names)}."
        )
    kinds = [schema.field(name).type for name in (ID, TEXT)]
    if id_kind(schema) is None or not is_text(kinds[1]):
        dates = any(map(pa.types.is_temporal, kinds))
        hint = " Arrow reads strings of JSON that are all dates as timestamps." if dates else ""
        raise InputError(
            f"The rows of {source} must have integers or strings as {ID!r}, and strings as "
            f"{TEXT!r}, received {kinds[0]} and {kinds[1]}.{hint}"
        )


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is that of strings."""
    return kind in (pa.string(), pa.large_string())


def id_kind(schema: pa.Schema) -> str | None:
    """Return the kind of ids, or None if they cannot be ids."""
    kind = schema.field(ID).type
    return "integers" if pa.types.is_integer(kind) else "strings" if is_text(kind) else None


def ids_of(rows: pd.Dataset) -> pa.ChunkedArray:
    """Return the ids of all rows; of JSON, check that strings are UTF-8, as its reader does not."""
    parquet = rows.format.default_extname == PARQUET
    ids = []
    for batch in rows.to_batches(columns=[ID] if parquet else None):
        batch.validate(full=True)
        ids.append(batch.column(ID))
    return pa.chunked_array(ids, rows.schema.field(ID).type)


def check_ids(source: str, ids: pa.ChunkedArray) -> int:
    """Return the number of ids, or raise InputError if one is null or duplicate."""
    if ids.null_count:
        number = pc.index(ids.is_null(), True).as_py() + 1
        raise InputError(f"Each row of {source} must have an id, but row {number} has none.")
    counts = pc.value_counts(ids)
    for value in counts.filter(pc.greater(counts.field("counts"), 1)).slice(0, 1).to_pylist():
        raise InputError(
            f"Ids must be unique, but {value['counts']} rows of {source} have the id "
            f"{shown(value['values'])}."
        )
    return len(ids)


def open_checkpoint(
    output: str, rows: pd.FileSystemDataset, settings: Mapping[str, Json]
) -> tuple[str, FileSystem]:
    """Return the directory in OUTPUT.checkpoint for the ids that are done, and its file system.

    It is a path on that file system, because Ray would not parse the query of a URL. The settings
    are stored beside it, and compared at the next run.

    Raises:
        InputError: if the output was begun with other settings or another kind of ids, or if it has
            not exactly the files that its checkpoint lists.
    """
    given = {**settings, ID: id_kind(rows.schema)}
    with one_line_errors(output):
        filesystem, path = FileSystem.from_uri(output)
        path = path.rstrip("/")
        checkpoint = f"{path}{CHECKPOINT}"
        ids, record = f"{checkpoint}/ids", f"{checkpoint}/settings.json"
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
    return ids, filesystem


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
    """Raise InputError for errors of pyarrow's readers and file systems."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()).rpartition("file?: ")[2]
        raise InputError(f"{place} cannot be used: {printable(reason, 300)}") from error
