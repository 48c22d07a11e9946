"""Drafts for greedy search: a summary copies spans of its source.

As in transformers' prompt lookup decoding, the next tokens are guessed to be those that followed
the last tokens where they occurred before, in the source or else in the generated tokens.
"""

import collections
from collections.abc import Sequence

LENGTHS = (3, 2)  # n-grams that are looked up, in this order
# An exponential average of the right tokens in a guess. Verifying a guess takes about a third
# longer than decoding one token, so that it pays from less than one right token on.
MEMORY, PAYS = 0.7, 0.6


class PromptLookup:
    """Guesses up to `most` next tokens while its guesses are good.

    `source` are the token ids of the source.
    """

    def __init__(self, source: Sequence[int], most: int) -> None:
        self.most = most
        self.texts = [list(source), []]
        self.places: list[dict[tuple[int, ...], int]] = [{}, {}]
        for end in range(1, len(source) + 1):
            self.index(0, end)
        self.guess: collections.deque[int] = collections.deque()
        self.right, self.average = 0, 0.0

    def index(self, text: int, end: int) -> None:
        """Add the n-grams that end before a place; the first of equal ones counts."""
        tokens, places = self.texts[text], self.places[text]
        for length in LENGTHS:
            if end >= length:
                places.setdefault(tuple(tokens[end - length : end]), end)

    def add(self, token_id: int) -> None:
        """Add a generated token, and compare it with the guess."""
        generated = self.texts[1]
        if self.guess and self.guess.popleft() == token_id:
            self.right += 1
        else:
            self.guess.clear()
        if not self.guess:
            self.average, self.right = self.expected, 0
        self.index(1, len(generated))  # before the token, which the lookup must not find
        generated.append(token_id)
        if not self.guess:
            self.guess.extend(self.look_up())

    @property
    def expected(self) -> float:
        """The average with the present guess."""
        return MEMORY * self.average + (1 - MEMORY) * self.right

    def draft(self) -> tuple[int, ...]:
        """Return the guess if it is likely to be right."""
        return tuple(self.guess) if self.expected >= PAYS else ()

    def look_up(self) -> list[int]:
        """Return the tokens that followed the last tokens."""
        generated = self.texts[1]
        for tokens, places in zip(self.texts, self.places, strict=True):
            for length in LENGTHS:
                found = places.get(tuple(generated[-length:]))
                if found is not None and found < len(tokens):
                    return tokens[found : found + self.most]
        return []
