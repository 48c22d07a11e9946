"""safetensors files: lazy, exact, and never believed beyond their size."""

import json
import struct

import numpy as np
import pytest
from support.edited_checkpoints import SYMMETRIC, copy

from bart_export.checkpoints import resolve
from bart_export.checkpoints.weights import read_safetensors
from bart_export.errors import CheckpointError


def write(path, header, data=b"", length=None):
    """Write a file with any header, and any length before it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(shape=(2,), begin=0, end=8, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_values_come_back(tmp_path):
    data = np.array([[1, -2], [3, 4]], "<f2").tobytes() + np.array(5, "<f8").tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "a": tensor((2, 2), 0, 8, "F16"),
        "b": tensor((), 8, 16, "F64"),
    }
    entries = read_safetensors(write(tmp_path / "a.safetensors", header, data))
    assert entries["a"].read().tolist() == [[1, -2], [3, 4]]
    assert entries["b"].read() == np.float64(5)
    assert entries["b"].dtype == "float64"


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"a": tensor()}, bytes(7), None),
        ({"a": tensor()}, bytes(9), None),
        ({"a": tensor((3,))}, bytes(8), None),
        ({"a": tensor((-2,))}, bytes(8), None),
        ({"a": tensor((2**62,), 0, 2**64)}, bytes(8), None),
        ({"a": tensor(begin=8, end=0)}, bytes(8), None),
        ({"a": tensor(begin=4, end=12)}, bytes(12), None),
        ({"a": tensor(), "b": tensor()}, bytes(8), None),
        ({"a": tensor(), "b": tensor(begin=4, end=12)}, bytes(12), None),
        ({"a": tensor(dtype="F99")}, bytes(8), None),
        ({"a": tensor((True, 2))}, bytes(8), None),
        ({"a": tensor((2.0,))}, bytes(8), None),
        ({"a": {"dtype": "F32"}}, b"", None),
        ({"a": 3}, b"", None),
        ({"a": tensor(dtype=["F32"])}, bytes(8), None),
        (["a"], b"", None),
        (b"not json at all", b"", None),
        (b"\xff\xff", b"", None),
        (b"[" * 100_000, b"", None),
        ({"a": tensor()}, bytes(8), 2**63),
        ({"a": tensor()}, bytes(8), 0),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, data, length):
    path = write(tmp_path / "a.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match="is not a whole safetensors file") as refused:
        read_safetensors(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kept", [0, 5, 8, 1000, 100_000, -1])
def test_a_checkpoint_cut_short_is_refused(tmp_path, kept):
    path = copy(tmp_path / "bart") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        resolve.read(path.parent)


def test_every_flipped_bit_of_the_header_is_refused_or_harmless(tmp_path):
    """A flip may hit a space or the metadata; it must never reach the caller as another error."""
    path = copy(tmp_path / "bart") / "model.safetensors"
    whole = path.read_bytes()
    expected = {name: values.shape for name, values in resolve.read(path.parent).weights.items()}
    refused = 0
    for place in range(0, 1600, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            weights = resolve.read(path.parent).weights
        except CheckpointError:
            refused += 1
        else:
            assert {name: values.shape for name, values in weights.items()} == expected
    assert refused > 200


def test_a_file_cut_short_after_it_was_opened_is_noticed(tmp_path):
    path = copy(tmp_path / "bart", SYMMETRIC) / "model.safetensors"
    weights = resolve.read(path.parent).weights
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        weights["token_embedding/embeddings"]
