"""Drafts for greedy search, because summaries copy spans of their sources.

As in transformers' prompt lookup decoding, the guess is what followed an earlier occurrence of the
last tokens, in the source or else in the generated tokens.
"""

import sys
from collections.abc import Iterable, Sequence

LENGTHS = (3, 2, 1)  # n-grams that are looked up, in this order
# The decay of the average number of right guesses in a row, and the average from which drafts pay
# off. Verifying ten tokens takes a third longer than decoding one in bart_base, but four times as
# long in bart_mini_en, so the length of a draft is limited to a multiple of the average.
DECAY, THRESHOLD, FACTOR = 0.7, 0.45, 4


class PromptLookup:
    """Guesses up to `max_tokens` next tokens, as long as its guesses are mostly right.

    `source` are the source's token ids.
    """

    def __init__(self, source: Sequence[int], max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.source, self.generated = list(source), list[int]()
        # Strings are searched faster than lists.
        self.source_text, self.generated_text = text(source), ""
        self.guess: list[int] = []
        self.hits, self.average = 0, 0.0

    def add(self, token_id: int) -> None:
        """Add a generated token, compare it with the guess, and guess again."""
        if self.guess[:1] == [token_id]:
            self.hits = min(self.hits + 1, self.max_tokens)
        elif self.guess:
            self.average, self.hits = self.expected, 0
        self.generated.append(token_id)
        self.generated_text += text([token_id])
        self.guess = self.look_up()

    @property
    def expected(self) -> float:
        """The average, including the current guesses."""
        return DECAY * self.average + (1 - DECAY) * self.hits

    def draft(self) -> tuple[int, ...]:
        """Return the part of the guess that is likely to be right."""
        if self.expected < THRESHOLD:
            return ()
        return tuple(self.guess[: 1 + int(FACTOR * self.expected)])

    def look_up(self) -> list[int]:
        """Return the tokens that followed an earlier occurrence of the last tokens."""
        last = self.generated_text
        for tokens, searched in ((self.source, self.source_text), (self.generated, last[:-1])):
            for length in LENGTHS:
                ngram = last[-length:]
                start = searched.find(ngram)
                end = start + len(ngram)
                if start >= 0 and end < len(tokens):
                    return tokens[end : end + self.max_tokens]
        return []


def text(token_ids: Iterable[int]) -> str:
    """Return a character for each token; a vocabulary beyond Unicode only makes guesses worse."""
    return "".join(chr(token_id % (sys.maxunicode + 1)) for token_id in token_ids)
