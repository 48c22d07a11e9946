"""Results of generations, and streams of their pieces on an engine that runs one at a time."""

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
        """Generated tokens, without the start token, per second of decoding."""
        return self.tokens / self.decode if self.decode else 0.0


@dataclasses.dataclass(frozen=True)
class GeneratedSequence:
    """A generated text, its token ids including the start token, and its score."""

    text: str
    token_ids: tuple[int, ...]
    score: float


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one source text.

    `sequences` has the `num_return_sequences` best texts, best first; `text`, `token_ids` and
    `score` are those of the first. With beams a score is the sum of log-probabilities divided by
    generated length ** `length_penalty`; otherwise it is the sum, before any processor or filter.
    `truncated` is True if only the beginning of the source was read.
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
    """Which stream's generation is on an engine, and the lock of all that use the engine.

    An engine's buffers belong to the generation that was begun last. A stream that wants to begin
    first runs the one before it to its end, whichever thread that belongs to, and leaves its pieces
    there for its reader. So no generation waits for a reader, none is lost, and a stream that was
    closed or dropped takes no more time.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stream: Callable[[], Stream | None] = lambda: None

    def take(self, stream: "Stream") -> None:
        """Give the engine to a stream, after the one that has it has run to its end."""
        before = self.stream()
        if before is not None and before is not stream:
            before.finish()
        self.stream = weakref.ref(stream)

    def end(self, reason: str) -> None:
        """End the generation that is on the engine: its reader gets an EngineError."""
        before = self.stream()
        if before is not None and not before.ended:
            before.stop(EngineError(reason))


class Stream(Iterator[str]):
    """An iterator over the pieces of a generated text, each as soon as it is certain.

    Thread-safe. A stream may be left unfinished: the next generation on the same engine first
    completes it. `close`, or dropping the last reference, ends it where it is.

    Attributes:
        result: the whole result, with scores and token ids; None until the generation has ended.
    """

    def __init__(self, turn: Turn, running: Generator[str | Result, None, None]) -> None:
        self.turn = turn
        self.running = running
        self.pieces: collections.deque[str] = collections.deque()
        self.ended = False
        self.failure: Exception | None = None
        self.result: Result | None = None

    def __next__(self) -> str:
        """Return the next piece, or raise what the generation failed with."""
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
        """Run the generation to its end and return its result, or raise what it failed with."""
        with self.turn.lock:
            if not self.ended:
                self.turn.take(self)
                self.finish()
            if self.result is None:
                raise self.failure or EngineError("The stream was closed before its end.")
            return self.result

    def close(self) -> None:
        """Stop the generation; there are no further pieces."""
        with self.turn.lock:
            if not self.ended:
                self.stop(None)

    def finish(self) -> None:
        """Run the generation to its end; the lock is held."""
        while not self.ended:
            self.advance()

    def advance(self) -> None:
        """Run the generation to its next piece, or to its end; the lock is held."""
        try:
            piece = next(self.running)
            if isinstance(piece, str):
                self.pieces.append(piece)
            else:
                self.ended, self.result = True, piece
        except Exception as error:
            self.ended, self.failure = True, error
        except BaseException:  # Ctrl-C, perhaps on behalf of another stream
            self.stop(EngineError("The generation was interrupted before its end. Begin it again."))
            raise

    def stop(self, failure: Exception | None) -> None:
        """End the generation here; the lock is held."""
        self.ended, self.failure = True, failure
        self.pieces.clear()
        self.running.close()
