"""Rows of several calls in one tensor: the rules of padding, and what cannot be merged."""

import functools

import ml_dtypes
import numpy as np
import pytest

from bart_export.server.merging import joined_outputs, merged_inputs, row_count, split_outputs
from bart_export.server.status import Code, StatusError


def merged(*arrays, size=None, pad=True):
    size = size or sum(map(len, arrays))
    return merged_inputs([{"x": array} for array in arrays], size, pad)["x"]


@pytest.mark.parametrize("dtype", [np.int32, bool, ml_dtypes.bfloat16, object])
def test_arrays_are_padded_at_the_end_of_each_axis_with_their_first_element(dtype):
    first = np.arange(1, 5).reshape(1, 2, 2).astype(dtype)
    second = np.full([1, 1, 3], 7).astype(dtype)
    expected = np.array(
        [[[1, 2, 1], [3, 4, 1]], [[7, 7, 7], [7, 7, 7]]],
    ).astype(dtype)
    result = merged(first, second)
    assert result.dtype == first.dtype
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("pad", [True, False])
def test_missing_rows_repeat_the_first_row_of_the_last_call_that_has_one(pad):
    arrays = [np.array([[1], [2]]), np.array([[3], [4]]), np.zeros([0, 1], int)]
    assert merged(*arrays, size=6, pad=pad).tolist() == [[1], [2], [3], [4], [3], [3]]


def test_a_call_alone_is_not_copied():
    array = np.ones([2, 3])
    assert merged(array, pad=False) is array


def test_calls_without_rows_are_padded_to_the_others():
    assert merged(np.zeros([0, 1]), np.ones([1, 2])).tolist() == [[1.0, 1.0]]


def rows_of(*shapes):
    return row_count({str(index): np.ones(shape) for index, shape in enumerate(shapes)})


def one_row_of(*shapes):
    (shape,) = shapes
    return split_outputs({"y": np.zeros(shape)}, [1], 1)


def merged_of(*shapes, pad=True):
    return merged(*map(np.ones, shapes), pad=pad)


unpadded_of = functools.partial(merged_of, pad=False)
SHAPES_DIFFER = Code.FAILED_PRECONDITION, "Tensors with name 'x' from different"
# What is done with tensors of some shapes, the code, and the beginning of the message.
REFUSED = [
    (unpadded_of, [[1, 2], [1, 3]], *SHAPES_DIFFER),
    (unpadded_of, [[1, 2], [1, 2, 1]], *SHAPES_DIFFER),
    (merged_of, [[1, 2], [1, 2, 1]], *SHAPES_DIFFER),
    (merged_of, [[1, 0], [1, 3]], Code.INVALID_ARGUMENT, "Got empty tensor in batch of non-empty"),
    (rows_of, [], Code.INVALID_ARGUMENT, "Batching Run() must have at least one input tensor"),
    (rows_of, [[2], []], Code.INVALID_ARGUMENT,
     "Batching Run() input tensors must have at least one dimension"),
    (rows_of, [[2], [1, 2]], Code.INVALID_ARGUMENT,
     "Batching Run() input tensors must have equal 0th-dimension size"),
    (one_row_of, [[]], Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions"),
    (one_row_of, [[3]], Code.FAILED_PRECONDITION,
     "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "shapes", "code", "beginning"), REFUSED)
def test_what_cannot_be_merged_or_split_is_refused(act, shapes, code, beginning):
    with pytest.raises(StatusError) as refused:
        act(*shapes)
    assert refused.value.code is code
    assert refused.value.message.startswith(beginning)


def test_parts_of_an_output_that_has_a_padding_are_made_as_long_as_the_longest():
    parts = [{"ids": np.ones(shape, np.int32)} for shape in ([2, 1, 2], [1, 2, 1])]
    ids = joined_outputs(parts, {"ids": 7})["ids"]
    assert ids.dtype == np.int32
    assert ids.tolist() == [[[1, 1], [7, 7]]] * 2 + [[[1, 7], [1, 7]]]


def test_parts_of_another_output_must_have_one_shape():
    with pytest.raises(StatusError, match="^Tensor concat operation failed: ") as refused:
        joined_outputs([{"y": np.ones([1, 2])}, {"y": np.ones([1, 3])}], {"ids": 7})
    assert refused.value.code is Code.INTERNAL
