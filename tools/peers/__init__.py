"""The peers that compare_peers.py measures: a row and a module each, all built from arrays.

None of the peers is a dependency of the package: a row's module is imported if its packages are
installed.
"""

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.runtime.engine import FloatArray


class Model(Protocol):
    """What a peer builds."""

    def generate(self, source: Sequence[int], num_beams: int, new_tokens: int) -> list[int]:
        """Return the best sequence of exactly so many new tokens, the start token left out."""

    def logits(self, source: Sequence[int], target: Sequence[int]) -> FloatArray:
        """Return the logits after each token of a decoder sequence, (target, vocabulary).

        A constant may be missing from each row, as from logarithms of probabilities.
        """


@dataclasses.dataclass(frozen=True)
class Peer:
    """One row of the table.

    Args:
        packages: distributions that must be installed; the first one's version is reported.
        module: what builds it, `peers.<module>.build`.
        settings: further arguments of `build`.
        usual: whether it is measured where no peer is named.
        tolerance: how far its logits may be from the float32 model's, see `compare_peers.distance`.
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
            directory: an empty one, for files.
            num_threads: threads that it may use.

        Raises:
            ConfigurationError: for an architecture that the peer does not have.
        """
        module = importlib.import_module(f"peers.{self.module}")
        made: Model = module.build(checkpoint, directory, num_threads, **self.settings)
        return made


def version(package: str) -> str | None:
    """Return the version of an installed distribution, None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


ONNX_RUNTIME = ("onnxruntime", "onnx")
OPENVINO = ("openvino", "nncf")
EXACT = 1e-3  # float32, the sums in another order
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
