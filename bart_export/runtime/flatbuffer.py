"""The flatbuffer of a `.tflite` file, read in columns: every table of a kind at once.

LiteRT follows offsets without looking where they lead. Here nothing is read before its place is
known to lie in the file, and every field of a table is held to that when the table is: offsets,
vtables, vectors and strings. Columns keep this quick for files of thousands of tables; weights are
not touched. Fields that exported files do not have must be absent, so that none is left unchecked.

The format: https://flatbuffers.dev/internals; the tables: TensorFlow's
tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

import dataclasses
import functools
import mmap
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# Elements of all vectors of one field; the names of bart_mini_en's tensors have 15,000 letters.
MOST_ELEMENTS = 1 << 22
IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every .tflite file
ABSENT = ""
FUSED = {"fused_activation_function": "i1"}
# Fields in the order of their numbers: a NumPy type, `string`, a table, or a vector of one of them.
TABLES: Mapping[str, Mapping[str, str]] = {
    "Model": {
        "version": "u4", "operator_codes": "[OperatorCode]", "subgraphs": "[SubGraph]",
        "description": "string", "buffers": "[Buffer]", "metadata_buffer": ABSENT,
        "metadata": "[Metadata]", "signature_defs": "[SignatureDef]",
        "external_buffer_groups": ABSENT, "external_buffers": ABSENT,
    },
    "OperatorCode": {
        "deprecated_builtin_code": "i1", "custom_code": "string", "version": "i4",
        "builtin_code": "i4",
    },
    "SubGraph": {
        "tensors": "[Tensor]", "inputs": "[i4]", "outputs": "[i4]", "operators": "[Operator]",
        "name": "string", "debug_metadata_index": "i4",
    },
    "Tensor": {
        "shape": "[i4]", "type": "i1", "buffer": "u4", "name": "string",
        "quantization": "QuantizationParameters", "is_variable": ABSENT, "sparsity": ABSENT,
        "shape_signature": "[i4]", "has_rank": "u1", "variant_tensors": ABSENT,
        "external_buffer": ABSENT,
    },
    "QuantizationParameters": {
        "min": "[f4]", "max": "[f4]", "scale": "[f4]", "zero_point": "[i8]", "details_type": "u1",
        "details": "BlockwiseQuantization", "quantized_dimension": "i4",
    },
    "BlockwiseQuantization": {
        "scales": "i4", "zero_points": "i4", "block_size": "i4", "block_shape": ABSENT,
    },
    "Operator": {
        "opcode_index": "u4", "inputs": "[i4]", "outputs": "[i4]", "builtin_options_type": "u1",
        "builtin_options": "options", "custom_options": "[u1]", "custom_options_format": "i1",
        "mutating_variable_inputs": ABSENT, "intermediates": ABSENT,
        "large_custom_options_offset": ABSENT, "large_custom_options_size": ABSENT,
        "builtin_options_2_type": ABSENT, "builtin_options_2": ABSENT,
        "debug_metadata_index": "i4",
    },
    "Buffer": {"data": "[u1]", "offset": "u8", "size": "u8"},
    "Metadata": {"name": "string", "buffer": "u4"},
    "TensorMap": {"name": "string", "tensor_index": "u4"},
    "SignatureDef": {
        "inputs": "[TensorMap]", "outputs": "[TensorMap]", "signature_key": "string",
        "deprecated_tag": ABSENT, "subgraph_index": "u4",
    },
    "AddOptions": {**FUSED, "pot_scale_int16": "u1"},
    "SubOptions": {**FUSED, "pot_scale_int16": "u1"},
    "MulOptions": FUSED,
    "BatchMatMulOptions": {"adj_x": "u1", "adj_y": "u1", "asymmetric_quantize_inputs": "u1"},
    "Conv2DOptions": {
        "padding": "i1", "stride_w": "i4", "stride_h": "i4", **FUSED, "dilation_w_factor": "i4",
        "dilation_h_factor": "i4", "quantized_bias_type": "i1",
    },
    "ExpandDimsOptions": {},
    "FullyConnectedOptions": {
        **FUSED, "weights_format": "i1", "keep_num_dims": "u1", "asymmetric_quantize_inputs": "u1",
        "quantized_bias_type": "i1", "quant_spec": ABSENT,
    },
    "GatherOptions": {"axis": "i4", "batch_dims": "i4"},
    "GeluOptions": {"approximate": "u1"},
    "ReducerOptions": {"keep_dims": "u1"},
    "ShapeOptions": {"out_type": "i1"},
    "SoftmaxOptions": {"beta": "f4"},
    "StridedSliceOptions": {
        "begin_mask": "i4", "end_mask": "i4", "ellipsis_mask": "i4", "new_axis_mask": "i4",
        "shrink_axis_mask": "i4", "offset": "u1",
    },
}  # fmt: skip
# Fields whose number is another than 0 where it is not written.
DEFAULTS = {
    ("OperatorCode", "version"): 1,
    ("SubGraph", "debug_metadata_index"): -1,
    ("Operator", "debug_metadata_index"): -1,
    ("Conv2DOptions", "dilation_w_factor"): 1,
    ("Conv2DOptions", "dilation_h_factor"): 1,
}


class Unsound(Exception):
    """A file that LiteRT must not be given; `str()` says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Vectors:
    """A vector of each of some tables: where its elements begin, and how many there are."""

    file: "File"
    kind: str
    begin: Ints
    count: Ints

    def owners(self) -> Ints:
        """Return, for each element of all vectors, the number of the table it belongs to."""
        return np.repeat(np.arange(len(self.count)), self.count)

    def index(self) -> Ints:
        """Return, for each element of all vectors, its index in its own."""
        return np.arange(int(self.count.sum())) - np.repeat(
            np.cumsum(self.count) - self.count, self.count
        )

    def places(self) -> Ints:
        """Return where each element of all vectors lies.

        Vectors may overlap: the file's size does not bound their sum, so that this does.

        Raises:
            Unsound: if together they are larger than the file, or have more elements than any has.
        """
        size, elements = width(self.kind), int(self.count.sum())
        if elements * size > self.file.size or elements > MOST_ELEMENTS:
            raise Unsound("its vectors have too many elements")
        return np.repeat(self.begin, self.count) + self.index() * size

    def numbers(self) -> Ints:
        """Return the elements of all vectors of integers, one after the other."""
        return self.file.integers(self.places(), self.kind)

    def tables(self) -> "Tables":
        """Return the tables of all vectors, one after the other."""
        places = self.places()
        return Tables(self.file, self.kind, places + self.file.integers(places, "u4"))


class File:
    """A file's bytes, read only where they are."""

    def __init__(self, content: "npt.NDArray[np.uint8]") -> None:
        self.content = content
        self.size = len(content)

    @classmethod
    def map(cls, path: pathlib.Path) -> "File":
        """Map a file into memory.

        Raises:
            Unsound: for one that cannot be, or is no `.tflite` file.
        """
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise Unsound(f"it cannot be read: {error}") from None
        if mapped[4:8] != IDENTIFIER:
            raise Unsound("bytes 4 to 8 must be TFL3")
        return cls(np.frombuffer(mapped, np.uint8))

    def model(self) -> "Tables":
        """Return the one table at the root."""
        return Tables(self, "Model", self.integers(np.zeros(1, np.int64), "u4"))

    def read(self, places: Ints, kind: str) -> "npt.NDArray[Any]":
        """Return the numbers of a NumPy type that lie at some places.

        Raises:
            Unsound: for a place outside the file.
        """
        dtype = np.dtype(f"<{kind}")
        if places.size and not 0 <= places.min() <= places.max() <= self.size - dtype.itemsize:
            raise Unsound("an offset leads out of it")
        content = self.content[places[:, None] + np.arange(dtype.itemsize)]
        numbers: npt.NDArray[Any] = content.view(dtype).reshape(len(places))
        return numbers

    def integers(self, places: Ints, kind: str) -> Ints:
        """Return the integers at some places; of unsigned ones those beyond 62 bits as 2^62."""
        numbers = self.read(places, kind)
        if kind == "u8":
            numbers = np.minimum(numbers, np.uint64(1 << 62))
        return numbers.astype(np.int64)


class Tables:
    """Tables of one kind, every field of which lies in the file: its columns are their fields.

    Args:
        file: what they lie in.
        kind: a key of `TABLES`.
        places: where they begin.

    Raises:
        Unsound: if anything of one leads out of the file, or one has a field that none may have.
    """

    def __init__(self, file: File, kind: str, places: Ints) -> None:
        self.file = file
        self.kind = kind
        self.places = places
        self.fields = TABLES[kind]
        vtables = places - file.integers(places, "i4")
        vtable_sizes = file.integers(vtables, "u2")
        sizes = file.integers(vtables + 2, "u2")
        if self.count and (
            (vtables + vtable_sizes).max() > file.size
            or (places + sizes).max() > file.size
            or (vtable_sizes % 2).any()
            or (vtables % 2).any()
            or (places % 4).any()
            or vtable_sizes.min() < 4
        ):
            raise Unsound(f"a table {kind} leads out of it")
        known = 4 + 2 * len(self.fields)
        if self.count and vtable_sizes.max() > known:
            raise Unsound(f"a table {kind} has fields that none of bart-export's has")
        self.offsets: dict[str, Ints] = {}
        for number, (name, form) in enumerate(self.fields.items()):
            there = np.flatnonzero(vtable_sizes >= 6 + 2 * number)
            offsets = np.zeros(self.count, np.int64)
            offsets[there] = file.integers(vtables[there] + 4 + 2 * number, "u2")
            present = offsets > 0
            step = width(form) if form in NUMBERS else 4
            ends = offsets + step
            if (ends > sizes)[present].any() or ((places + offsets) % step)[present].any():
                raise Unsound(f"a field {name} of a table {kind} leads out of the table")
            if form == ABSENT and present.any():
                raise Unsound(f"a table {kind} has {name}, which none of bart-export's has")
            self.offsets[name] = offsets
        for name, form in self.fields.items():
            if form == "string" or form.startswith("["):
                self.vectors(name)

    @property
    def count(self) -> int:
        """How many tables there are."""
        return len(self.places)

    def take(self, chosen: npt.NDArray[np.bool_]) -> "Tables":
        """Return some of the tables."""
        return Tables(self.file, self.kind, self.places[chosen])

    def present(self, name: str) -> npt.NDArray[np.bool_]:
        """Return which tables have a field."""
        return self.offsets[name] > 0

    def column(self, name: str) -> Ints:
        """Return a field's integers, the default where it is not written."""
        values = np.full(self.count, DEFAULTS.get((self.kind, name), 0), np.int64)
        present = self.present(name)
        places = (self.places + self.offsets[name])[present]
        values[present] = self.file.integers(places, self.fields[name])
        return values

    def targets(self, name: str) -> Ints:
        """Return where a field's offsets lead, of the tables that have it."""
        places = (self.places + self.offsets[name])[self.present(name)]
        return places + self.file.integers(places, "u4")

    def tables(self, name: str, kind: str | None = None) -> "Tables":
        """Return a field's tables, of those tables that have it."""
        return Tables(self.file, kind or self.fields[name], self.targets(name))

    def vectors(self, name: str) -> Vectors:
        """Return a field's vectors, which have no elements where the field is not written.

        Raises:
            Unsound: for one that leads out of the file.
        """
        begin, count = np.zeros(self.count, np.int64), np.zeros(self.count, np.int64)
        present = self.present(name)
        places = self.targets(name)
        kind = self.fields[name].strip("[]")
        begin[present] = places + 4
        count[present] = self.file.integers(places, "u4")
        ends = begin + count * width(kind)
        # A string has a zero behind its last byte, which its length leaves out.
        if (ends + (kind == "string") > self.file.size)[present].any():
            raise Unsound(f"{name} of a table {self.kind} leads out of it")
        if kind not in ("string", "u1") and (begin % 4)[present].any():
            raise Unsound(f"{name} of a table {self.kind} is not aligned")
        vectors = Vectors(self.file, kind, begin, count)
        if kind == "string" and (
            (self.file.content[vectors.places()] > ord("~")).any()
            or self.file.read(ends[present], "u1").any()
        ):
            raise Unsound(f"{name} of a table {self.kind} is not text")
        return vectors

    def strings(self, name: str) -> list[str]:
        """Return a field's strings, "" where it is not written."""
        vectors = self.vectors(name)
        return [
            bytes(self.file.content[begin : begin + count]).decode("ascii")
            for begin, count in zip(vectors.begin, vectors.count, strict=True)
        ]


NUMBERS = ("i1", "u1", "u2", "i4", "u4", "i8", "u8", "f4")


@functools.cache
def width(kind: str) -> int:
    """Return how many bytes an element of a vector has: a number, a letter, or a table's offset."""
    if kind in NUMBERS:
        return np.dtype(kind).itemsize
    return 1 if kind == "string" else 4


def product(vectors: Vectors) -> "npt.NDArray[np.float64]":
    """Return the product of each vector's integers; floats, so that nothing overflows."""
    products = np.ones(len(vectors.count), np.float64)
    np.multiply.at(products, vectors.owners(), vectors.numbers().astype(np.float64))
    return products
