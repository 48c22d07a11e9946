"""The engine for static builds: it takes the smallest bucket of the file that a request fits in.

The protocol is that of `bart_export.runtime.engine`, the buckets come from the file's entry in the
manifest. A source shorter than its bucket is padded and the padding masked, a beam that nobody
asked for decodes along and is dropped. What fits in no bucket is refused. How a bucket's signatures
are named, and what else there is in an artifact, is not known here.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bart_export import contract
from bart_export.artifact import Artifact
from bart_export.config import BartConfig
from bart_export.errors import InputError
from bart_export.runtime import litert
from bart_export.runtime.buffers import BufferedSignature, decode_rows, encode_source
from bart_export.runtime.engine import (
    Decoding,
    FloatArray,
    IntArray,
    available_cores,
    check_serial,
    check_source,
)
from bart_export.runtime.weight_cache import open_with_cache

# What a request calls the size of an axis.
LIMITED = {
    contract.SOURCE: "A source's number of tokens",
    contract.BEAMS: "num_beams, or num_return_sequences,",
    contract.CAPACITY: "max_length",
}


class StaticEngine:
    """An engine over the signatures of a static build, on LiteRT's `CompiledModel`.

    Args:
        model: the compiled model.
        config: the model's architecture, as the artifact's manifest gives it.
        buckets: the signatures to use, an `encode` for the source length of every `decode`.
    """

    def __init__(self, model: Any, config: BartConfig, buckets: Sequence[contract.Bucket]) -> None:
        self.model = model
        self.config = config
        self.buckets = buckets
        self.serial = 0
        # Their buffers are made when a bucket is first used.
        self.signatures = {
            bucket.name: BufferedSignature(model, config, bucket.name, bucket.signature)
            for bucket in buckets
        }

    @classmethod
    def open(
        cls,
        path: pathlib.Path,
        config: BartConfig,
        buckets: Sequence[contract.Bucket],
        *,
        num_threads: int | None = None,
        weight_cache: str = "",
    ) -> "StaticEngine":
        """Open a static build.

        Without a `weight_cache`, a file that is whole or absent, every signature has a copy of its
        own of the weights in memory.

        Raises:
            EngineError: if LiteRT cannot open the file.
        """
        model = litert.open_model(path, num_threads or available_cores(), weight_cache)
        return cls(model, config, buckets)

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, name: str, *, num_threads: int | None = None
    ) -> "StaticEngine":
        """Open a file of an artifact, with a weight cache of its own."""
        path = artifact.path(name)
        config = artifact.config
        entry = artifact.manifest["files"][name]
        buckets = contract.read_buckets(config, entry["signatures"])
        return open_with_cache(
            lambda cache: cls.open(
                path, config, buckets, num_threads=num_threads, weight_cache=cache
            ),
            artifact.directory,
            entry["bytes"],
            entry["sha256"],
            litert.library(),
        )

    def only(self, source_length: int, num_beams: int) -> "StaticEngine":
        """Return an engine over the same open file that knows one bucket, to try each."""
        wanted = {contract.SOURCE: source_length, contract.BEAMS: num_beams}
        buckets = [
            bucket
            for bucket in self.buckets
            if all(wanted.get(axis, size) == size for axis, size in bucket.sizes.items())
        ]
        return StaticEngine(self.model, self.config, buckets)

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Encode a source; see `Engine.start`.

        Raises:
            InputError: for more than the largest bucket takes.
        """
        ids = check_source(self.config, token_ids)
        sizes = {
            axis: self.smallest(axis, needed)
            for axis, needed in (
                (contract.SOURCE, ids.shape[1]),
                (contract.BEAMS, num_beams),
                (contract.CAPACITY, max_length),
            )
        }
        self.serial += 1
        encode = self.signature({contract.SOURCE: sizes[contract.SOURCE]})
        decode = self.signature(sizes)
        room = ((0, 0), (0, sizes[contract.SOURCE] - ids.shape[1]))
        caches = encode_source(encode, decode, np.pad(ids, room), np.pad(np.ones_like(ids), room))
        return Decoding(self.serial, 0, (decode, caches))

    def step(
        self, state: Decoding, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, Decoding]:
        """Decode one token of every beam; see `Engine.step`."""
        check_serial(self.serial, state)
        decode, (read, written) = state.caches
        rows = len(token_ids)
        room = (0, decode.sizes[contract.BEAMS] - rows)
        logits = decode_rows(
            decode, read, written, state.position, np.pad(token_ids, room), np.pad(beam_index, room)
        )
        return logits[:rows], Decoding(state.serial, state.position + 1, (decode, (written, read)))

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

    def signature(self, sizes: Mapping[str, int]) -> BufferedSignature:
        """Return the signature of the bucket with these sizes, with its buffers."""
        name = next(bucket.name for bucket in self.buckets if bucket.sizes == sizes)
        signature = self.signatures[name]
        signature.fit(sizes)
        return signature
