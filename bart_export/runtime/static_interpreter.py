"""The engine for static builds on runtimes that have `Interpreter` only.

The protocol is that of `bart_export.runtime.engine`, the buckets come from the file's entry in the
manifest. Nothing is ever resized, so that XNNPACK can be used where a dynamic build must do
without: with one thread, tflite-runtime 2.14 took 9.0 ms for a float32 step of bart_mini_en in the
dynamic build, 3.3 ms in the static one. How a bucket is chosen and filled is not known here.
"""

import pathlib
from collections.abc import Sequence

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.config import BartConfig
from bart_export.recipes.table import TFLITE_RUNTIME
from bart_export.runtime.buckets import fill_rows, fit
from bart_export.runtime.engine import Decoding, FloatArray, IntArray, check_serial
from bart_export.runtime.graph_rules import checked_path, static_signatures
from bart_export.runtime.interpreter import (
    ALL_KERNELS,
    InterpreterSignature,
    decode_in_place,
    encode_in_place,
    hand_over_source,
    open_signatures,
)


class StaticInterpreterEngine:
    """An engine over the signatures of a static build, on an `Interpreter`.

    Args:
        path: the `.tflite` file.
        config: the model's architecture, as the artifact's manifest gives it.
        buckets: the signatures to use, an `encode` for the source length of every `decode`.
        num_threads: threads for the CPU kernels; None takes all cores this process may use.
        interpreter: the package to take `Interpreter` from, a key of `interpreter.INTERPRETERS`.

    Raises:
        EngineError: if the package cannot be used, or the file not be opened.
        MissingExtra: if the package is not installed.
    """

    def __init__(
        self,
        path: pathlib.Path,
        config: BartConfig,
        buckets: Sequence[contract.Bucket],
        *,
        num_threads: int | None = None,
        interpreter: str = TFLITE_RUNTIME,
    ) -> None:
        self.config = config
        self.buckets = buckets
        self.cache_names = tuple(tensor.name for tensor in contract.cache_tensors(config))
        self.cross_names = tuple(tensor.name for tensor in contract.cross_tensors(config))
        self.serial = 0
        self.signatures = open_signatures(interpreter, path, num_threads, (), ALL_KERNELS)
        self.allocated: set[str] = set()  # a signature's tensors take room from its first use on

    @classmethod
    def from_artifact(
        cls, artifact: Artifact, name: str, *, num_threads: int | None = None
    ) -> "StaticInterpreterEngine":
        """Open a file of an artifact with tflite-runtime."""
        config = artifact.config
        buckets = contract.read_buckets(config, artifact.manifest["files"][name]["signatures"])
        path = checked_path(artifact, name, static_signatures(config, buckets))
        return cls(path, config, buckets, num_threads=num_threads)

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Decoding:
        """Encode a source; see `Engine.start`.

        Raises:
            InputError: for more than the largest bucket takes.
        """
        fitted = fit(self.config, self.buckets, token_ids, num_beams, max_length)
        self.serial += 1
        encode, decode = self.signature(fitted.encode), self.signature(fitted.decode)
        encode_in_place(encode, fitted.token_ids, fitted.padding_mask)
        hand_over_source(encode, decode, self.cross_names)
        for name in self.cache_names:
            decode.input(name)[:] = 0
        return Decoding(self.serial, 0, fitted.decode)

    def step(
        self, state: Decoding, token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, Decoding]:
        """Decode one token of every beam; see `Engine.step`."""
        check_serial(self.serial, state)
        bucket = state.caches
        filled = fill_rows(bucket.sizes[contract.BEAMS], token_ids, beam_index)
        logits = decode_in_place(self.signature(bucket), self.cache_names, state.position, *filled)
        return logits[: len(token_ids)], Decoding(state.serial, state.position + 1, bucket)

    def signature(self, bucket: contract.Bucket) -> InterpreterSignature:
        """Return the signature of a bucket with its tensors."""
        signature = self.signatures[bucket.name]
        if bucket.name not in self.allocated:
            signature.resize({})
            self.allocated.add(bucket.name)
        return signature
