"""KerasHub's BART on the same weights in float32, with its compiled `generate` from ids to ids.

It runs with XLA, the default, or without, which is faster on some machines. Each number of beams
has a compiled function with KerasHub's greedy or beam sampler. All sequences start with the
decoder's start token and never stop early. KerasHub forbids no token: unlike other searches of a
fixed length, it may choose the end token.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bart_export.checkpoints import weight_names
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import ConfigurationError
from bart_export.quiet import native_stderr_silenced
from bart_export.runtime.sizing import FloatArray

with native_stderr_silenced():
    import keras_hub

    from bart_export.checkpoints.keras_preset import KERAS_FIELDS

START = GenerationConfig().decoder_start_token_id


class KerasHub:
    """A `BartSeq2SeqLM` for each number of beams. See `peers.Model`."""

    def __init__(self, backbone: Any, settings: dict[str, Any]) -> None:
        self.backbone = backbone
        self.settings = settings
        self.models: dict[int, Any] = {}

    def model(self, num_beams: int) -> Any:
        """Return the model with this number of beams."""
        if num_beams not in self.models:
            made = keras_hub.models.BartSeq2SeqLM(backbone=self.backbone, preprocessor=None)
            beam = keras_hub.samplers.BeamSampler(num_beams=num_beams)
            made.compile(sampler=beam if num_beams > 1 else "greedy", **self.settings)
            self.models[num_beams] = made
        return self.models[num_beams]

    def generate(
        self, sources: Sequence[Sequence[int]], num_beams: int, new_tokens: int
    ) -> list[list[int]]:
        """Return each source's best sequence of exactly `new_tokens` tokens."""
        targets = np.zeros((len(sources), new_tokens + 1), np.int32)
        targets[:, 0] = START
        inputs = batch(sources, targets)
        inputs["decoder_padding_mask"][:, 1:] = False
        outputs = self.model(num_beams).generate(inputs, stop_token_ids=None)
        return np.asarray(outputs["decoder_token_ids"])[:, 1:].tolist()

    def logits(self, source: Sequence[int], target: Sequence[int]) -> FloatArray:
        """Return the logits after each decoder token, (target, vocabulary)."""
        return np.asarray(self.model(1)(batch([source], [target])))[0]


def batch(sources: Any, targets: Any) -> dict[str, Any]:
    """Return the inputs for sources of one length, and a decoder sequence for each."""
    ids = {"encoder": np.array(sources, np.int32), "decoder": np.array(targets, np.int32)}
    return {f"{side}_token_ids": array for side, array in ids.items()} | {
        f"{side}_padding_mask": np.ones(array.shape, bool) for side, array in ids.items()
    }


def backbone_of(config: BartConfig) -> Any:
    """Return KerasHub's backbone with this architecture.

    Raises:
        ConfigurationError: if KerasHub does not support the architecture.
    """
    if extensions := config.extensions():
        raise ConfigurationError(
            f"KerasHub's BART has one size for both stacks and no {', '.join(extensions)}."
        )
    sizes = {field: getattr(config, field) for field in KERAS_FIELDS}
    return keras_hub.models.BartBackbone(**sizes)


def build(checkpoint: Checkpoint, *unneeded: Any, **settings: Any) -> KerasHub:
    """Make the model; the arguments for a directory and threads are not used.

    `settings` are arguments of KerasHub's `compile`.
    """
    backbone = backbone_of(checkpoint.config)
    rows = weight_names.weights(checkpoint.config)  # in KerasHub's order
    for variable, row in zip(backbone.weights, rows, strict=True):
        variable.assign(checkpoint.weights[row.name])
    return KerasHub(backbone, settings)
