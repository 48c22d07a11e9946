"""Drafts for greedy search: a summary copies spans of its source.

As in transformers' prompt lookup decoding, the next tokens are guessed to be those that followed
the last tokens where they occurred before, in the source or else in the generated tokens.
"""

from collections.abc import Sequence

LENGTHS = (3, 2, 1)  # n-grams that are looked up, in this order
# An exponential average of how many successive guesses are right. Verifying a draft takes about a
# third longer than decoding one token.
MEMORY, PAYS = 0.7, 0.45


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
        self.guess: list[int] = []
        self.right, self.average = 0, 0.0

    def index(self, text: int, end: int) -> None:
        """Add the n-grams that end before a place; the first of equal ones counts."""
        tokens, places = self.texts[text], self.places[text]
        for length in LENGTHS:
            if end >= length:
                places.setdefault(tuple(tokens[end - length : end]), end)

    def add(self, token_id: int) -> None:
        """Add a generated token, compare it with the guess, and guess again."""
        if self.guess[:1] == [token_id]:
            self.right = min(self.right + 1, self.most)
        elif self.guess:
            self.average, self.right = self.expected, 0
        generated = self.texts[1]
        self.index(1, len(generated))  # without the token, which the lookup must not find
        generated.append(token_id)
        self.guess = self.look_up()

    @property
    def expected(self) -> float:
        """The average with the present guesses."""
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
