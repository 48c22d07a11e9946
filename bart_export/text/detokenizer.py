"""Token ids to text, one id at a time.

Ids come in as a model makes them; text goes out as soon as it is whole. A character whose bytes
are spread over several tokens is held back until the last of them. The module does not know where
the ids come from or where the text is shown.
"""

import codecs
from collections.abc import Iterable

from bart_export.text.tokenizer import BartTokenizer

Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class IncrementalDetokenizer:
    """Detokenizes one sequence while it grows.

    All pieces that `push` returns and the one of `finish`, joined, equal
    `tokenizer.detokenize(ids, skip_special_tokens=skip_special_tokens)`, for any ids; without
    `keep_first_space` less the space that the text begins with, if any. That space says no more
    than that a word begins: it is no part of what a model wrote.
    """

    def __init__(
        self,
        tokenizer: BartTokenizer,
        *,
        skip_special_tokens: bool = True,
        keep_first_space: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._keep_first_space = keep_first_space
        self._begun = keep_first_space
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._decoder = Utf8Decoder(errors="replace")

    def push(self, id: int) -> str:
        """Return the text that this id completes, "" while a character is still open.

        Raises:
            InputError: when the id is not in the vocabulary; the sequence can go on without it.
        """
        if id in self._skipped:
            return ""
        return self._shown(self._decoder.decode(self._tokenizer.token_bytes(id)))

    def finish(self) -> str:
        """Return what is left at the end: U+FFFD for a character that was never completed.

        The detokenizer is then ready for another sequence.
        """
        rest = self._shown(self._decoder.decode(b"", final=True))
        self._begun = self._keep_first_space
        return rest

    def _shown(self, text: str) -> str:
        if self._begun or not text:
            return text
        self._begun = True
        return text.removeprefix(" ")


def generated_text(tokenizer: BartTokenizer, ids: Iterable[int]) -> str:
    """Return the text that a model wrote, without the space that begins its first word."""
    detokenizer = IncrementalDetokenizer(tokenizer, keep_first_space=False)
    return "".join([*map(detokenizer.push, ids), detokenizer.finish()])
