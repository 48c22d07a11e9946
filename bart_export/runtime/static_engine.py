"""The engine for static builds: it takes the smallest bucket of the file that a request fits in.

The protocol is that of `bart_export.runtime.engine`, the buckets come from the file's entry in the
manifest. As in the engine for dynamic builds, `encode` writes where `decode` reads and two sets of
cache buffers alternate. How a bucket is chosen and filled is not known here.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.config import BartConfig
from bart_export.runtime import litert
from bart_export.runtime.buckets import fill_rows, fit
from bart_export.runtime.buffers import BufferedSignature, decode_rows, encode_source
from bart_export.runtime.engine import Decoding, FloatArray, IntArray, available_cores, check_serial
from bart_export.runtime.graph_rules import checked_path, static_signatures
from bart_export.runtime.weight_cache import open_with_cache


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
        config = artifact.config
        buckets = contract.read_buckets(config, artifact.manifest["files"][name]["signatures"])
        path = checked_path(artifact, name, static_signatures(config, buckets))
        return open_with_cache(
            lambda cache: cls.open(
                path, config, buckets, num_threads=num_threads, weight_cache=cache
            ),
            artifact,
            name,
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
        fitted = fit(self.config, self.buckets, token_ids, num_beams, max_length)
        self.serial += 1
        encode, decode = self.signature(fitted.encode), self.signature(fitted.decode)
        caches = encode_source(encode, decode, fitted.token_ids, fitted.padding_mask)
        return Decoding(self.serial, 0, (decode, caches))

    def step(
        self, state: Decoding, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, Decoding]:
        """Decode one token of every beam; see `Engine.step`."""
        check_serial(self.serial, state)
        decode, (read, written) = state.caches
        filled = fill_rows(decode.sizes[contract.BEAMS], token_ids, beam_index)
        logits = decode_rows(decode, read, written, state.position, *filled)
        state = Decoding(state.serial, state.position + 1, (decode, (written, read)))
        return logits[: len(token_ids)], state

    def signature(self, bucket: contract.Bucket) -> BufferedSignature:
        """Return the signature of a bucket with its buffers."""
        signature = self.signatures[bucket.name]
        signature.fit(bucket.sizes)
        return signature
