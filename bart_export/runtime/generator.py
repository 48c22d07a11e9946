"""Text in, text out: an artifact's tokenizer, engine and search behind three lines of Python.

    generator = Generator.from_artifact("artifacts/bart_mini_en")
    print(generator.generate("A long text ...").text)
    for piece in generator.stream("A long text ..."): print(piece, end="")

Settings come from the artifact's manifest, parameters of a call go on top.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Generator as PythonGenerator
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, overload

from bart_export.artifact.artifact import Artifact
from bart_export.config import GenerationConfig, check_token_ids
from bart_export.edgetpu.parts import TARGET as EDGETPU
from bart_export.errors import ArtifactError, ConfigurationError, InputError
from bart_export.recipes import table
from bart_export.runtime.engine import CLOSED, ClosedEngine, Engine
from bart_export.runtime.engines import files_for, open_engine, runnable, target_of
from bart_export.runtime.search import Finished, drive, search
from bart_export.runtime.sizing import check_length
from bart_export.runtime.stream import Stream, Turn
from bart_export.text.detokenizer import IncrementalDetokenizer, generated_text
from bart_export.text.tokenizer import BartTokenizer


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


class Generator:
    """Generates text with an exported BART.

    Thread-safe: texts are generated one after another, and a half-read stream is completed and
    buffered for its reader before the next text starts. To generate texts in parallel, open several
    Generators. A `with` block releases the model at its end.

    Args:
        tokenizer: turns text into ids and back.
        engine: runs the model; it belongs to this Generator.
        generation: default settings.
        encoder_sequence_length: maximum number of source tokens, including both ends.
        source: what `repr` shows as the origin.
    """

    def __init__(
        self,
        tokenizer: BartTokenizer,
        engine: Engine,
        generation: GenerationConfig,
        encoder_sequence_length: int,
        source: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self.engine = engine
        self.generation = generation
        self.encoder_sequence_length = encoder_sequence_length
        self.source = source
        self.turn = Turn()

    @classmethod
    def from_artifact(
        cls,
        path: str | os.PathLike[str],
        *,
        recipe: str | None = None,
        shapes: str | None = None,
        engine: str | None = None,
        num_threads: int | None = None,
    ) -> "Generator":
        """Open an artifact's tokenizer and one of its `.tflite` files.

        Args:
            path: the artifact directory.
            recipe: the recipe of the file; None means the default recipe, or the first that the
                engine computes correctly.
            shapes: "dynamic" or "static"; None prefers the dynamic build.
            engine: "ai-edge-litert", "tflite-runtime" or "edgetpu"; None means the first that is
                installed.
            num_threads: threads of the engine; None means one for a small model and all cores for
                a larger one.

        Raises:
            ArtifactError: for an artifact that is damaged or has no such file.
            ConfigurationError: for an engine or `num_threads` that cannot be.
            EngineError: for a file this machine's runtime cannot run rightly.
        """
        artifact = Artifact.open(pathlib.Path(path))
        tokenizer = BartTokenizer.from_artifact(artifact)
        file = choose_file(artifact, recipe, engine, shapes)
        fixed = files_for(artifact, engine)[file].shapes
        longest = artifact.manifest.encoder_sequence_length
        return cls(
            tokenizer,
            open_engine(artifact, file, engine, num_threads=num_threads),
            artifact.generation,
            min(longest, max(fixed.source_lengths)) if fixed else longest,
            f"{file} of {artifact.directory}",
        )

    def __repr__(self) -> str:
        """Return what was opened, and the settings that are used where a call gives none."""
        settings = ", ".join(
            f"{field.name}={getattr(self.generation, field.name)!r}"
            for field in dataclasses.fields(self.generation)
            if getattr(self.generation, field.name) != field.default
        )
        return f"<{type(self).__name__} of {self.source or self.engine}: {settings}>"

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the model and its memory. Later calls raise EngineError."""
        with self.turn.lock:
            self.turn.end(CLOSED)
            self.engine = ClosedEngine(self.engine.config)

    @overload
    def generate(
        self,
        text: str,
        *,
        truncate: bool = ...,
        allow_empty: bool = ...,
        special_tokens: bool = ...,
        **parameters: Any,
    ) -> Result: ...

    @overload
    def generate(
        self,
        text: Sequence[str],
        *,
        truncate: bool = ...,
        allow_empty: bool = ...,
        special_tokens: bool = ...,
        **parameters: Any,
    ) -> list[Result]: ...

    def generate(
        self,
        text: str | Sequence[str],
        *,
        truncate: bool = False,
        allow_empty: bool = False,
        special_tokens: bool = False,
        **parameters: Any,
    ) -> Result | list[Result]:
        """Generate from a text, or from each of several.

        Args:
            text: the source text, or several. All are checked before any is generated from.
            truncate: cut a source that is too long and set `truncated` in its result; without, it
                is an error.
            allow_empty: accept a text that is empty or white space; the model makes up a text.
            special_tokens: treat "<mask>" and BART's other special tokens in a text as tokens, like
                `split_special_tokens=False` of transformers. Untrusted text can then end or pad a
                source. A checkpoint's own added tokens are always tokens.
            **parameters: fields of `GenerationConfig` for this call, and `max_new_tokens` and
                `min_new_tokens`, which are lengths without the start token.

        Raises:
            InputError: for what is no text, too long or empty, or a `max_length` without room.
            ConfigurationError: for a parameter that does not exist or is out of range.
            EngineError: if the generator was closed.
        """
        several = isinstance(text, Iterable) and not isinstance(text, (str, bytes, Mapping))
        texts: list[Any] = list(text) if several else [text]
        for one in texts:
            check_text(one, allow_empty)
        sources = [self.read(one, truncate, special_tokens) for one in texts]
        generation = self.settings(**parameters)
        results = [self.pieces(ids, generation, cut).drain() for ids, cut in sources]
        return results if several else results[0]

    def generate_ids(self, token_ids: Sequence[int], **parameters: Any) -> Result:
        """Generate from source token ids, including start and end token; see `generate`."""
        return self.pieces(token_ids, self.settings(**parameters)).drain()

    def stream(
        self,
        text: str,
        *,
        truncate: bool = False,
        allow_empty: bool = False,
        special_tokens: bool = False,
        **parameters: Any,
    ) -> Stream[Result]:
        """Generate from a text and yield pieces of the result as soon as they are certain.

        The pieces joined are the text that `generate` returns, and the stream's `result` is then
        what `generate` returns. With beams a piece is certain once all beams agree on it. Ending
        the iteration stops the work. Parameters and errors are those of `generate`.
        """
        generation = self.settings(**parameters)
        check_text(text, allow_empty)
        ids, truncated = self.read(text, truncate, special_tokens)
        return self.pieces(ids, generation, truncated)

    def settings(self, **parameters: Any) -> GenerationConfig:
        """Return the settings of a call with these parameters; errors are those of `generate`."""
        generation = self.generation.replace(**parameters)
        check_token_ids(generation, self.engine.config.vocabulary_size)
        check_length(self.engine.config, generation.max_length)
        return generation

    def pieces(
        self, token_ids: Sequence[int], generation: GenerationConfig, truncated: bool = False
    ) -> Stream[Result]:
        """Return a generation from source token ids, which begins when it is first read."""
        return Stream(self.turn, self.run(token_ids, generation, truncated))

    def run(
        self, token_ids: Sequence[int], generation: GenerationConfig, truncated: bool = False
    ) -> PythonGenerator[str | Result, None, None]:
        """Yield the text of a generation piece by piece, and at last all of it."""
        began = time.perf_counter()
        state = self.start(token_ids, generation)
        encoded = time.perf_counter()
        detokenizer = IncrementalDetokenizer(self.tokenizer, keep_first_space=False)
        for event in drive(search(generation), self.engine.step, state):
            if isinstance(event, Finished):
                decoded = time.perf_counter()
                if rest := detokenizer.finish():
                    yield rest
                sequences = tuple(
                    GeneratedSequence(
                        generated_text(self.tokenizer, hypothesis.token_ids),
                        hypothesis.token_ids,
                        hypothesis.score,
                    )
                    for hypothesis in event.hypotheses
                )
                tokens = len(sequences[0].token_ids) - 1
                timings = Timings(encoded - began, decoded - encoded, tokens)
                yield Result(sequences, tuple(token_ids), timings, truncated)
            elif piece := "".join(map(detokenizer.push, event.token_ids)):
                yield piece

    def encode(self, text: str, truncate: bool, special_tokens: bool = False) -> list[int]:
        """Turn a text into source token ids, start and end token included."""
        return self.tokenizer.encode(
            text, self.encoder_sequence_length, truncate=truncate, special_tokens=special_tokens
        )

    def read(self, text: str, truncate: bool, special_tokens: bool) -> tuple[list[int], bool]:
        """Return the source ids of a text, and whether it had to be cut."""
        if not truncate:
            return self.encode(text, False, special_tokens), False
        return self.tokenizer.encode_beginning(
            text, self.encoder_sequence_length, special_tokens=special_tokens
        )

    def start(self, token_ids: Sequence[int], generation: GenerationConfig) -> Any:
        """Encode a source for as many rows as the search will ask for."""
        check_token_ids(generation, self.engine.config.vocabulary_size)
        rows = max(generation.num_beams, generation.num_return_sequences)
        return self.engine.start(token_ids, rows, generation.max_length)


def check_text(text: str, allow_empty: bool) -> None:
    """Raise InputError for what is no text, or one without a word unless that is allowed."""
    if not isinstance(text, str):
        raise InputError(f"A text must be a str, received {type(text).__name__}.")
    if not allow_empty and not text.strip():
        raise InputError(
            f"A text must have a character that is not white space, received {text[:20]!r}. The "
            "model makes up a text for it where allow_empty is given."
        )


BUILDS = ("dynamic", "static")  # a recipe's files, the one to prefer first


def choose_file(
    artifact: Artifact, recipe: str | None, engine: str | None, shapes: str | None = None
) -> str:
    """Return the name of the `.tflite` file of a recipe, or of the best that an engine can run.

    `shapes` is one of `BUILDS`; None takes the first that there is.

    Raises:
        ArtifactError: if the artifact has no such file, with those that it has.
        ConfigurationError: for `shapes` that are none.
    """
    if shapes not in (None, *BUILDS):
        raise ConfigurationError(f"shapes must be {' or '.join(BUILDS)}, received {shapes!r}.")
    files = files_for(artifact, engine)
    if not files:
        there = (
            ""
            if engine or not artifact.files(EDGETPU)
            else f" It has files for --engine {EDGETPU}."
        )
        raise ArtifactError(
            f"{artifact.directory} has no .tflite file{f' for {engine}' if engine else ''}.{there} "
            f"Export one with: bart-export --preset {artifact.manifest.preset} --target "
            f"{target_of(engine)} --output {artifact.directory}"
        )
    wanted = {
        name: entry
        for name, entry in files.items()
        if recipe in (None, entry.recipe) and shapes in (None, entry.build)
    }
    if not wanted:
        kind = f"{shapes} file" if shapes else "file"
        of = f" of recipe {recipe!r}" if recipe else ""
        has = ", ".join(
            entry.recipe + " (static)" * (entry.build == "static") for entry in files.values()
        )
        raise ArtifactError(f"{artifact.directory} has no {kind}{of}. It has: {has}.")
    preferred = sorted(
        wanted,
        key=lambda name: (
            wanted[name].recipe != table.DEFAULT,
            BUILDS.index(wanted[name].build),
        ),
    )
    return preferred[0] if recipe else runnable(preferred, files, engine)
