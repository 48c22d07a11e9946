"""The arrays of a batch: calls' inputs concatenated, and the outputs split again for each call.

Merging and padding follow TensorFlow Serving's batching_session.cc.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from bart_export.server.messages import Array
from bart_export.server.servable import Tensors
from bart_export.server.status import Code, StatusError, invalid


def row_count(inputs: Tensors) -> int:
    """Return the number of rows of a call's inputs."""
    if not inputs:
        raise invalid("Batching Run() must have at least one input tensor")
    if any(value.ndim == 0 for value in inputs.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    counts = {len(value) for value in inputs.values()}
    if len(counts) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return counts.pop()


def merged_inputs(calls: Sequence[Tensors], size: int, pad: bool) -> Tensors:
    """Return the concatenated inputs of all calls, with `size` rows.

    With `pad`, arrays are padded to the longest in each axis with their own first element, whatever
    that means to the model: a mask that begins with 1 is padded with 1. Missing rows repeat the
    first row of the last call that has rows.
    """
    merged = {}
    for name in calls[0]:
        arrays = [call[name] for call in calls]
        if pad and len({array.ndim for array in arrays}) == 1:
            arrays = padded(arrays)
        elif len({array.shape[1:] for array in arrays}) > 1:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"Tensors with name '{name}' from different tasks have different shapes and "
                "padding is turned off. Set pad_variable_length_inputs to true, or ensure that all "
                "tensors with the same name have equal dimensions starting with the first dim.",
            )
        missing = size - sum(map(len, arrays))
        filled = [array for array in arrays if len(array)]
        if missing and filled:
            arrays.append(np.repeat(filled[-1][:1], missing, axis=0))
        merged[name] = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    return merged


def padded(arrays: Sequence[Array]) -> list[Array]:
    """Return arrays of equal rank, padded to the longest in each axis but the first."""
    longest = [max(lengths) for lengths in zip(*(array.shape for array in arrays), strict=True)]
    results = []
    for array in arrays:
        shape = (len(array), *longest[1:])
        if math.prod(shape) == array.size:
            results.append(array.reshape(shape))
            continue
        if not array.size:
            raise invalid("Got empty tensor in batch of non-empty tensors.")
        results.append(np.full(shape, array.flat[0], array.dtype))
        results[-1][tuple(map(slice, array.shape))] = array
    return results


def split_outputs(outputs: Tensors, rows: Sequence[int], size: int) -> list[Tensors]:
    """Return the outputs of each call in a batch."""
    for output in outputs.values():
        if output.ndim == 0:
            raise StatusError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(output) != size:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
                "sizes of the input tensors",
            )
    ends = [*itertools.accumulate(rows, initial=0)]
    return [
        {name: output[start:end] for name, output in outputs.items()}
        for start, end in itertools.pairwise(ends)
    ]


def joined_outputs(parts: Sequence[Tensors], padding: Mapping[str, int]) -> Tensors:
    """Return the outputs of a call that was run in parts.

    Outputs named in `padding` are padded with that value to the longest part.
    """
    joined = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name in padding:
            longest = np.max([array.shape for array in arrays], axis=0)[1:]
            arrays = [
                np.pad(
                    array,
                    [(0, 0), *((0, size) for size in longest - array.shape[1:])],
                    constant_values=padding[name],
                )
                for array in arrays
            ]
        try:
            joined[name] = np.concatenate(arrays)
        except ValueError as error:
            raise StatusError(Code.INTERNAL, f"Tensor concat operation failed: {error}") from error
    return joined
