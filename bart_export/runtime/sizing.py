"""Which signatures a request runs in, with which sizes, and what they are filled with.

In a dynamic build all lengths are the real ones, and the caches start small and double. A static
build has a signature for each bucket: a request takes the smallest with room, its source is padded
and the padding masked, and a beam that nobody asked for decodes along in a place of its own.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import Bucket
from bart_export.errors import InputError, shown

IntArray = npt.NDArray[np.int32]

FIRST_CAPACITY = 16  # decoder positions; doubling costs milliseconds, room costs on every step
# What a request calls the size of an axis.
LIMITED = {
    contract.SOURCE: "A source's number of tokens",
    contract.BEAMS: "num_beams, or num_return_sequences,",
    contract.CAPACITY: "max_length",
}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A source in the signatures that encode and decode it: ids and mask, int32 (one, source)."""

    encode: Bucket
    decode: Bucket
    token_ids: IntArray
    padding_mask: IntArray


class Dynamic:
    """The sizing of a dynamic build.

    Args:
        config: the model's architecture.
        signatures: those of `contract.tflite_signatures`, or others that decode alike.
    """

    def __init__(self, config: BartConfig, signatures: Sequence[contract.Signature] = ()) -> None:
        self.config = config
        signatures = signatures or contract.tflite_signatures(config)
        self.encode, self.decode, self.decode_single = signatures

    def fit(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Fitted:
        """Return a source with room for its first tokens.

        Raises:
            InputError: for a source or a length that the model has no positions for.
        """
        ids = check_source(self.config, token_ids)
        check_length(self.config, max_length)
        decode = self.decode if num_beams > 1 else self.decode_single
        sizes = {
            contract.SOURCE: ids.shape[1],
            contract.BEAMS: num_beams,
            contract.CAPACITY: min(FIRST_CAPACITY, max_length),
        }
        encode = Bucket(self.encode.name, self.encode, {contract.SOURCE: ids.shape[1]})
        return Fitted(encode, Bucket(decode.name, decode, sizes), ids, np.ones_like(ids))

    def grown(self, fitted: Fitted) -> Fitted:
        """Return a source with room for twice as many decoder positions."""
        doubled = 2 * fitted.decode.sizes[contract.CAPACITY]
        capacity = min(doubled, self.config.max_sequence_length)
        sizes = {**fitted.decode.sizes, contract.CAPACITY: capacity}
        decode = dataclasses.replace(fitted.decode, sizes=sizes)
        return dataclasses.replace(fitted, decode=decode)


class Buckets:
    """The sizing of a static build.

    Args:
        config: the model's architecture.
        buckets: the signatures to use, an `encode` for the source length of every `decode`.
    """

    def __init__(self, config: BartConfig, buckets: Sequence[Bucket]) -> None:
        self.config = config
        self.buckets = buckets

    def only(self, source_length: int, num_beams: int) -> "Buckets":
        """Return the sizing by a single bucket."""
        wanted = {contract.SOURCE: source_length, contract.BEAMS: num_beams}
        buckets = [
            bucket
            for bucket in self.buckets
            if all(wanted.get(axis, size) == size for axis, size in bucket.sizes.items())
        ]
        return Buckets(self.config, buckets)

    def fit(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Fitted:
        """Return a source in the smallest buckets that have room for it, its beams and its tokens.

        Raises:
            InputError: for more than the largest bucket takes, and as `check_source` does.
        """
        ids = check_source(self.config, token_ids)
        needed = {
            contract.SOURCE: ids.shape[1],
            contract.BEAMS: num_beams,
            contract.CAPACITY: max_length,
        }
        sizes = {axis: self.smallest(axis, size) for axis, size in needed.items()}
        source = sizes[contract.SOURCE]
        room = ((0, 0), (0, source - ids.shape[1]))
        return Fitted(
            encode=next(one for one in self.buckets if one.sizes == {contract.SOURCE: source}),
            decode=next(one for one in self.buckets if one.sizes == sizes),
            token_ids=np.pad(ids, room),
            padding_mask=np.pad(np.ones_like(ids), room),
        )

    def grown(self, fitted: Fitted) -> Fitted:
        """Refuse: a bucket is chosen with room for all tokens."""
        raise InputError("A static build has no room beyond the max_length it was started with.")

    def smallest(self, axis: str, needed: int) -> int:
        """Return the smallest size of an axis that some bucket has and that has room.

        Raises:
            InputError: if none has.
        """
        sizes = sorted({one.sizes[axis] for one in self.buckets if axis in one.sizes})
        for size in sizes:
            if size >= needed:
                return size
        raise InputError(
            f"{LIMITED[axis]} must be at most {sizes[-1]} in this static build, which was made for "
            f"{', '.join(map(str, sizes))}, received {needed}. A dynamic build takes more."
        )


def check_source(config: BartConfig, token_ids: Sequence[int]) -> IntArray:
    """Return token ids as an array (one, source).

    Raises:
        InputError: for what are no ids, none, more than the model has positions, or an id it does
            not know.
    """
    try:
        ids = np.asarray(token_ids if len(token_ids) else np.empty(0, np.int64))
    except (TypeError, ValueError):  # without a length, or of lists of several
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"A source must be a list of token ids, received {shown(token_ids)}.")
    if not 0 < ids.size <= config.max_sequence_length:
        raise InputError(
            f"A source must have 1 to {config.max_sequence_length} tokens, received {ids.size}."
        )
    outside = ids[(ids < 0) | (ids >= config.vocabulary_size)]
    if outside.size:
        raise InputError(
            f"Token ids must be in 0 to {config.vocabulary_size - 1}, received {int(outside[0])}."
        )
    return ids.astype(np.int32)[None, :]


def check_length(config: BartConfig, max_length: int) -> None:
    """Raise InputError if `max_length` decoder tokens do not fit the model's positions."""
    if max_length > config.max_sequence_length:
        raise InputError(
            f"max_length must be at most the model's {config.max_sequence_length} positions, "
            f"received {max_length}."
        )


def fill_rows(beams: int, token_ids: IntArray, beam_index: IntArray) -> tuple[IntArray, IntArray]:
    """Return token ids and beam indices for all beams of a signature; spare ones stay in place."""
    rows = len(token_ids)
    if rows == beams:
        return token_ids, beam_index
    spare = np.arange(rows, beams, dtype=np.int32)
    return np.pad(token_ids, (0, beams - rows)), np.concatenate([beam_index, spare])
