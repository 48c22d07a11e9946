"""Text generation with an artifact.

    generator = Generator.from_artifact("artifacts/bart_mini_en")
    print(generator.generate("A long text ...").text)
    for piece in generator.stream("A long text ..."): print(piece, end="")

The artifact's settings are the defaults; a call's parameters override them.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Generator as PythonGenerator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from bart_export.artifact.artifact import Artifact
from bart_export.config import BartConfig, GenerationConfig, check_token_ids
from bart_export.errors import InputError
from bart_export.runtime.engine import CLOSED, ClosedEngine, Engine
from bart_export.runtime.engine_choice import choose_file, files_for, open_engine
from bart_export.runtime.results import GeneratedSequence, Result, Stream, Timings, Turn
from bart_export.runtime.search import Finished, drive, search
from bart_export.runtime.sizing import check_length
from bart_export.text.tokenizer import BartTokenizer, IncrementalDetokenizer, generated_text


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A model's architecture, tokenizer and settings.

    `encoder_sequence_length` is the maximum number of source tokens, including start and end.
    """

    config: BartConfig
    tokenizer: BartTokenizer
    generation: GenerationConfig
    encoder_sequence_length: int

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "ModelInfo":
        """Return the model of an artifact."""
        return cls(
            artifact.config,
            BartTokenizer.from_artifact(artifact),
            artifact.generation,
            artifact.manifest.encoder_sequence_length,
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text, truncated to `encoder_sequence_length`."""
        return tuple(self.tokenizer.encode(text, self.encoder_sequence_length, truncate=True))


class Generator:
    """Generates text with an exported BART model.

    Thread-safe: texts are generated one after another, and an unfinished stream is completed and
    buffered before the next text starts. To generate texts in parallel, open several Generators. As
    a context manager, a Generator releases the model at the end of the block.

    Args:
        tokenizer: converts text to ids and back.
        engine: runs the model; it must not be shared.
        generation: the default settings.
        encoder_sequence_length: the maximum number of source tokens, including start and end.
        source: the origin that `repr` shows.
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
            recipe: the file's recipe; None means the default recipe, or the first that the engine
                runs correctly.
            shapes: "dynamic" or "static"; None prefers the dynamic build.
            engine: "ai-edge-litert", "tflite-runtime" or "edgetpu"; None means the first that is
                installed.
            num_threads: threads of the engine; None means one for a small model and all cores for
                a larger one.

        Raises:
            ArtifactError: if the artifact is damaged or has no such file.
            ConfigurationError: if `engine`, `shapes` or `num_threads` is invalid.
            EngineError: if the installed runtime cannot run the file correctly.
            MissingExtra: if the engine is not installed.
        """
        artifact = Artifact.open(pathlib.Path(path))
        info = ModelInfo.from_artifact(artifact)
        file = choose_file(artifact, recipe, engine, shapes)
        static, longest = files_for(artifact, engine)[file].shapes, info.encoder_sequence_length
        return cls(
            info.tokenizer,
            open_engine(artifact, file, engine, num_threads=num_threads),
            info.generation,
            min(longest, max(static.source_lengths)) if static else longest,
            f"{file} of {artifact.directory}",
        )

    def __repr__(self) -> str:
        """Return the source and the default settings."""
        settings = ", ".join(
            f"{field.name}={value!r}"
            for field in dataclasses.fields(self.generation)
            if (value := getattr(self.generation, field.name)) != field.default
        )
        return f"<{type(self).__name__} of {self.source or self.engine}: {settings}>"

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *exception: object) -> None:
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
        """Generate from one or several texts.

        Args:
            text: a source text, or several, which are all checked first.
            truncate: truncate a source that is too long, and set `truncated` in its result, instead
                of raising InputError.
            allow_empty: accept a blank text, for which the model makes up a result.
            special_tokens: parse "<mask>" and BART's other special tokens in a text, like
                `split_special_tokens=False` in transformers. Untrusted text can then end or pad a
                source. A checkpoint's own added tokens are always parsed.
            **parameters: fields of `GenerationConfig`, and `max_new_tokens` and `min_new_tokens`,
                which do not count the start token.

        Raises:
            InputError: if a text is blank, too long or not a str, or `max_length` is too large.
            ConfigurationError: if a parameter does not exist or is out of range.
            EngineError: if the Generator was closed.
        """
        several = isinstance(text, Iterable) and not isinstance(text, (str, bytes, Mapping))
        texts: list[Any] = list(text) if several else [text]
        for source in texts:
            check_text(source, allow_empty)
        sources = [self.source_ids(source, truncate, special_tokens) for source in texts]
        generation = self.settings(**parameters)
        results = [self.pieces(ids, generation, truncated).drain() for ids, truncated in sources]
        return results if several else results[0]

    def generate_ids(self, token_ids: Sequence[int], **parameters: Any) -> Result:
        """Generate from source token ids, including start and end tokens; see `generate`."""
        return self.pieces(token_ids, self.settings(**parameters)).drain()

    def stream(
        self,
        text: str,
        *,
        truncate: bool = False,
        allow_empty: bool = False,
        special_tokens: bool = False,
        **parameters: Any,
    ) -> Stream:
        """Generate from a text, and yield pieces of the result as soon as they are final.

        Joined, the pieces are the text that `generate` returns; the stream's `result` then has the
        scores. In beam search, a piece is certain once all beams agree on it. Closing the stream
        stops the generation. Parameters and errors are those of `generate`.
        """
        generation = self.settings(**parameters)
        check_text(text, allow_empty)
        ids, truncated = self.source_ids(text, truncate, special_tokens)
        return self.pieces(ids, generation, truncated)

    def settings(self, **parameters: Any) -> GenerationConfig:
        """Return the settings for a call's parameters; errors are those of `generate`."""
        generation = self.generation.replace(**parameters)
        check_token_ids(generation, self.engine.config.vocabulary_size)
        check_length(self.engine.config, generation.max_length)
        return generation

    def pieces(
        self, token_ids: Sequence[int], generation: GenerationConfig, truncated: bool = False
    ) -> Stream:
        """Return a stream from source token ids, which starts when it is first read."""
        return Stream(self.turn, self.run(token_ids, generation, truncated))

    def run(
        self, token_ids: Sequence[int], generation: GenerationConfig, truncated: bool
    ) -> PythonGenerator[str | Result, None, None]:
        """Yield the pieces of a generated text, and finally the Result."""
        began = time.perf_counter()
        rows = max(generation.num_beams, generation.num_return_sequences)
        state = self.engine.start(token_ids, rows, generation.max_length)
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
        """Return the source token ids of a text, including start and end tokens."""
        return self.tokenizer.encode(
            text, self.encoder_sequence_length, truncate=truncate, special_tokens=special_tokens
        )

    def source_ids(self, text: str, truncate: bool, special_tokens: bool) -> tuple[list[int], bool]:
        """Return the source token ids of a text, and whether it was truncated."""
        if not truncate:
            return self.encode(text, False, special_tokens), False
        return self.tokenizer.encode_beginning(
            text, self.encoder_sequence_length, special_tokens=special_tokens
        )


def check_text(text: str, allow_empty: bool) -> None:
    """Raise InputError if a text is not a str, or is blank and `allow_empty` is not set."""
    if not isinstance(text, str):
        raise InputError(f"A text must be a str, received {type(text).__name__}.")
    if not allow_empty and not text.strip():
        raise InputError(
            f"A text must not be blank, received {text[:20]!r}. With allow_empty=True the model "
            "makes up a text instead."
        )
