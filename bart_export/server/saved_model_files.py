"""Whether a SavedModel directory is whole, told from its files alone, without TensorFlow.

A version directory may be looked at while it is still being copied. A cut `saved_model.pb` shows in
the lengths that its protocol buffer declares; the assets and whether variables are needed stand in
it; how long each file of variables must be stands in `variables.index`, a table of sorted strings
as in LevelDB. Only lengths are held to each other: nothing is hashed, and no tensor is read.

Sources: TensorFlow's saved_model.proto, meta_graph.proto, saver.proto and tensor_bundle.proto for
the field numbers; LevelDB's doc/table_format.md for the table.
"""

import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

from bart_export import documents

# Field numbers, each within the message named.
META_GRAPHS = 2  # SavedModel
SAVER, ASSETS = 3, 6  # MetaGraphDef
RESTORE_OPERATION = 3  # SaverDef
FILENAME = 2  # AssetFileDef
NUMBER_OF_SHARDS = 1  # BundleHeaderProto
SHARD, OFFSET, SIZE = 3, 4, 5  # BundleEntryProto

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5  # wire types
FOOTER_BYTES = 48
TABLE_MAGIC = 0xDB4775248B80FB57
UNCOMPRESSED = 0
LARGEST_INDEX = 64 * documents.MEBIBYTE  # some hundred bytes a tensor


class Torn(Exception):
    """A file that ends early or is not there; `str()` says which."""


def problem(directory: pathlib.Path) -> str:
    """Return what a SavedModel directory lacks, or "" if it is whole."""
    try:
        check(directory)
    except Torn as torn:
        return str(torn)
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return ""


def check(directory: pathlib.Path) -> None:
    """Hold the lengths of a SavedModel's files to what they declare.

    Raises:
        Torn: for a file that is missing or too short.
        OSError: for one that cannot be read.
    """
    path = directory / "saved_model.pb"
    if not path.is_file():
        raise Torn("saved_model.pb is missing")
    assets: list[str] = []
    needs_variables = False
    with path.open("rb") as file:
        graphs = [
            place
            for number, place in fields(file, range(path.stat().st_size), path.name)
            if number == META_GRAPHS
        ]
        if not graphs:
            raise Torn("saved_model.pb has no graph")
        for graph in graphs:
            for number, place in fields(file, graph, path.name):
                if number == SAVER:
                    needs_variables |= bool(strings(file, place, RESTORE_OPERATION, path.name))
                elif number == ASSETS:
                    assets += strings(file, place, FILENAME, path.name)
    for name in assets:
        if not (directory / "assets" / name).is_file():
            raise Torn(f"assets/{name} is missing")
    if needs_variables:
        check_variables(directory / "variables")


def check_variables(directory: pathlib.Path) -> None:
    """Hold the files of variables to their index.

    Raises:
        Torn: for a file that is missing or too short.
    """
    index = directory / "variables.index"
    if not index.is_file():
        raise Torn("variables/variables.index is missing")
    for name, size in data_sizes(documents.read(index, LARGEST_INDEX)).items():
        path = directory / name
        if not path.is_file():
            raise Torn(f"variables/{name} is missing")
        if path.stat().st_size < size:
            raise Torn(f"variables/{name} has {path.stat().st_size} of {size} bytes")


def fields(file: BinaryIO, place: range, name: str) -> Iterator[tuple[int, range]]:
    """Yield (field number, where its content lies) for a message that lies in a part of a file.

    Raises:
        Torn: if the message ends within a field, or is none.
    """
    position = place.start
    while position < place.stop:
        file.seek(position)
        head = file.read(min(20, place.stop - position))
        try:
            key, length = varint(head, 0)
            wire_type = key & 7
            if wire_type == VARINT:
                size = varint(head, length)[1] - length
            elif wire_type == LENGTH_DELIMITED:
                size, length = varint(head, length)
            else:
                size = {FIXED64: 8, FIXED32: 4}[wire_type]
        except (IndexError, KeyError):
            raise Torn(f"{name} is cut or damaged at byte {position}") from None
        content = range(position + length, position + length + size)
        if content.stop > place.stop:
            raise Torn(f"{name} is cut: it has {place.stop} of at least {content.stop} bytes")
        yield key >> 3, content
        position = content.stop


def strings(file: BinaryIO, place: range, number: int, name: str) -> list[str]:
    """Return the values of a string field of a message that lies in a part of a file."""
    values = []
    for found, content in fields(file, place, name):
        if found == number:
            file.seek(content.start)
            values.append(file.read(len(content)).decode(errors="replace"))
    return values


def varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a variable-length number of 64 bits and the position after it.

    Raises:
        IndexError: if it is cut or too long.
    """
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise IndexError(position)


def data_sizes(index: bytes) -> dict[str, int]:
    """Return how long each file of variables must be, by name, from their index.

    Raises:
        Torn: if the index is cut.
    """
    torn = Torn("variables/variables.index is cut or damaged")
    if len(index) < FOOTER_BYTES or struct.unpack("<Q", index[-8:])[0] != TABLE_MAGIC:
        raise torn
    try:
        # The footer: a handle of a block that is not needed, then that of the block of blocks.
        footer = index[-FOOTER_BYTES:]
        position = varint(footer, varint(footer, 0)[1])[1]
        blocks = [
            block(index, *handle(value)) for _, value in block(index, *handle(footer[position:]))
        ]
        return shard_sizes([entry for entries in blocks for entry in entries])
    except (IndexError, struct.error):
        raise torn from None


def handle(data: bytes) -> tuple[int, int]:
    """Return the offset and the size of a block of a table."""
    offset, position = varint(data, 0)
    return offset, varint(data, position)[0]


def block(table: bytes, offset: int, size: int) -> list[tuple[int, bytes]]:
    """Return the lengths of the keys of a block and the values, none of one that is compressed.

    A key leaves out what it has in common with the one before it.
    """
    if table[offset + size] != UNCOMPRESSED:
        return []
    content = table[offset : offset + size]
    restarts = struct.unpack("<I", content[-4:])[0]
    end = size - 4 * (restarts + 1)
    entries, position = [], 0
    while position < end:
        shared, position = varint(content, position)
        unshared, position = varint(content, position)
        length, position = varint(content, position)
        position += unshared
        entries.append((shared + unshared, content[position : position + length]))
        position += length
    return entries


def shard_sizes(entries: list[tuple[int, bytes]]) -> dict[str, int]:
    """Return the length that the tensors of each shard need, by the shard's file name.

    The entry whose key is empty is the header.
    """
    headers = [varints(value) for length, value in entries if length == 0]
    shards = headers[0].get(NUMBER_OF_SHARDS, 1) if headers else 1
    sizes: dict[str, int] = {}
    for entry in [varints(value) for length, value in entries if length]:
        name = f"variables.data-{entry.get(SHARD, 0):05d}-of-{shards:05d}"
        end = entry.get(OFFSET, 0) + entry.get(SIZE, 0)
        sizes[name] = max(sizes.get(name, 0), end)
    return sizes


def varints(message: bytes) -> dict[int, int]:
    """Return the fields of a message that are variable-length numbers."""
    values, position = {}, 0
    while position < len(message):
        key, position = varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            values[number], position = varint(message, position)
        elif wire_type == LENGTH_DELIMITED:
            size, position = varint(message, position)
            position += size
        else:
            position += 8 if wire_type == FIXED64 else 4
    return values
