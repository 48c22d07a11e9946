"""Drafts for greedy search, because summaries copy spans of their sources.

As in transformers' prompt lookup decoding, the guess is what followed an earlier occurrence of the
last tokens, in the source or else in the generated tokens.
"""

from collections.abc import Sequence

LENGTHS = (3, 2, 1)  # n-grams that are looked up, in this order
# The decay of the average number of right guesses in a row, and the average from which drafts pay
# off: verifying a draft takes about a third longer than decoding one token.
DECAY, THRESHOLD = 0.7, 0.45


class PromptLookup:
    """Guesses up to `max_tokens` next tokens, as long as its guesses are mostly right.

    `source` are the source's token ids.
    """

    def __init__(self, source: Sequence[int], max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.texts = [list(source), []]
        self.places: list[dict[tuple[int, ...], int]] = [{}, {}]
        for end in range(1, len(source) + 1):
            self.index(0, end)
        self.guess: list[int] = []
        self.hits, self.average = 0, 0.0

    def index(self, text: int, end: int) -> None:
        """Add the n-grams that end before index `end`; of equal ones, the first is kept."""
        tokens, places = self.texts[text], self.places[text]
        for length in LENGTHS:
            if end >= length:
                places.setdefault(tuple(tokens[end - length : end]), end)

    def add(self, token_id: int) -> None:
        """Add a generated token, compare it with the guess, and guess again."""
        if self.guess[:1] == [token_id]:
            self.hits = min(self.hits + 1, self.max_tokens)
        elif self.guess:
            self.average, self.hits = self.expected, 0
        generated = self.texts[1]
        self.index(1, len(generated))  # not yet with the token, whose n-grams must not be found
        generated.append(token_id)
        self.guess = self.look_up()

    @property
    def expected(self) -> float:
        """The average, including the current guesses."""
        return DECAY * self.average + (1 - DECAY) * self.hits

    def draft(self) -> tuple[int, ...]:
        """Return the guess if it is likely to be right."""
        return tuple(self.guess) if self.expected >= THRESHOLD else ()

    def look_up(self) -> list[int]:
        """Return the tokens that followed an earlier occurrence of the last tokens."""
        generated = self.texts[1]
        for tokens, places in zip(self.texts, self.places, strict=True):
            for length in LENGTHS:
                found = places.get(tuple(generated[-length:]))
                if found is not None and found < len(tokens):
                    return tokens[found : found + self.max_tokens]
        return []
