"""Text generation with an artifact.

    generator = Generator.from_artifact("artifacts/bart_mini_en")
    print(generator.generate("A long text ...").text)
    for piece in generator.stream("A long text ..."): print(piece, end="")

The artifact's settings are the defaults; a call's parameters override them.
"""

import dataclasses
from collections.abc import Generator as PythonGenerator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, overload

import numpy as np

from bart_export.artifact.artifact import Artifact
from bart_export.config import (
    LARGEST_SIZE,
    MAX_BATCH_SIZE,
    BartConfig,
    GenerationConfig,
    TextOptions,
    check_flag,
    check_token_ids,
    require,
    whole,
)
from bart_export.errors import BartExportError, InputError, shown
from bart_export.locations import Location
from bart_export.runtime.engine import FileEngine
from bart_export.runtime.engine_choice import choose_file, files_for, open_engine
from bart_export.runtime.results import GeneratedSequence, Result, Stream, Timings
from bart_export.runtime.scheduler import MEMORY_BUDGET, Scheduler, Task, run_in_order
from bart_export.runtime.sizing import IntArray, check_length, check_source
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

    Texts are decoded together, as many as `max_batch_size` and `memory_budget` allow. Each gets the
    same result as alone, up to rounding. Texts with different numbers of beams take turns.
    Thread-safe: threads share the batch. As a context manager, a Generator releases the model at
    the end of the block.

    Args:
        tokenizer: converts text to ids and back.
        engine: runs the model; it must not be shared.
        generation: the default settings.
        encoder_sequence_length: the maximum number of source tokens, including start and end.
        source: the origin that `repr` shows.
        max_batch_size: the maximum number of beams, over all texts, decoded together; a single text
            always fits.
        memory_budget: bytes for the decoder's inputs and outputs; a single text always fits.

    Raises:
        ConfigurationError: if an argument has another type or is out of range.
    """

    def __init__(
        self,
        tokenizer: BartTokenizer,
        engine: FileEngine,
        generation: GenerationConfig,
        encoder_sequence_length: int,
        source: str = "",
        *,
        max_batch_size: int = MAX_BATCH_SIZE,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        for name, value, kind in (
            ("tokenizer", tokenizer, BartTokenizer),
            ("engine", engine, FileEngine),
            ("generation", generation, GenerationConfig),
            ("source", source, str),
        ):
            require(isinstance(value, kind), name, f"a {kind.__name__}", value)
        self.tokenizer = tokenizer
        self.generation = generation
        self.encoder_sequence_length = whole(
            "encoder_sequence_length", encoder_sequence_length, 2, LARGEST_SIZE
        )
        self.source = source
        self.scheduler = Scheduler(engine, max_batch_size, memory_budget)

    @property
    def engine(self) -> FileEngine:
        """The engine that runs the model."""
        return self.scheduler.engine

    @classmethod
    def from_artifact(
        cls,
        location: Location,
        *,
        revision: str | None = None,
        recipe: str | None = None,
        shapes: str | None = None,
        engine: str | None = None,
        num_threads: int | None = None,
        max_batch_size: int = MAX_BATCH_SIZE,
        memory_budget: int = MEMORY_BUDGET,
    ) -> "Generator":
        """Open an artifact's tokenizer and one of its `.tflite` files.

        Only these files of a remote artifact are downloaded, once for all processes of a user.

        Args:
            location: the artifact: a directory, hf://org/name, hf://org/name@revision, or a URL
                that fsspec can open, such as gs://bucket/bart.
            revision: a branch, tag or commit on the Hugging Face Hub.
            recipe: the file's recipe; None means the default recipe, or the first that the engine
                runs correctly.
            shapes: "dynamic" or "static"; None prefers the dynamic build.
            engine: "ai-edge-litert", "tflite-runtime" or "edgetpu"; None means the first that is
                installed.
            num_threads: threads of the engine; None means one for a small model and all cores for
                a larger one.
            max_batch_size, memory_budget: see `Generator`. A static build and an artifact from
                before version 2 of the contract decode one text at a time.

        Raises:
            ArtifactError: if the artifact is damaged, has no such file or cannot be downloaded.
            ConfigurationError: if an argument is invalid.
            EngineError: if the installed runtime cannot run the file correctly.
            MissingExtra: if the engine is not installed, or the package that opens a URL.
        """
        artifact = Artifact.open(location, revision)
        info = ModelInfo.from_artifact(artifact)
        file = choose_file(artifact, recipe, engine, shapes)
        static, longest = files_for(artifact, engine)[file].shapes, info.encoder_sequence_length
        return cls(
            info.tokenizer,
            open_engine(artifact, file, engine, num_threads=num_threads),
            info.generation,
            min(longest, max(static.source_lengths)) if static else longest,
            f"{file} of {artifact.location}",
            max_batch_size=max_batch_size,
            memory_budget=memory_budget,
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
        self.scheduler.close()

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
            truncate: truncate a source that is too long, and set `truncated` in its result,
                instead of raising InputError.
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
        several = several_texts(text)
        texts = [text] if several is None else list(several)
        options = TextOptions(truncate, allow_empty, special_tokens)
        generation = self.settings(**parameters)
        tasks = [self.task(generation, options, each) for each in texts]
        results: list[Result] = list(self.run(tasks))
        return results[0] if several is None else results

    def generate_iter(
        self,
        texts: Iterable[str],
        *,
        return_exceptions: bool = False,
        truncate: bool = False,
        allow_empty: bool = False,
        special_tokens: bool = False,
        **parameters: Any,
    ) -> Iterator[Result | BartExportError]:
        """Yield the result of each text, in order; texts are read as needed.

        Texts of similar length are decoded together, so up to 512 texts are read ahead.

        Args:
            texts: the source texts.
            return_exceptions: yield a text's error instead of raising it.
            truncate, allow_empty, special_tokens, parameters: see `generate`.

        Raises:
            InputError: if a text is invalid; see `generate`.
        """
        several = several_texts(texts)
        if several is None:
            raise InputError(f"texts must be an iterable of texts, received {shown(texts)}.")
        check_flag("return_exceptions", return_exceptions)
        options = TextOptions(truncate, allow_empty, special_tokens)
        generation = self.settings(**parameters)

        def tasks() -> Iterator[Task | BartExportError]:
            for text in several:
                try:
                    yield self.task(generation, options, text)
                except BartExportError as error:
                    yield error

        return self.run(tasks(), return_exceptions)

    @overload
    def generate_ids(self, token_ids: Sequence[int], **parameters: Any) -> Result: ...

    @overload
    def generate_ids(
        self, token_ids: Sequence[Sequence[int]], **parameters: Any
    ) -> list[Result]: ...

    def generate_ids(
        self, token_ids: Sequence[int] | Sequence[Sequence[int]] | IntArray, **parameters: Any
    ) -> Result | list[Result]:
        """Generate from one source's token ids, including start and end tokens, or from several.

        See `generate`.
        """
        generation = self.settings(**parameters)
        ids = token_ids.tolist() if isinstance(token_ids, np.ndarray) else token_ids
        lists = (list, tuple, np.ndarray)
        several = isinstance(ids, lists) and isinstance(next(iter(ids), 0), lists)
        rows = cast("Sequence[Sequence[int]]", ids if several else [ids])
        checked = [check_source(self.engine.config, row)[0].tolist() for row in rows]
        results: list[Result] = list(self.run([Task(row, generation) for row in checked]))
        return results if several else results[0]

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
        options = TextOptions(truncate, allow_empty, special_tokens)
        task = self.task(self.settings(**parameters), options, text)
        task.streams = True
        detokenizer = IncrementalDetokenizer(self.tokenizer, keep_first_space=False)
        return Stream(self.scheduler, task, detokenizer, self.result)

    def settings(self, **parameters: Any) -> GenerationConfig:
        """Return the settings for a call's parameters; errors are those of `generate`."""
        return call_settings(self.generation, self.engine.config, **parameters)

    def run(
        self, tasks: Iterable[Task | BartExportError], return_exceptions: bool = False
    ) -> PythonGenerator[Any, None, None]:
        """Yield the result of each task, in order; see `generate_iter`."""
        for each in run_in_order(self.scheduler, tasks):
            answer = (each.error or self.result(each)) if isinstance(each, Task) else each
            returned = return_exceptions and isinstance(answer, BartExportError)
            if isinstance(answer, Exception) and not returned:
                raise answer
            yield answer

    def result(self, task: Task) -> Result:
        """Return the result of a finished task."""
        assert task.hypotheses is not None
        sequences = tuple(
            GeneratedSequence(
                generated_text(self.tokenizer, hypothesis.token_ids),
                hypothesis.token_ids,
                hypothesis.score,
            )
            for hypothesis in task.hypotheses
        )
        tokens = len(sequences[0].token_ids) - 1
        timings = Timings(task.encoded - task.admitted, task.ended - task.encoded, tokens)
        return Result(sequences, tuple(task.token_ids), timings, task.truncated)

    def encode(self, text: str, truncate: bool) -> list[int]:
        """Return the source token ids of a text, including start and end tokens."""
        return self.tokenizer.encode(text, self.encoder_sequence_length, truncate=truncate)

    def task(self, generation: GenerationConfig, options: TextOptions, text: Any) -> Task:
        """Return the task for a text, or raise InputError."""
        check_text(text, options.allow_empty)
        longest, special = self.encoder_sequence_length, options.special_tokens
        if options.truncate:
            ids, truncated = self.tokenizer.encode_beginning(text, longest, special_tokens=special)
        else:
            ids, truncated = self.tokenizer.encode(text, longest, special_tokens=special), False
        return Task(ids, generation, truncated=truncated)


def call_settings(
    defaults: GenerationConfig, config: BartConfig, **parameters: Any
) -> GenerationConfig:
    """Return the settings for a call's parameters; errors are those of `Generator.generate`."""
    generation = defaults.replace(**parameters)
    check_token_ids(generation, config.vocabulary_size)
    check_length(config, generation.max_length)
    return generation


def several_texts(given: Any) -> Iterable[Any] | None:
    """Return what may be several texts as an iterable, or None for anything else."""
    given = given.tolist() if isinstance(given, np.ndarray) else given
    several = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
    return given if several else None


def check_text(text: object, allow_empty: bool) -> None:
    """Raise InputError if a text is not a str, or is blank and `allow_empty` is not set."""
    if not isinstance(text, str):
        raise InputError(f"A text must be a str, received {type(text).__name__}.")
    if not allow_empty and not text.strip():
        raise InputError(
            f"A text must not be blank, received {text[:20]!r}. With allow_empty=True the model "
            "makes up a text instead."
        )
