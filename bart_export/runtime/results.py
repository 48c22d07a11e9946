"""Results of generations, and streams of their pieces."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator

from bart_export.documents import Json
from bart_export.errors import EngineError
from bart_export.runtime.scheduler import Scheduler, Task
from bart_export.text.tokenizer import IncrementalDetokenizer

Row = dict[str, Json]  # a text with what belongs to it, and its result or error
# The fields of a row that a result or an error sets.
RESULT_FIELDS = ("generated_text", "score", "token_ids", "sequences", "truncated", "error")


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds spent encoding and decoding, and the number of generated tokens."""

    encode: float
    decode: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of decoding."""
        return self.tokens / self.decode if self.decode else 0.0


@dataclasses.dataclass(frozen=True)
class GeneratedSequence:
    """A generated text, its token ids including the start token, and its score."""

    text: str
    token_ids: tuple[int, ...]
    score: float

    def to_dict(self) -> Row:
        """Return the fields of a row: "generated_text", "score" and "token_ids"."""
        return {
            "generated_text": self.text,
            "score": round(self.score, 6),
            "token_ids": list(self.token_ids),
        }


@dataclasses.dataclass(frozen=True)
class Result:
    """The result for one source text.

    `sequences` has the `num_return_sequences` best texts, best first; `text`, `token_ids` and
    `score` are the first one's. In beam search, a score is the sum of log-probabilities divided by
    the generated length ** `length_penalty`; otherwise it is the plain sum, of log-probabilities
    taken before processors and filters. `truncated` is True if only the beginning of the source
    was used.
    """

    sequences: tuple[GeneratedSequence, ...]
    source_token_ids: tuple[int, ...]
    timings: Timings
    truncated: bool = False

    @property
    def text(self) -> str:
        """The best text."""
        return self.sequences[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token ids of the best text, including the start token."""
        return self.sequences[0].token_ids

    @property
    def score(self) -> float:
        """The score of the best text."""
        return self.sequences[0].score

    def to_dict(self) -> Row:
        """Return the fields that `bart-export generate --output` adds to a row.

        They are those of the best text, "sequences" if there are several, and "truncated" if True.
        """
        row = self.sequences[0].to_dict()
        if len(self.sequences) > 1:
            row["sequences"] = [sequence.to_dict() for sequence in self.sequences]
        if self.truncated:
            row["truncated"] = True
        return row


class Stream(Iterator[str]):
    """An iterator that yields the pieces of a generated text as soon as they are final.

    Thread-safe. The generation starts with the first read, and advances whenever its Generator
    decodes. `close`, or dropping the last reference, stops it.

    Args:
        scheduler: runs the search.
        task: the source and its settings, not yet submitted.
        detokenizer: converts settled tokens to text.
        to_result: returns the result of a finished task.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        task: Task,
        detokenizer: IncrementalDetokenizer,
        to_result: Callable[[Task], Result],
    ) -> None:
        self.scheduler, self.task = scheduler, task
        self.detokenizer, self.to_result = detokenizer, to_result
        self.lock = threading.Lock()
        self.submitted = False

    @functools.cached_property
    def finished(self) -> Result:
        """The result of the finished task."""
        return self.to_result(self.task)

    @property
    def result(self) -> Result | None:
        """The result with scores and token ids, or None until the generation has ended."""
        return None if self.task.hypotheses is None else self.finished

    def __next__(self) -> str:
        """Return the next piece, or raise the generation's error."""
        with self.lock:
            while not self.task.cancelled:
                self.wait()
                tokens = self.task.take()
                piece = "".join(map(self.detokenizer.push, tokens))
                if self.task.hypotheses is not None and not self.task.tokens:
                    piece += self.detokenizer.finish()
                if piece:
                    return piece
                if self.task.error is not None:
                    raise self.task.error
                if self.task.ended and not self.task.tokens:
                    break
            raise StopIteration(self.result)

    def drain(self) -> Result:
        """Complete the generation and return its result, or raise its error."""
        with self.lock:
            self.task.streams = False
            self.wait()
            if self.result is None:
                raise self.task.error or EngineError("The stream was closed before its end.")
            return self.result

    def wait(self) -> None:
        """Start the generation, and wait until its task is ready."""
        if not self.submitted and not self.task.cancelled:
            self.scheduler.submit(self.task)
            self.submitted = True
        self.scheduler.wait(lambda: self.task.ready)

    def close(self) -> None:
        """Stop the generation and discard its pieces."""
        self.scheduler.cancel(self.task)

    def __del__(self) -> None:
        self.task.cancelled = True  # no lock: the garbage collector may run while it is held
