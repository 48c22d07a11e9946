"""Synthetic models whose logits are a function of the sequence and a seed.

The state is a tuple of the tokens of each beam, so a wrong `beam_index` or an old state gives wrong
logits.
"""

import zlib

import numpy as np

START = 0
END = 1
VOCABULARY = 6


def logits_after(tokens, seed, vocabulary=VOCABULARY, sharpness=1.0):
    stream = np.random.default_rng([seed, zlib.crc32(bytes(tokens))])
    return (stream.normal(size=vocabulary) * sharpness).astype(np.float32)


def made_up_step(seed, vocabulary=VOCABULARY, sharpness=1.0, calls=None):
    """The step of a synthetic model; every call appends its token ids to `calls`."""

    def step(state, token_ids, beam_index):
        if calls is not None:
            calls.append(token_ids.tolist())
        state = state or ((),) * len(token_ids)
        beams = zip(token_ids.tolist(), beam_index.tolist(), strict=True)
        state = tuple((*state[beam], token) for token, beam in beams)
        logits = [logits_after(tokens, seed, vocabulary, sharpness) for tokens in state]
        return np.stack(logits), state

    return step


def log_softmax(row):
    row = row.astype(np.float64)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())
