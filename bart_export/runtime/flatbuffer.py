"""A bounds-checked reader for the flatbuffer of a `.tflite` file, one column per field.

LiteRT follows offsets without bounds checks. Here every offset is checked before it is read; fields
that exported files do not use must be absent, so that no field is left unchecked.

The format: https://flatbuffers.dev/internals; the tables: TensorFlow's
tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

import dataclasses
import functools
import mmap
import pathlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# Elements in all vectors of a field; the tensor names of bart_mini_en have 15,000 characters.
MOST_ELEMENTS = 1 << 22
IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every .tflite file
ABSENT = ""
FUSED = {"fused_activation_function": "i1"}
# Fields in schema order: a NumPy type, `string`, a table, or a vector of one of them.
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
    "ConcatenationOptions": {"axis": "i4", "fused_activation_function": "i1"},
    "ShapeOptions": {"out_type": "i1"},
    "SoftmaxOptions": {"beta": "f4"},
    "StridedSliceOptions": {
        "begin_mask": "i4", "end_mask": "i4", "ellipsis_mask": "i4", "new_axis_mask": "i4",
        "shrink_axis_mask": "i4", "offset": "u1",
    },
}  # fmt: skip
# Fields with a default other than 0.
DEFAULTS = {
    ("OperatorCode", "version"): 1,
    ("SubGraph", "debug_metadata_index"): -1,
    ("Operator", "debug_metadata_index"): -1,
    ("Conv2DOptions", "dilation_w_factor"): 1,
    ("Conv2DOptions", "dilation_h_factor"): 1,
}


class InvalidGraph(Exception):
    """A file that LiteRT must not open; the message is the reason."""


def require(rule: npt.ArrayLike, wrong: str) -> None:
    """Raise InvalidGraph unless all values of a rule are true."""
    if not np.all(rule):
        raise InvalidGraph(wrong)


class File:
    """A file's bytes, bounds-checked."""

    def __init__(self, content: npt.NDArray[np.uint8]) -> None:
        self.content = content
        self.size = len(content)

    @classmethod
    def map(cls, path: pathlib.Path) -> "File":
        """Map a `.tflite` file into memory."""
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InvalidGraph(f"it cannot be read: {error}") from None
        require(mapped[4:8] == IDENTIFIER, "bytes 4 to 8 must be TFL3")
        return cls(np.frombuffer(mapped, np.uint8))

    def numbers(self, offsets: Ints, kind: str) -> npt.NDArray[np.generic]:
        """Return the numbers of a NumPy type at these offsets."""
        dtype = np.dtype(f"<{kind}")
        if offsets.size and not 0 <= offsets.min() <= offsets.max() <= self.size - dtype.itemsize:
            raise InvalidGraph("an offset is out of bounds")
        content = self.content[offsets[:, None] + np.arange(dtype.itemsize)]
        numbers: npt.NDArray[np.generic] = content.view(dtype).reshape(len(offsets))
        return numbers

    def integers(self, offsets: Ints, kind: str) -> Ints:
        """Return the integers at these offsets; unsigned ones are clipped to 2^62."""
        numbers = self.numbers(offsets, kind)
        if kind == "u8":
            numbers = np.minimum(numbers, np.uint64(1 << 62))
        return numbers.astype(np.int64)

    def follow(self, offsets: Ints) -> Ints:
        """Return the targets of the relative offsets at these offsets."""
        return offsets + self.integers(offsets, "u4")

    def model(self) -> "Tables":
        """Return the root table."""
        return Tables(self, "Model", self.follow(np.zeros(1, np.int64)))


@dataclasses.dataclass(frozen=True)
class Vectors:
    """One vector field of many tables: the offset of each vector's elements, and their number."""

    file: File
    kind: str
    begin: Ints
    count: Ints

    def owners(self) -> Ints:
        """Return each element's table number."""
        return np.repeat(np.arange(len(self.count)), self.count)

    def index(self) -> Ints:
        """Return each element's index in its vector."""
        first = np.cumsum(self.count) - self.count
        return np.arange(int(self.count.sum())) - np.repeat(first, self.count)

    def offsets(self) -> Ints:
        """Return each element's offset, or refuse overlapping vectors that exceed the file."""
        size, elements = width(self.kind), int(self.count.sum())
        few = elements * size <= self.file.size and elements <= MOST_ELEMENTS
        require(few, "its vectors have too many elements")
        return np.repeat(self.begin, self.count) + self.index() * size

    def integers(self) -> Ints:
        """Return the elements of all vectors, as integers."""
        return self.file.integers(self.offsets(), self.kind)

    def tables(self) -> "Tables":
        """Return the elements of all vectors, as tables."""
        return Tables(self.file, self.kind, self.file.follow(self.offsets()))


class Tables:
    """Tables of one kind (a key of `TABLES`), with every field bounds-checked."""

    def __init__(self, file: File, kind: str, begin: Ints) -> None:
        self.file = file
        self.kind = kind
        self.begin = begin
        self.count = len(begin)
        self.fields = TABLES[kind]
        vtables = begin - file.integers(begin, "i4")
        vtable_sizes = file.integers(vtables, "u2")
        sizes = file.integers(vtables + 2, "u2")
        inside = (vtables + vtable_sizes <= file.size) & (begin + sizes <= file.size)
        aligned = (vtable_sizes % 2 == 0) & (vtables % 2 == 0) & (begin % 4 == 0)
        require(inside & aligned & (vtable_sizes >= 4), f"a {kind} table is out of bounds")
        known = vtable_sizes <= 4 + 2 * len(self.fields)
        require(known, f"a {kind} table has unknown fields")
        self.offsets: dict[str, Ints] = {}
        for number, (name, form) in enumerate(self.fields.items()):
            offsets = np.zeros(self.count, np.int64)
            listed = np.flatnonzero(vtable_sizes >= 6 + 2 * number)
            offsets[listed] = file.integers(vtables[listed] + 4 + 2 * number, "u2")
            size = width(form) if form in NUMBERS else 4
            inside = (offsets + size <= sizes) & ((begin + offsets) % size == 0)
            wrong = f"the field {name} of a {kind} table is out of bounds"
            require(inside | (offsets == 0), wrong)
            wrong = f"a {kind} table has {name}, which bart-export does not write"
            require(form != ABSENT or offsets == 0, wrong)
            self.offsets[name] = offsets
        for name, form in self.fields.items():
            if form == "string" or form.startswith("["):
                self.vectors(name)

    def present(self, name: str) -> npt.NDArray[np.bool_]:
        """Return which tables have a field."""
        return self.offsets[name] > 0

    def stored(self, name: str) -> Ints:
        """Return a field's offsets, in the tables that have it."""
        return (self.begin + self.offsets[name])[self.present(name)]

    def column(self, name: str) -> Ints:
        """Return a field's integers, with the default in tables that do not have it."""
        values = np.full(self.count, DEFAULTS.get((self.kind, name), 0), np.int64)
        values[self.present(name)] = self.file.integers(self.stored(name), self.fields[name])
        return values

    def tables(self, name: str) -> "Tables":
        """Return a field's tables, in the tables that have it."""
        return Tables(self.file, self.fields[name], self.file.follow(self.stored(name)))

    def vectors(self, name: str) -> Vectors:
        """Return a field's vectors, which are empty in tables that do not have it."""
        begin, count = np.zeros(self.count, np.int64), np.zeros(self.count, np.int64)
        present, kind = self.present(name), self.fields[name].strip("[]")
        vectors = self.file.follow(self.stored(name))
        begin[present] = vectors + 4
        count[present] = self.file.integers(vectors, "u4")
        ends = (begin + count * width(kind))[present]
        # A string ends with a zero byte, which its length does not count.
        inside = ends + (kind == "string") <= self.file.size
        require(inside, f"{name} of a {self.kind} table is out of bounds")
        found = Vectors(self.file, kind, begin, count)
        if kind == "string":
            letters, last = self.file.content[found.offsets()], self.file.content[ends]
            ascii = letters.max(initial=0) <= ord("~") and last.max(initial=0) == 0
            require(ascii, f"{name} of a {self.kind} table is not ASCII")
        elif kind != "u1":
            require(begin % 4 == 0, f"{name} of a {self.kind} table is not aligned")
        return found

    def strings(self, name: str) -> list[str]:
        """Return a field's strings, "" in tables that do not have it."""
        vectors = self.vectors(name)
        return [
            self.file.content[begin : begin + count].tobytes().decode("ascii")
            for begin, count in zip(vectors.begin, vectors.count, strict=True)
        ]


NUMBERS = ("i1", "u1", "u2", "i4", "u4", "i8", "u8", "f4")


@functools.cache
def width(kind: str) -> int:
    """Return the bytes per element: of a number, a character, or a table's offset."""
    if kind in NUMBERS:
        return np.dtype(kind).itemsize
    return 1 if kind == "string" else 4
