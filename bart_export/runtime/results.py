"""Results of generations, and streams that take turns on an engine."""

import collections
import dataclasses
import threading
import weakref
from collections.abc import Callable, Generator, Iterator

from bart_export.errors import EngineError


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


class Turn:
    """The stream that is running on an engine, and the lock of all streams.

    An engine's buffers belong to its latest generation. Before a stream starts, the running one is
    completed, whichever thread reads it, and its pieces are buffered for its reader.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stream: Callable[[], Stream | None] = lambda: None

    def take(self, stream: "Stream") -> None:
        """Give the engine to a stream, after completing the running stream."""
        running = self.stream()
        if running is not None and running is not stream:
            running.finish()
        self.stream = weakref.ref(stream)

    def end(self, reason: str) -> None:
        """Stop the running stream, whose reader gets an EngineError."""
        running = self.stream()
        if running is not None and not running.ended:
            running.stop(EngineError(reason))


class Stream(Iterator[str]):
    """An iterator that yields the pieces of a generated text as soon as they are final.

    Thread-safe. An unfinished stream is completed by the next generation on the same engine.
    `close`, or dropping the last reference, stops it.

    Attributes:
        result: the result with scores and token ids, or None until the generation has ended.
    """

    def __init__(self, turn: Turn, running: Generator[str | Result, None, None]) -> None:
        self.turn = turn
        self.running = running
        self.pieces: collections.deque[str] = collections.deque()
        self.ended = False
        self.failure: Exception | None = None
        self.result: Result | None = None

    def __next__(self) -> str:
        """Return the next piece, or raise the generation's error."""
        with self.turn.lock:
            if not self.pieces and not self.ended:
                self.turn.take(self)
                self.advance()
            if self.pieces:
                return self.pieces.popleft()
            if self.failure is not None:
                raise self.failure
            raise StopIteration(self.result)

    def drain(self) -> Result:
        """Complete the generation and return its result, or raise its error."""
        with self.turn.lock:
            if not self.ended:
                self.turn.take(self)
                self.finish()
            if self.result is None:
                raise self.failure or EngineError("The stream was closed before its end.")
            return self.result

    def close(self) -> None:
        """Stop the generation and discard its pieces."""
        with self.turn.lock:
            if not self.ended:
                self.stop(None)

    def finish(self) -> None:
        """Complete the generation; the caller holds the lock."""
        while not self.ended:
            self.advance()

    def advance(self) -> None:
        """Generate the next piece or the result; the caller holds the lock."""
        try:
            piece = next(self.running)
            if isinstance(piece, str):
                self.pieces.append(piece)
            else:
                self.ended, self.result = True, piece
        except Exception as error:
            self.ended, self.failure = True, error
        except BaseException:  # Ctrl-C, perhaps while completing this stream for another one
            self.stop(EngineError("The generation was interrupted before its end. Start it again."))
            raise

    def stop(self, failure: Exception | None) -> None:
        """Stop the generation; the caller holds the lock."""
        self.ended, self.failure = True, failure
        self.pieces.clear()
        self.running.close()
