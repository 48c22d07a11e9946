"""Which bucket of a static build a request runs in, and what it is padded with.

The buckets of a file and a request go in; out come the smallest bucket that has room, and arrays
that fill it: a source is padded and the padding masked, a beam that nobody asked for decodes along
in a place of its own. What fits in no bucket is refused. No runtime is known here.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.errors import InputError
from bart_export.runtime.engine import IntArray, check_source

# What a request calls the size of an axis.
LIMITED = {
    contract.SOURCE: "A source's number of tokens",
    contract.BEAMS: "num_beams, or num_return_sequences,",
    contract.CAPACITY: "max_length",
}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A source in the buckets that encode and decode it: ids and mask, int32 (one, source)."""

    encode: contract.Bucket
    decode: contract.Bucket
    token_ids: IntArray
    padding_mask: IntArray


def fit(
    config: BartConfig,
    buckets: Sequence[contract.Bucket],
    token_ids: Sequence[int],
    num_beams: int,
    max_length: int,
) -> Fitted:
    """Return a source in the smallest buckets that have room for it, its beams and its tokens.

    Raises:
        InputError: for more than the largest bucket takes, and as `check_source` does.
    """
    ids = check_source(config, token_ids)
    needed = {
        contract.SOURCE: ids.shape[1],
        contract.BEAMS: num_beams,
        contract.CAPACITY: max_length,
    }
    sizes = {axis: smallest(buckets, axis, size) for axis, size in needed.items()}
    source = sizes[contract.SOURCE]
    room = ((0, 0), (0, source - ids.shape[1]))
    return Fitted(
        encode=next(one for one in buckets if one.sizes == {contract.SOURCE: source}),
        decode=next(one for one in buckets if one.sizes == sizes),
        token_ids=np.pad(ids, room),
        padding_mask=np.pad(np.ones_like(ids), room),
    )


def smallest(buckets: Sequence[contract.Bucket], axis: str, needed: int) -> int:
    """Return the smallest size of an axis that some bucket has and that has room.

    Raises:
        InputError: if none has.
    """
    sizes = sorted({one.sizes[axis] for one in buckets if axis in one.sizes})
    for size in sizes:
        if size >= needed:
            return size
    raise InputError(
        f"{LIMITED[axis]} must be at most {sizes[-1]} in this static build, which was made for "
        f"{', '.join(map(str, sizes))}, received {needed}. A dynamic build takes more."
    )


def fill_rows(beams: int, token_ids: IntArray, beam_index: IntArray) -> tuple[IntArray, IntArray]:
    """Return token ids and beam indices for all beams of a bucket; spare ones keep their place."""
    rows = len(token_ids)
    spare = np.arange(rows, beams, dtype=np.int32)
    return np.pad(token_ids, (0, beams - rows)), np.concatenate([beam_index, spare])
