"""The checker parts a graph as TensorFlow Lite does for a delegate, and counts parameters once."""

import pytest
from support.single_operations import OPERATIONS, Given, Node, content

from bart_export.edgetpu import rules
from bart_export.edgetpu.check import check
from bart_export.errors import EngineError

ROWS = (1, 1, 8, 16)
SHAPE = {"shape": ROWS}


def chain(*operators):
    """Return operations of one input each, that read each other's output in turn."""
    tensors = [Given(**SHAPE) for _ in range(len(operators) + 1)]
    return [
        Node(operator, (tensors[place],), (tensors[place + 1],))
        for place, operator in enumerate(operators)
    ]


def statuses(path, *graphs):
    path.write_bytes(content(*graphs))
    return [row.status for row in check(path).rows]


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        (("TANH", "LOGISTIC", "RELU"), [rules.MAPPED] * 3),
        (("TANH", "EXP", "RELU"), [rules.MAPPED, rules.NOT_SUPPORTED, rules.AFTERWARDS]),
        # What does not map and comes first leaves the rest in one part.
        (("EXP", "TANH", "RELU"), [rules.NOT_SUPPORTED, rules.MAPPED, rules.MAPPED]),
        (("TANH", "EXP", "EXP", "RELU"),
         [rules.MAPPED, rules.NOT_SUPPORTED, rules.NOT_SUPPORTED, rules.AFTERWARDS]),
    ],
)  # fmt: skip
def test_one_part_of_a_chain_maps(operators, expected, tmp_path):
    assert statuses(tmp_path / "file.tflite", chain(*operators)) == expected


def test_a_branch_beside_what_does_not_map_is_part_of_it(tmp_path):
    source, left, right, end = (Given(**SHAPE) for _ in range(4))
    nodes = [
        Node("TANH", (source,), (left,)),
        Node("EXP", (source,), (right,)),
        Node("LOGISTIC", (left,), (Given(**SHAPE),)),
        Node("ADD", (left, right), (end,), "AddOptions"),
    ]
    assert statuses(tmp_path / "file.tflite", nodes) == [
        rules.MAPPED,
        rules.NOT_SUPPORTED,
        rules.MAPPED,
        rules.AFTERWARDS,
    ]


def test_only_the_first_subgraph_is_compiled(tmp_path):
    found = statuses(tmp_path / "file.tflite", chain("TANH"), chain("TANH"))
    assert found == [rules.MAPPED, rules.NOT_MAPPED]


def test_parameters_that_do_not_fit_are_streamed(tmp_path):
    bytes_each = 3 * 2**20
    weights = [Given((bytes_each // 16, 1, 1, 16), numbers=1) for _ in range(3)]
    twice = [*weights, weights[0]]
    nodes = [
        Node("CONV_2D", (Given(ROWS), one, None), (Given((1, 1, 8, bytes_each // 16)),))
        for one in twice
    ]
    (tmp_path / "file.tflite").write_bytes(content(nodes))
    report = check(tmp_path / "file.tflite")
    assert report.passes
    assert report.parameter_bytes == 3 * bytes_each
    assert (report.on_chip_bytes, report.streamed_bytes) == (8 * 2**20, 2**20)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"", "must be a .tflite file"),
        (b"PK\x03\x04 something else", "must be a .tflite file"),
        (content([OPERATIONS["CONV_2D"]])[:200], "is damaged"),
        (content([OPERATIONS["SUM"].change(inputs=(OPERATIONS["SUM"].inputs[0],))]), "is damaged"),
    ],
)
def test_what_is_no_tflite_file_is_said_in_one_line(damaged, message, tmp_path):
    (tmp_path / "file.tflite").write_bytes(damaged)
    with pytest.raises(EngineError, match=message) as raised:
        check(tmp_path / "file.tflite")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(EngineError, match="none.tflite"):
        check(tmp_path / "none.tflite")
