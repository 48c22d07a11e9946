"""The files of an export for the Edge TPU, and the signatures of the host file.

Each encoder layer's projections are segments: files with one int8 input and one int8 output,
(1, 1, rows, width), in which rows are independent. Everything that the Edge TPU cannot compute, or
computes too inaccurately, is a signature of the host file, which runs on the CPU.
"""

import dataclasses
from collections.abc import Sequence

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import HIDDEN, ONE, SOURCE, Signature, Tensor

TARGET = "edgetpu"
DIRECTORY = TARGET
HOST = f"{DIRECTORY}/host.tflite"
# `NAME/centre` and `NAME/reach` of each segment, and `NAME/gamma` and `NAME/beta` of each norm.
CONSTANTS = f"{DIRECTORY}/constants.npz"

# The concatenated queries, keys and values; the projection after attention; the feed-forward block.
ATTENTION_INPUT, ATTENTION_OUTPUT = "attention_input", "attention_output"
FEEDFORWARD = "feedforward"
KINDS = (ATTENTION_INPUT, ATTENTION_OUTPUT, FEEDFORWARD)


@dataclasses.dataclass(frozen=True)
class Segment:
    """A segment of an encoder layer; `kind` is one of `KINDS`."""

    layer: int
    kind: str

    @property
    def name(self) -> str:
        """The segment's name."""
        return f"layer_{self.layer}_{self.kind}"

    @property
    def file(self) -> str:
        """The segment's file in an artifact: for the CPU, and the compiler's input."""
        return f"{DIRECTORY}/{self.name}.tflite"

    @property
    def compiled_file(self) -> str:
        """The compiler's output, for the Edge TPU."""
        return f"{DIRECTORY}/{self.name}_edgetpu.tflite"


def segments(config: BartConfig) -> tuple[Segment, ...]:
    """Return the segments of an encoder, in execution order."""
    return tuple(Segment(layer, kind) for layer in range(config.num_layers) for kind in KINDS)


def host_signatures(
    config: BartConfig, tflite_signatures: Sequence[Signature] | None = None
) -> tuple[Signature, ...]:
    """Return the signatures of the host file; those of other `.tflite` files are given.

    `embed`, `mix`, `add_and_norm` and `cross` are the parts of `encode` between the segments;
    the decoders are the same as in every `.tflite` file.
    """
    rows = (SOURCE, HIDDEN)
    hidden = Tensor("hidden", "float32", rows)
    encode, *decoders = tflite_signatures or contract.tflite_signatures(config)
    return (
        Signature("embed", (Tensor("encoder_token_ids", "int32", (ONE, SOURCE)),), (hidden,)),
        Signature(
            "mix",
            tuple(Tensor(part, "float32", rows) for part in ("query", "key", "value")),
            (Tensor("mixed", "float32", rows),),
        ),
        Signature(
            "add_and_norm",
            (
                hidden,
                Tensor("update", "float32", rows),
                Tensor("gamma", "float32", (HIDDEN,)),
                Tensor("beta", "float32", (HIDDEN,)),
            ),
            (Tensor("normalized", "float32", rows),),
        ),
        Signature("cross", (hidden,), encode.outputs),
        *decoders,
    )
