"""Inconsistent `.tflite` files are refused in one line, before LiteRT opens them."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from support.command import refusal

from bart_export import contract
from bart_export.artifact import stamps
from bart_export.artifact.artifact import UNSEALED, Artifact, seal, sha256
from bart_export.errors import ArtifactError, EngineError
from bart_export.recipes.table import LITERT
from bart_export.runtime import tflite_check
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.engine import expected_signatures
from bart_export.runtime.engine_choice import check_files
from bart_export.runtime.generator import Generator
from bart_export.runtime.interpreter import open_interpreter
from bart_export.runtime.tflite_check import check_graph

FIRST = Path(__file__).parents[1] / "data/artifacts/first"
FLOAT, INT8 = "tflite/float32.tflite", "tflite/dynamic_wi8_afp32.tflite"


def test_files_of_dynamic_builds_are_sound(mini_artifact):
    for name in (FLOAT, INT8):
        check_graph(mini_artifact.path(name), signatures(mini_artifact))


def test_files_of_static_builds_are_sound(static_artifact):
    config = static_artifact.config
    for name in static_artifact.files("tflite"):
        buckets = static_artifact.buckets(name)
        check_graph(static_artifact.path(name), expected_signatures(config, buckets))


def signatures(artifact):
    return expected_signatures(artifact.config, contract.tflite_buckets(artifact.config))


def put(content, table, field, form, value):
    """Overwrite a number in a table; the table must have the field."""
    offset = table._tab.Offset(4 + 2 * field)
    assert offset, "the field is not written"
    struct.pack_into(form, content, table._tab.Pos + offset, value)


def element(content, table, field, index, form, value):
    """Write an element of a vector of numbers."""
    at = table._tab.Vector(table._tab.Offset(4 + 2 * field))
    struct.pack_into(form, content, at + index * struct.calcsize(form), value)


def first(model, name, graph=0):
    """Return the first operator of a name in a graph."""
    code = getattr(schema.BuiltinOperator, name)
    operators = map(
        model.Subgraphs(graph).Operators, range(model.Subgraphs(graph).OperatorsLength())
    )
    codes = [model.OperatorCodes(number) for number in range(model.OperatorCodesLength())]
    found = [max(one.BuiltinCode(), one.DeprecatedBuiltinCode()) for one in codes]
    return next(one for one in operators if found[one.OpcodeIndex()] == code)


def tensor(model, index, graph=0):
    return model.Subgraphs(graph).Tensors(index)


def set_constant(content, model, index, value):
    """Write the first number of a constant, inside the flatbuffer or after it."""
    buffer = model.Buffers(tensor(model, index).Buffer())
    if buffer.Offset():
        struct.pack_into("<i", content, buffer.Offset(), value)
    else:
        element(content, buffer, 0, 0, "<i", value)


def weights_of(model):
    """Return the weights of the first fully connected layer."""
    return tensor(model, first(model, "FULLY_CONNECTED").Inputs(1))


def overlapping_vectors(content, model):
    """Make every tensor's name extend to the end of the file."""
    graph = model.Subgraphs(0)
    for index in range(graph.TensorsLength()):
        tab = graph.Tensors(index)._tab
        at = tab.Vector(tab.Offset(4 + 2 * 3)) - 4
        struct.pack_into("<I", content, at, len(content) - at - 5)


def behind_the_end(content, model):
    buffers = map(model.Buffers, range(model.BuffersLength()))
    external = next(one for one in buffers if one.Offset())
    put(content, external, 1, "<Q", 2**63)


def lengthen(content, table, field, count):
    """Write the number of a vector's elements."""
    at = table._tab.Vector(table._tab.Offset(4 + 2 * field)) - 4
    struct.pack_into("<I", content, at, count)


def output(model, name):
    return tensor(model, first(model, name).Outputs(0))


def computed_reshape(model):
    """Return the first reshape to a computed shape, which is the concatenation."""
    joined = first(model, "CONCATENATION").Outputs(0)
    graph = model.Subgraphs(0)
    operators = map(graph.Operators, range(graph.OperatorsLength()))
    return next(one for one in operators if one.InputsLength() == 2 and one.Inputs(1) == joined)


# What is done to a file, as far as it is a line, and words of the refusal.
HARMS = {
    "root": (
        FLOAT, lambda c, m: struct.pack_into("<I", c, 0, len(c) - 4), "out of bounds"),
    "table beyond": (
        FLOAT, lambda c, m: struct.pack_into("<i", c, m._tab.Pos, -(2**31)), "out of bounds"),
    "vector too long": (
        FLOAT, lambda c, m: lengthen(c, m, 4, 2**32 - 1), "out of bounds"),
    "operand beyond": (
        FLOAT, lambda c, m: element(c, first(m, "ADD"), 1, 0, "<i", 2**20), "index is out of"),
    "operand left out": (
        FLOAT, lambda c, m: element(c, first(m, "ADD"), 1, 0, "<i", -1), "ADD with unsupported"),
    "operand of later": (
        FLOAT, lambda c, m: element(c, first(m, "ADD"), 1, 0, "<i", m.Subgraphs(0).Operators(
            m.Subgraphs(0).OperatorsLength() - 1).Outputs(0)), "ADD with inconsistent shapes"),
    "code beyond": (
        FLOAT, lambda c, m: put(c, m.Subgraphs(0).Operators(3), 0, "<I", 999), "without a code"),
    "buffer beyond": (
        FLOAT, lambda c, m: put(c, tensor(m, 5), 2, "<I", 10**6), "without a buffer"),
    "other buffer": (
        FLOAT, lambda c, m: put(c, weights_of(m), 2, "<I", tensor(
            m, first(m, "TRANSPOSE").Inputs(1)).Buffer()), "shape and bytes differ"),
    "other type": (
        FLOAT, lambda c, m: put(c, output(m, "GREATER"), 1, "<b", schema.TensorType.INT32),
        "GREATER with unsupported types"),
    "unknown type": (
        INT8, lambda c, m: put(c, weights_of(m), 1, "<b", schema.TensorType.STRING),
        "of an unsupported type"),
    "huge shape": (
        FLOAT, lambda c, m: element(c, output(m, "RSQRT"), 0, 0, "<i", 2**30),
        "shape differs from its signature"),
    "no shape": (
        FLOAT, lambda c, m: element(c, output(m, "RSQRT"), 0, 0, "<i", 0), "at least 1"),
    "other permutation": (
        FLOAT, lambda c, m: set_constant(c, m, first(m, "TRANSPOSE").Inputs(1), 7),
        "TRANSPOSE with inconsistent shapes"),
    "joined to more": (
        FLOAT, lambda c, m: element(c, output(m, "CONCATENATION"), 0, 0, "<i", 5),
        "CONCATENATION with inconsistent shapes"),
    "joined to less": (
        FLOAT, lambda c, m: element(c, output(m, "CONCATENATION"), 0, 0, "<i", 1),
        "CONCATENATION with inconsistent shapes"),
    "joined rows": (
        FLOAT, lambda c, m: element(
            c, first(m, "CONCATENATION"), 1, 1, "<i", computed_reshape(m).Inputs(0)),
        "CONCATENATION with unsupported types"),
    "joined to numbers": (
        FLOAT, lambda c, m: put(
            c, output(m, "CONCATENATION"), 1, "<b", schema.TensorType.FLOAT32),
        "CONCATENATION with unsupported types"),
    "joined without options": (
        FLOAT, lambda c, m: put(
            c, first(m, "CONCATENATION"), 3, "<B", schema.BuiltinOptions.Conv2DOptions),
        "CONCATENATION with unsupported options"),
    "computed shape of too few": (
        FLOAT, lambda c, m: element(
            c, computed_reshape(m), 1, 1, "<i", first(m, "CONCATENATION").Inputs(0)),
        "RESHAPE with inconsistent shapes"),
    "computed shape of others": (
        FLOAT, lambda c, m: element(
            c, computed_reshape(m), 1, 0, "<i", first(m, "MEAN").Outputs(0)),
        "RESHAPE with inconsistent shapes"),
    "computed shape of floats": (
        FLOAT, lambda c, m: element(
            c, computed_reshape(m), 1, 1, "<i", computed_reshape(m).Inputs(0)),
        "RESHAPE with unsupported types"),
    "other axis": (
        FLOAT, lambda c, m: set_constant(c, m, first(m, "MEAN").Inputs(1), 2**31 - 1),
        "with inconsistent shapes"),
    "other options": (
        FLOAT, lambda c, m: put(
            c, first(m, "FULLY_CONNECTED"), 3, "<B", schema.BuiltinOptions.Conv2DOptions),
        "FULLY_CONNECTED with unsupported options"),
    "other graph": (
        FLOAT, lambda c, m: put(c, m.SignatureDefs(1), 4, "<I", 2), "graph without a signature"),
    "no graph": (
        FLOAT, lambda c, m: put(c, m.SignatureDefs(1), 4, "<I", 77), "signature without a graph"),
    "other name": (
        FLOAT, lambda c, m: element(c, m.SignatureDefs(0).Inputs(0), 0, 0, "<B", ord("_")),
        "wrong names"),
    "not text": (
        FLOAT, lambda c, m: element(c, tensor(m, 3), 3, 0, "<B", 0x9B), "is not ASCII"),
    "behind the end": (INT8, behind_the_end, "out of bounds"),
    "overlapping vectors": (FLOAT, overlapping_vectors, "too many elements"),
    "cut": (FLOAT, lambda c, m: c.__delitem__(slice(len(c) // 2, None)), "out of bounds"),
    "fewer scales": (
        INT8, lambda c, m: lengthen(c, weights_of(m).Quantization(), 2, 3), "scales do not match"),
    "no scale": (
        INT8, lambda c, m: element(c, weights_of(m).Quantization(), 2, 0, "<f", float("nan")),
        "not a positive number"),
    "zero point beyond": (
        INT8, lambda c, m: element(c, weights_of(m).Quantization(), 3, 0, "<q", 2**40),
        "zero point is out of range"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_that_contradicts_itself_is_refused(mini_artifact, tmp_path, harm):
    name, change, words = HARMS[harm]
    content = bytearray(mini_artifact.path(name).read_bytes())
    change(content, schema.Model.GetRootAs(content, 0))
    path = tmp_path / "harmed.tflite"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        check_graph(path, signatures(mini_artifact))


@pytest.mark.parametrize("sizes", [(8, 32), (4, 128), (-1, -1), (0, 64), (2**20, 64)])
def test_a_computed_shape_that_does_not_fit_is_an_error_of_litert(mini_artifact, tmp_path, sizes):
    content = bytearray(mini_artifact.path(FLOAT).read_bytes())
    model = schema.Model.GetRootAs(content, 0)
    constant = tensor(model, first(model, "CONCATENATION").Inputs(1))
    buffer = model.Buffers(constant.Buffer())
    config = mini_artifact.config
    heads, size = buffer.DataAsNumpy().view(np.int32)
    assert (heads, size) == (config.decoder_heads, config.decoder_head_size)
    for index, number in enumerate(sizes):
        element(content, buffer, 0, index, "<i", number)
    path = tmp_path / "harmed.tflite"
    path.write_bytes(content)
    check_graph(path, signatures(mini_artifact))
    engine = open_compiled_model(path, config, num_threads=1)
    with pytest.raises(EngineError, match="LiteRT cannot resize decode: "):
        engine.start([0, 5, 2], 3, 9)


@pytest.mark.parametrize("backend", ["compiled", "interpreter"])
def test_an_engine_goes_on_after_sizes_that_fail(mini_artifact, tmp_path, backend):
    content = bytearray(mini_artifact.path(FLOAT).read_bytes())
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    mask = next(
        graph.Inputs(index)
        for index in range(graph.InputsLength())
        if b"encoder_padding_mask" in graph.Tensors(graph.Inputs(index)).Name()
    )
    # With this change, a decoder needs as many beams as the source has tokens.
    element(content, first(model, "SHAPE"), 1, 0, "<i", mask)
    path, config = tmp_path / "harmed.tflite", mini_artifact.config
    path.write_bytes(content)
    if backend == "compiled":
        engine = open_compiled_model(path, config, num_threads=1)
    else:
        engine = open_interpreter(path, config, num_threads=1, interpreter=LITERT)

    def step(source):
        state = engine.start(source, 3, 9)
        logits, _ = engine.step(state, np.zeros(3, np.int32), np.arange(3, dtype=np.int32))
        return logits

    expected = step([0, 5, 2])
    for _ in range(2):
        with pytest.raises(EngineError, match="cannot resize|failed to run"):
            step([0, 5, 7, 9, 2])
        np.testing.assert_array_equal(step([0, 5, 2]), expected)


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\0\0\0\0TFL3", b"\0" * 8 + b"TFL3" * 100])
def test_what_is_no_flatbuffer_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ArtifactError, match="not a .tflite file"):
        check_graph(tmp_path / "file", None)


def test_signatures_of_another_model_are_refused(mini_artifact, distilled_artifact):
    with pytest.raises(ArtifactError, match="wrong names|must be"):
        check_graph(mini_artifact.path(FLOAT), signatures(distilled_artifact))


def resealed(artifact, name, content, target):
    """Write an artifact with a replaced file and matching hashes."""
    shutil.copytree(artifact.directory, target, ignore=shutil.ignore_patterns(".cache"))
    (target / name).write_bytes(content)
    manifest = json.loads((target / "manifest.json").read_bytes())
    manifest["manifest_sha256"] = UNSEALED
    manifest["files"][name] |= {"bytes": len(content), "sha256": sha256(target / name)}
    (target / "manifest.json").write_bytes(seal(json.dumps(manifest).encode()))
    return target


# Each ended the process with SIGSEGV: where, what is there, and what was put there.
CRASHES = ((1038404, "5a", "58"), (993720, "bc0b0000", "00000080"))


@pytest.mark.parametrize(("at", "there", "instead"), CRASHES)
@pytest.mark.parametrize("command", [("generate", "A text."), ("verify",)], ids=lambda c: c[0])
def test_files_that_ended_litert_are_refused(tmp_path, at, there, instead, command):
    first = Artifact.open(FIRST)
    content = bytearray(first.path(FLOAT).read_bytes())
    old, new = bytes.fromhex(there), bytes.fromhex(instead)
    assert content[at : at + len(old)] == old
    content[at : at + len(old)] = new
    made = resealed(first, FLOAT, bytes(content), tmp_path / "made")
    line = refusal(command[0], made, *command[1:])
    assert "float32.tflite is not a .tflite file that bart-export wrote" in line


def test_a_file_is_checked_once_as_long_as_it_stays_what_it_is(
    symmetric_artifact, tmp_path, monkeypatch
):
    made = shutil.copytree(symmetric_artifact.directory, tmp_path / "made")
    checked = []
    monkeypatch.setattr(tflite_check, "check_graph", lambda path, expected: checked.append(path))
    for boot, count in (("this", 1), ("this", 1), ("another", 2)):
        monkeypatch.setattr(stamps, "boot", lambda boot=boot: boot)
        Generator.from_artifact(made)
        assert len(checked) == count
    other = signatures(symmetric_artifact)
    other.pop("decode_single")
    check_files(Artifact.open(made), {FLOAT: other})
    assert len(checked) == 3
