"""A BART in NumPy with caches, the step function for tests of the search.

It reads a transformers checkpoint and shares no code with the package, so it is an independent
reference for steps and forward passes.
"""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

erf = np.frompyfunc(math.erf, 1, 1)


class NumpyBart:
    def __init__(self, directory: Path, dtype=np.float32, moved=None):
        """Compute in `dtype`; the generator `moved` changes each weight by up to half a ulp.

        A float32's ulp is at most 2^-23 of the number.
        """
        self.config = json.loads((directory / "config.json").read_text())
        self.weights = {
            name.removeprefix("model."): array.astype(dtype)
            for name, array in load_file(directory / "model.safetensors").items()
        }
        if moved is not None:
            for array in self.weights.values():
                array *= 1 + moved.uniform(-1, 1, array.shape) * 2.0**-24
        self.scale = math.sqrt(self.config["d_model"]) if self.config["scale_embedding"] else 1.0
        self.bias = self.weights.get("final_logits_bias", np.zeros((1, 1), dtype))

    def encode(self, token_ids):
        """token_ids (source,) without padding -> (1, source, hidden)."""
        hidden = self.embed("encoder", np.asarray(token_ids)[None], 0)
        for layer in range(self.config["encoder_layers"]):
            name = f"encoder.layers.{layer}"
            attended = self.attend(f"{name}.self_attn", hidden, *self.keys_values(name, hidden))
            hidden = self.norm(f"{name}.self_attn_layer_norm", hidden + attended)
            hidden = self.feed_forward(name, hidden)
        return hidden

    def start(self, encoder_output):
        """The state before the first step: position, caches, keys and values of the source."""
        layers = [f"decoder.layers.{layer}" for layer in range(self.config["decoder_layers"])]
        cross = [self.keys_values(name, encoder_output, "encoder_attn") for name in layers]
        return 0, [None] * len(layers), cross

    def step(self, state, token_ids, beam_index):
        hidden, state = self.decode(state, token_ids, beam_index)
        return self.logits(hidden), state

    def forward(self, token_ids, decoder_token_ids):
        """The encoder's output (source, hidden), the decoder's (length, hidden) and the logits."""
        encoded = self.encode(token_ids)
        state, rows = self.start(encoded), []
        for token in decoder_token_ids:
            hidden, state = self.decode(state, np.array([token]), np.array([0]))
            rows.append(hidden[0])
        return encoded[0], np.stack(rows), self.logits(np.stack(rows))

    def logits(self, hidden):
        return hidden @ self.weights["shared.weight"].T + self.bias

    def decode(self, state, token_ids, beam_index):
        position, caches, cross = state
        hidden = self.embed("decoder", token_ids[:, None], position)  # (beams, 1, hidden)
        updated = []
        for layer, (cache, source) in enumerate(zip(caches, cross, strict=True)):
            name = f"decoder.layers.{layer}"
            new = self.keys_values(name, hidden)
            if cache is not None:
                old = (tensor[beam_index] for tensor in cache)
                new = [np.concatenate(pair, axis=2) for pair in zip(old, new, strict=True)]
            updated.append(new)
            attended = self.attend(f"{name}.self_attn", hidden, *new)
            hidden = self.norm(f"{name}.self_attn_layer_norm", hidden + attended)
            attended = self.attend(f"{name}.encoder_attn", hidden, *source)
            hidden = self.norm(f"{name}.encoder_attn_layer_norm", hidden + attended)
            hidden = self.feed_forward(name, hidden)
        return hidden[:, 0], (position + 1, updated, cross)

    def embed(self, side, token_ids, position):
        positions = self.weights[f"{side}.embed_positions.weight"][2 + position :]
        hidden = self.weights["shared.weight"][token_ids] * self.scale
        return self.norm(f"{side}.layernorm_embedding", hidden + positions[: token_ids.shape[1]])

    def keys_values(self, name, hidden, kind="self_attn"):
        return [self.heads(self.dense(f"{name}.{kind}.{part}_proj", hidden)) for part in "kv"]

    def heads(self, tensor):
        heads = self.config["decoder_attention_heads"]  # the encoder has as many
        return tensor.reshape(*tensor.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def attend(self, name, hidden, keys, values):
        query = self.heads(self.dense(f"{name}.q_proj", hidden))
        scores = query @ keys.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ values
        return self.dense(f"{name}.out_proj", mixed.transpose(0, 2, 1, 3).reshape(hidden.shape))

    def feed_forward(self, name, hidden):
        wide = self.dense(f"{name}.fc1", hidden)
        wide = wide * (1 + erf(wide / math.sqrt(2)).astype(wide.dtype)) / 2
        return self.norm(f"{name}.final_layer_norm", hidden + self.dense(f"{name}.fc2", wide))

    def dense(self, name, hidden):
        return hidden @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name, hidden):
        centered = hidden - hidden.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-5)
        return centered / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
