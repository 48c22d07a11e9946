"""The peers of compare_peers.py, each with a row and a module.

Peers are not dependencies of the package: a module is imported only if its packages are installed.
"""

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.runtime.sizing import FloatArray


class Model(Protocol):
    """A model of a peer."""

    def generate(
        self, sources: Sequence[Sequence[int]], num_beams: int, new_tokens: int
    ) -> list[list[int]]:
        """Return each source's best sequence of `new_tokens` tokens, without the start token.

        The sources have the same length, so that no peer pads or masks them.
        """

    def logits(self, source: Sequence[int], target: Sequence[int]) -> FloatArray:
        """Return the logits after each token of a decoder sequence, (target, vocabulary).

        Rows may differ by a constant, as log-probabilities do.
        """


@dataclasses.dataclass(frozen=True)
class Peer:
    """A peer: a row of `PEERS`.

    Args:
        packages: distributions that must be installed; the first one's version is reported.
        module: the module with its `build` function, in `peers`.
        settings: further arguments of `build`.
        usual: whether it is measured by default.
        tolerance: maximum `compare_peers.distance` of its logits from the float32 model's.
    """

    packages: tuple[str, ...]
    module: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    usual: bool = True
    tolerance: float = 0.1

    def missing(self) -> list[str]:
        """Return the packages that are not installed."""
        return [package for package in self.packages if version(package) is None]

    def build(self, checkpoint: Checkpoint, directory: Path, num_threads: int) -> Model:
        """Build the peer's model.

        Args:
            checkpoint: the weights.
            directory: an empty directory for its files.
            num_threads: the number of threads to use.

        Raises:
            ConfigurationError: if the peer does not support the architecture.
        """
        module = importlib.import_module(f"peers.{self.module}")
        made: Model = module.build(checkpoint, directory, num_threads, **self.settings)
        return made


def version(package: str) -> str | None:
    """Return the version of an installed distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


ONNX_RUNTIME = ("onnxruntime", "onnx")
OPENVINO = ("openvino", "nncf")
EXACT = 1e-3  # float32, with sums in another order
PEERS = {
    "CTranslate2 int8": Peer(("ctranslate2",), "ctranslate2_model", {"int8": True}),
    "CTranslate2 float32": Peer(
        ("ctranslate2",), "ctranslate2_model", {"int8": False}, usual=False, tolerance=EXACT
    ),
    "ONNX Runtime int8": Peer(ONNX_RUNTIME, "onnx_runtime", {"int8": True}),
    "ONNX Runtime float32": Peer(
        ONNX_RUNTIME, "onnx_runtime", {"int8": False}, usual=False, tolerance=EXACT
    ),
    "OpenVINO int8": Peer(OPENVINO, "openvino_runtime", {"int8": True}),
    "OpenVINO float32": Peer(
        OPENVINO, "openvino_runtime", {"int8": False}, usual=False, tolerance=EXACT
    ),
    "KerasHub": Peer(("keras-hub",), "keras_hub_model", tolerance=EXACT),
    "KerasHub without XLA": Peer(
        ("keras-hub",), "keras_hub_model", {"jit_compile": False}, tolerance=EXACT
    ),
    "transformers": Peer(("transformers", "torch"), "transformers_model", tolerance=EXACT),
}
