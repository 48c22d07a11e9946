"""Drawing one token from a row of logits: temperature, then top-k, then top-p, then chance.

In goes one row, out comes one token id. Filters keep what Hugging Face's keep. Chance is NumPy's
PCG64 generator, one uniform number a token: a seed gives the same tokens on every platform. It does
not give the tokens that PyTorch's generator would.
"""

from collections.abc import Callable

import numpy as np

from bart_export.config import GenerationConfig
from bart_export.runtime.scores import FloatArray, kth_largest

Choice = Callable[[FloatArray], int]


def greedy_choice(row: FloatArray) -> int:
    """Return the most likely token, the lowest id among equals."""
    return int(row.argmax())


def sampled_choice(generation: GenerationConfig) -> Choice:
    """Return a function that draws a token from processed logits (vocabulary,).

    Top-k keeps every token that is as likely as the k-th. Top-p keeps the fewest tokens whose
    probabilities reach `top_p`, among equals the lower ids. A row without a possible token gives
    token 0.
    """
    chance = np.random.Generator(np.random.PCG64(generation.seed))
    top_k, top_p = generation.top_k, generation.top_p

    def choose(row: FloatArray) -> int:
        peak = row.max()
        if peak == -np.inf:
            return 0
        possible = row >= kth_largest(row, top_k) if top_k else row > -np.inf
        tokens = np.flatnonzero(possible)
        scores = row[tokens].astype(np.float64) - float(peak)
        with np.errstate(over="ignore"):  # a temperature near 0 leaves the peak alone
            weights = np.exp(scores / generation.temperature)
        if top_p < 1:
            order = nucleus(weights, top_p)
            tokens, weights = tokens[order], weights[order]
        cumulative = weights.cumsum()
        place = int(np.searchsorted(cumulative, chance.random() * cumulative[-1], side="right"))
        return int(tokens[min(place, tokens.size - 1)])

    return choose


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Return the indices of the largest weights that together reach the share `top_p` of all,
    largest first, at least one.
    """
    total = weights.sum()
    # All weights below this mean of the tail fit into the tail together: none needs sorting.
    heavy = np.flatnonzero(weights >= (1 - top_p) * total / weights.size)
    order = heavy[np.argsort(-weights[heavy], kind="stable")]
    before = np.cumsum(weights[order])[:-1]
    return order[: 1 + int(np.searchsorted(before, top_p * total, side="left"))]
