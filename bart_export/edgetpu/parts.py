"""What an export for the Edge TPU consists of: its files, and the signatures of the host's.

The projections of each encoder layer are segments, files with one int8 input and one int8 output,
(1, 1, rows, width). They compute every row on its own, so that a source of any length is run
through them in pieces. Everything else, which the Edge TPU cannot compute or not well, is in one
file for the CPU, as signatures by name.
"""

import dataclasses

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.contract import HIDDEN, ONE, SOURCE, Signature, Tensor

TARGET = "edgetpu"
DIRECTORY = TARGET
HOST = f"{DIRECTORY}/host.tflite"
# For each segment `NAME/centre` and `NAME/reach`, and for each norm `NAME/gamma` and `NAME/beta`.
CONSTANTS = f"{DIRECTORY}/constants.npz"

# Queries, keys and values, side by side; the projection after attention; and the feed-forward.
ATTENTION_INPUT, ATTENTION_OUTPUT = "attention_input", "attention_output"
FEEDFORWARD = "feedforward"
KINDS = (ATTENTION_INPUT, ATTENTION_OUTPUT, FEEDFORWARD)


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of an encoder layer, a number and one of `KINDS`."""

    layer: int
    kind: str

    @property
    def name(self) -> str:
        """What the segment is called."""
        return f"layer_{self.layer}_{self.kind}"

    @property
    def file(self) -> str:
        """The segment's file in an artifact, for the CPU and for the compiler."""
        return f"{DIRECTORY}/{self.name}.tflite"

    @property
    def compiled_file(self) -> str:
        """What the compiler makes of it, for the Edge TPU."""
        return f"{DIRECTORY}/{self.name}_edgetpu.tflite"


def segments(config: BartConfig) -> tuple[Segment, ...]:
    """Return the segments of an encoder in the order they run."""
    return tuple(Segment(layer, kind) for layer in range(config.num_layers) for kind in KINDS)


def host_signatures(config: BartConfig) -> tuple[Signature, ...]:
    """Return the signatures of the file for the CPU.

    `embed`, `mix`, `add_and_norm` and `cross` are the parts of `encode` around the segments;
    `decode` and `decode_single` are those of every `.tflite` file.
    """
    rows = (SOURCE, HIDDEN)
    hidden = Tensor("hidden", "float32", rows)
    _, decode, decode_single = contract.tflite_signatures(config)
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
        Signature("cross", (hidden,), contract.cross_tensors(config)),
        decode,
        decode_single,
    )
