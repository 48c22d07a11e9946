"""Every rule of the Edge TPU compiler has a file that breaks it alone, and one that keeps it.

The files are those of `single_operations`, each with one change.
"""

import pytest
from support.single_operations import OPERATIONS, Given, content, int32

from bart_export.edgetpu import model_file, rules
from bart_export.edgetpu.compiler import check_file
from bart_export.edgetpu.rules import NEWEST_CODE

ADD, CONV_2D, DENSE, SOFTMAX, MEAN, SUM, SLICE, CONCATENATION, POOL, PACK, PAD, SPLIT, PRELU = (
    OPERATIONS[name]
    for name in (
        "ADD", "CONV_2D", "FULLY_CONNECTED", "SOFTMAX", "MEAN", "SUM", "STRIDED_SLICE",
        "CONCATENATION", "MAX_POOL_2D", "PACK", "PAD", "SPLIT", "PRELU",
    )
)  # fmt: skip
LONG = (1, 16_004)

# (the rule that is broken, a file that breaks it, what the compiler calls it)
BROKEN = [
    ("known code", ADD.change(code=150), rules.OUT_OF_RANGE),
    ("known code", ADD.change(code=NEWEST_CODE + 1), rules.OUT_OF_RANGE),
    ("known version", CONV_2D.change(version=6), rules.TOO_NEW),
    ("known version", DENSE.change(version=12), rules.TOO_NEW),
    ("known version", OPERATIONS["RESHAPE"].change(version=2), rules.TOO_NEW),
    ("static shapes", ADD.change_input(0, signature=(1, 1, -1, 16)), rules.DYNAMIC),
    ("static shapes", ADD.change_output(signature=(-1, 1, 8, 16)), rules.DYNAMIC),
    ("supported operator", ADD.change(operator="BATCH_MATMUL", options=None), rules.NOT_SUPPORTED),
    ("supported operator", ADD.change(operator="EMBEDDING_LOOKUP", options=None),
     rules.NOT_SUPPORTED),
    ("supported operator", ADD.change(operator="CUSTOM", options=None, version=1, custom="Mine"),
     rules.NOT_SUPPORTED),
    ("8-bit integers", ADD.change_input(1, dtype="FLOAT32"), rules.DATA_TYPE),
    ("8-bit integers", ADD.change_output(dtype="INT16"), rules.DATA_TYPE),
    ("8-bit integers", CONV_2D.change_input(1, dtype="FLOAT32"), rules.DATA_TYPE),
    ("8-bit integers", CONV_2D.change_input(2, dtype="INT8"), rules.DATA_TYPE),
    ("8-bit integers", OPERATIONS["QUANTIZE"].change_input(0, dtype="FLOAT32"), rules.DATA_TYPE),
    ("quantized", ADD.change_input(0, scales=()), rules.DATA_TYPE),
    ("constant parameters", CONV_2D.change_input(1, numbers=None), rules.NOT_CONSTANT),
    ("constant parameters", DENSE.change_input(1, numbers=None), rules.NOT_CONSTANT),
    ("constant parameters", DENSE.change_input(2, numbers=None), rules.NOT_CONSTANT),
    ("constant parameters", MEAN.change_input(1, numbers=None), rules.NOT_CONSTANT),
    ("rank", ADD.change_input(0, shape=(2, 1, 8, 16)), rules.RANK),
    ("rank", ADD.change_output(shape=(2, 1, 1, 8, 16)), rules.RANK),
    ("one output row", DENSE.change_output(shape=(2, 4)), rules.NOT_MAPPED),
    ("default weights format", DENSE.change_fields(weightsFormat=1), rules.NOT_MAPPED),
    ("one weight scale", DENSE.change_input(1, scales=(0.1, 0.2, 0.3, 0.4)), rules.NOT_MAPPED),
    ("one softmax row", SOFTMAX.change_input(0, shape=(8, 16)), rules.NOT_MAPPED),
    ("softmax length",
     SOFTMAX.change_input(0, shape=LONG).change_output(shape=LONG), rules.NOT_MAPPED),
    ("no batch reduction", SUM.change(inputs=(SUM.inputs[0], int32(0))), rules.NOT_MAPPED),
    ("no batch reduction", MEAN.change(inputs=(MEAN.inputs[0], int32(-4))), rules.NOT_MAPPED),
    ("mean over a multiple of 4", MEAN.change_input(0, shape=(1, 1, 8, 18)), rules.NOT_MAPPED),
    ("strides of 1", SLICE.change_input(3, numbers=(1, 1, 2, 1)), rules.NOT_MAPPED),
    ("slice without masks", SLICE.change_fields(ellipsisMask=1), rules.NOT_MAPPED),
    ("slice without masks", SLICE.change_fields(newAxisMask=2), rules.NOT_MAPPED),
    ("no fused activation", CONCATENATION.change_fields(fusedActivationFunction=1),
     rules.NOT_MAPPED),
    ("no fused activation", POOL.change_fields(fusedActivationFunction=1), rules.NOT_MAPPED),
    ("constant zeros", CONCATENATION.change_input(1, zero_point=6), rules.NOT_MAPPED),
    ("constant zeros",
     CONCATENATION.change(inputs=(*CONCATENATION.inputs, Given((1, 1, 8, 16)))), rules.NOT_MAPPED),
    ("even dilation", CONV_2D.change_fields(dilationWFactor=2), rules.NOT_MAPPED),
    ("no batch packing", PACK.change_fields(axis=0), rules.NOT_MAPPED),
    ("no batch packing", PACK.change_fields(axis=-3), rules.NOT_MAPPED),
    ("no batch padding", PAD.change_input(1, numbers=[[0, 1], [1, 1]]), rules.NOT_MAPPED),
    ("no batch splitting", SPLIT.change_input(0, numbers=0), rules.NOT_MAPPED),
    ("one slope per channel", PRELU.change_input(1, shape=(1, 8, 16)), rules.NOT_MAPPED),
    ("only outermost squeezed",
     OPERATIONS["SQUEEZE"].change_input(0, shape=(5, 1, 16)), rules.NOT_MAPPED),
]  # fmt: skip


def write(path, *nodes):
    path.write_bytes(content(nodes))
    return path


@pytest.mark.parametrize("node", OPERATIONS.values(), ids=OPERATIONS)
def test_an_operation_within_the_rules_maps(node, tmp_path):
    report = check_file(write(tmp_path / "file.tflite", node))
    assert [(row.status, row.reason) for row in report.rows] == [(rules.MAPPED, "")]
    assert report.refusals == ()
    assert report.passes


@pytest.mark.parametrize(("name", "node", "status"), BROKEN)
def test_a_file_that_breaks_one_rule_fails_for_that_rule_alone(name, node, status, tmp_path):
    path = write(tmp_path / "file.tflite", node)
    (operation,) = model_file.read_operations(path)
    assert [rule.name for rule in rules.RULES if rule.fault(operation)] == [name]
    report = check_file(path)
    assert [(row.status, row.rule) for row in report.rows] == [(status, name)]
    refusing = (rules.OUT_OF_RANGE, rules.TOO_NEW, rules.DYNAMIC)  # the whole file
    assert bool(report.refusals) == (status in refusing)
    assert not report.passes


def test_every_rule_is_broken_by_a_file():
    assert {rule.name for rule in rules.RULES} == {name for name, _, _ in BROKEN}
