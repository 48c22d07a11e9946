"""The compiler's partition of a graph and its parameters, and the log that it prints."""

import pytest
from support.compiler_logs import REFUSED, TWO_FILES, install
from support.single_operations import OPERATIONS, Given, Node, content

from bart_export.edgetpu import compiler
from bart_export.edgetpu.compiler import LogRow, check_file
from bart_export.edgetpu.rules import AFTERWARDS, DATA_TYPE, MAPPED, NOT_MAPPED, NOT_SUPPORTED, RANK
from bart_export.errors import EngineError

ROWS = (1, 1, 8, 16)
SUM = OPERATIONS["SUM"]


def chain(*operators):
    """Return operations of one input each, that read each other's output in turn."""
    tensors = [Given(ROWS) for _ in range(len(operators) + 1)]
    return [
        Node(operator, (tensors[place],), (tensors[place + 1],))
        for place, operator in enumerate(operators)
    ]


def branches():
    """Return operations of which two read the same tensor, and the last one reads both results."""
    source, left, right = (Given(ROWS) for _ in range(3))
    return [
        Node("TANH", (source,), (left,)),
        Node("EXP", (source,), (right,)),
        Node("LOGISTIC", (left,), (Given(ROWS),)),
        Node("ADD", (left, right), (Given(ROWS),), "AddOptions"),
    ]


@pytest.mark.parametrize(
    ("graphs", "expected"),
    [
        ([chain("TANH", "LOGISTIC", "RELU")], [MAPPED] * 3),
        ([chain("TANH", "EXP", "RELU")], [MAPPED, NOT_SUPPORTED, AFTERWARDS]),
        # What does not map and comes first leaves the rest in one part.
        ([chain("EXP", "TANH", "RELU")], [NOT_SUPPORTED, MAPPED, MAPPED]),
        ([chain("TANH", "EXP", "EXP", "RELU")],
         [MAPPED, NOT_SUPPORTED, NOT_SUPPORTED, AFTERWARDS]),
        # A branch beside what does not map is part of it.
        ([branches()], [MAPPED, NOT_SUPPORTED, MAPPED, AFTERWARDS]),
        # Only the first subgraph is compiled.
        ([chain("TANH"), chain("TANH")], [MAPPED, NOT_MAPPED]),
    ],
)  # fmt: skip
def test_one_part_of_a_graph_maps(graphs, expected, tmp_path):
    (tmp_path / "file.tflite").write_bytes(content(*graphs))
    assert [row.status for row in check_file(tmp_path / "file.tflite").rows] == expected


def test_parameters_count_once_and_those_that_do_not_fit_are_streamed(tmp_path):
    bytes_each = 3 * 2**20
    weights = [Given((bytes_each // 16, 1, 1, 16), numbers=1) for _ in range(3)]
    nodes = [
        Node("CONV_2D", (Given(ROWS), one, None), (Given((1, 1, 8, bytes_each // 16)),))
        for one in (*weights, weights[0])
    ]
    (tmp_path / "file.tflite").write_bytes(content(nodes))
    report = check_file(tmp_path / "file.tflite")
    assert report.passes
    assert report.parameter_bytes == 3 * bytes_each
    assert (report.on_chip_bytes, report.streamed_bytes) == (8 * 2**20, 2**20)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (None, "Cannot read .*file.tflite: No such file"),
        (b"", "is not a .tflite file"),
        (b"PK\x03\x04 something else", "is not a .tflite file"),
        (content([OPERATIONS["CONV_2D"]])[:200], "is damaged"),
        (content([SUM.change(inputs=SUM.inputs[:1])]), "is damaged"),
    ],
)
def test_what_is_no_tflite_file_is_said_in_one_line(damaged, message, tmp_path):
    if damaged is not None:
        (tmp_path / "file.tflite").write_bytes(damaged)
    with pytest.raises(EngineError, match=message):
        check_file(tmp_path / "file.tflite")


def test_a_log_of_two_files_is_read_file_by_file():
    mapped, parted = compiler.parse_log(TWO_FILES)
    assert mapped == compiler.Compiled(
        file="here/layer_0_feedforward.tflite",
        output="there/layer_0_feedforward_edgetpu.tflite",
        on_chip_bytes=6.5 * 2**20,
        remaining_bytes=1.25 * 2**10,
        streamed_bytes=0,
        subgraphs=1,
        rows=(
            LogRow("CONV_2D", 2, MAPPED), LogRow("LOGISTIC", 1, MAPPED), LogRow("MUL", 1, MAPPED)
        ),
    )  # fmt: skip
    assert mapped.passes and not parted.passes
    assert parted.streamed_bytes == 3.25 * 2**20
    assert parted.rows == (
        LogRow("QUANTIZE", 1, MAPPED),
        LogRow("TFLite_Detection_PostProcess", 1, DATA_TYPE),
        LogRow("RESHAPE", 1, RANK),
        LogRow("RESHAPE", 2, MAPPED),
    )


@pytest.mark.parametrize("log", [REFUSED, "Internal compiler error. Aborting!\n"])
def test_what_the_compiler_complains_of_is_said_in_one_line(log, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, log, status=1)
    with pytest.raises(EngineError, match="'EXP' version '2'|Internal compiler error"):
        compiler.compile_files([tmp_path / "log.txt"], tmp_path)


def test_a_compiler_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler.compiler_path() is None
    with pytest.raises(EngineError, match="edgetpu_compiler is not on PATH"):
        compiler.compile_files([tmp_path / "file.tflite"], tmp_path)
