"""Traces: a model is fed a source and given decoder tokens, and what it computes is kept.

A source and tokens go in; the cross keys and values of the encoder and the logits of every step
come out, of the Keras reference in one call, of a file step by step through each of its
signatures. What is right is not known here.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bart_export import contract
from bart_export.runtime.engine import Buckets, FileEngine

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

ROWS = 2  # one beam and several are stepped by different signatures


class Model(Protocol):
    """What can be stepped: an engine, or the Keras reference."""

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Any:
        """Encode a source."""

    def step(self, state: Any, token_ids: IntArray, beam_index: IntArray) -> tuple[FloatArray, Any]:
        """Decode one token of every row."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """A source, and the tokens a decoder is fed."""

    source_token_ids: tuple[int, ...]
    fed_token_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a model computed along a trace.

    `cross` are the tensors of `contract.cross_tensors` by name, (1, heads, source, head_size), none
    where the model does not show them; `logits` are (steps, vocabulary). Both are float32, of a
    model in float64 float64.
    """

    cross: Mapping[str, npt.NDArray[np.floating[Any]]]
    logits: npt.NDArray[np.floating[Any]]


class Teacher(Protocol):
    """What files are compared with: the Keras reference, or a float file."""

    def along(self, trace: Trace) -> Seen:
        """Compute a whole trace."""


@dataclasses.dataclass(frozen=True)
class FileTeacher:
    """A float file as what others are compared with."""

    engine: Model

    def along(self, trace: Trace) -> Seen:
        """Compute a trace step by step."""
        return follow(self.engine, trace)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way through a file: a pair of its signatures, and what goes through them.

    `encode` and `decode` are the signatures' names, `rows` the beams, `source_length` and
    `target_length` the room that there is, None for any.
    """

    encode: str
    decode: str
    model: Model
    rows: int
    source_length: int | None = None
    target_length: int | None = None

    def has_room(self, trace: Trace) -> bool:
        """Return whether a trace's source need not be cut."""
        return self.source_length is None or len(trace.source_token_ids) <= self.source_length

    def fitted(self, trace: Trace) -> Trace:
        """Return a trace cut to the room there is; a source keeps its end token."""
        source, fed = trace.source_token_ids, trace.fed_token_ids
        if self.source_length is not None and not self.has_room(trace):
            source = (*source[: self.source_length - 1], source[-1])
        # One position is for the token that nobody feeds.
        room = None if self.target_length is None else max(1, self.target_length - 1)
        return Trace(source, fed[:room])


def ways(model: Model) -> Iterator[Way]:
    """Yield ways that together take a file through all of its signatures."""
    if not (isinstance(model, FileEngine) and isinstance(model.sizing, Buckets)):
        yield Way("encode", "decode_single", model, 1)
        yield Way("encode", "decode", model, ROWS)
        return
    encoders = {
        bucket.sizes[contract.SOURCE]: bucket.name
        for bucket in model.sizing.buckets
        if bucket.signature.name == "encode"
    }
    for bucket in model.sizing.buckets:
        if bucket.signature.name == "encode":
            continue
        source, beams = bucket.sizes[contract.SOURCE], bucket.sizes[contract.BEAMS]
        yield Way(
            encoders[source],
            bucket.name,
            model.only(source, beams),
            beams,
            source,
            bucket.sizes[contract.CAPACITY],
        )


def taken(through: Sequence[Way], trace: Trace) -> list[Way]:
    """Return the ways that a runtime would take with a trace's source: the shortest with room."""
    lengths = [way.source_length for way in through if way.has_room(trace)]
    shortest = min(lengths, key=lambda length: length or 0, default=None)
    return [way for way in through if way.has_room(trace) and way.source_length == shortest]


def follow(model: Model, trace: Trace, rows: int = 1) -> Seen:
    """Feed the tokens of a trace to a model one by one and keep what it computes.

    Of several rows one is fed the tokens and the others the first of them over and over; every
    step moves the row to the place of another, so that caches must follow.
    """
    fed = trace.fed_token_ids
    state = model.start(trace.source_token_ids, rows, len(fed) + 1)
    cross = model.cross(state) if isinstance(model, FileEngine) else {}
    beam_index = np.arange(-1, rows - 1, dtype=np.int32) % rows
    kept = []
    for position, token_id in enumerate(fed):
        place = position % rows
        token_ids = np.full(rows, fed[0], np.int32)
        token_ids[place] = token_id
        logits, state = model.step(state, token_ids, beam_index)
        kept.append(logits[place].copy())
    return Seen(cross, np.stack(kept))
