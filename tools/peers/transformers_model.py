"""transformers' BART on the same weights in float32, with its `generate`.

It is configured as its documentation advises for a CPU: evaluation mode, fused attention where
available, and no gradients.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import BartConfig, BartForConditionalGeneration

from bart_export.checkpoints import weight_names
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.hugging_face import FIELDS, POSITION_OFFSET
from bart_export.checkpoints.weight_names import FINAL_LOGITS_BIAS, Weight
from bart_export.runtime.sizing import FloatArray


class Transformers:
    """A `BartForConditionalGeneration`. See `peers.Model`."""

    def __init__(self, model: BartForConditionalGeneration) -> None:
        self.model = model

    @torch.inference_mode()
    def generate(
        self, sources: Sequence[Sequence[int]], num_beams: int, new_tokens: int
    ) -> list[list[int]]:
        """Return each source's best sequence of exactly `new_tokens` tokens."""
        ids = torch.tensor(sources)
        outputs = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=num_beams,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
        )
        return outputs[:, 1:].tolist()

    @torch.inference_mode()
    def logits(self, source: Sequence[int], target: Sequence[int]) -> FloatArray:
        """Return the logits after each decoder token, (target, vocabulary)."""
        outputs = self.model(
            input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])
        )
        return outputs.logits[0].numpy()


def arranged(row: Weight, array: np.ndarray) -> torch.Tensor:
    """Return an array in transformers' layout: (outputs, inputs), positions after two rows."""
    array = np.asarray(array, np.float32)
    if row.name == FINAL_LOGITS_BIAS:
        array = array[np.newaxis]
    elif "position_embedding" in row.name:
        array = np.pad(array, ((POSITION_OFFSET, 0), (0, 0)))
    elif row.name.endswith("/kernel"):
        heads_first = row.name.endswith("attention_output/kernel")
        inputs = array.shape[0] * array.shape[1] if heads_first else array.shape[0]
        array = array.reshape(inputs, -1).T
    elif row.name.endswith("/bias"):
        array = array.ravel()
    return torch.from_numpy(np.ascontiguousarray(array))


def build(checkpoint: Checkpoint, directory: Path, num_threads: int) -> Transformers:
    """Make the model; nothing is written to `directory`."""
    torch.set_num_threads(num_threads)
    config = checkpoint.config
    settings = {theirs: getattr(config, ours) for ours, theirs, _ in FIELDS}
    model = BartForConditionalGeneration(BartConfig(**settings, forced_eos_token_id=None))
    tensors = {
        row.hugging_face
        if row.name == FINAL_LOGITS_BIAS
        else f"model.{row.hugging_face}": arranged(row, checkpoint.weights[row.name])
        for row in weight_names.weights(config)
    }
    missing, surplus = model.load_state_dict(tensors, strict=False)
    tied = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}
    if surplus or set(missing) - tied - {"lm_head.weight", FINAL_LOGITS_BIAS}:
        raise RuntimeError(f"transformers misses {missing} and does not know {surplus}.")
    model.tie_weights()
    return Transformers(model.eval())
