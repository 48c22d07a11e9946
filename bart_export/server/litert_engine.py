"""The engine without TensorFlow: a pool of LiteRT generators over one `.tflite` of an artifact.

Text and id signatures of the contract go in as calls and come out as futures; each call runs on one
generator, its texts in turn, and may stream. All generators map the same weight cache. Names,
dtypes and shapes are those of the SavedModel, so that a client need not know which engine answers.
The engine knows nothing of versions, names or wire formats.
"""

import functools
import pathlib
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from bart_export.artifact.artifact import Artifact
from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError, EngineError, InputError
from bart_export.runtime.engine import (
    Engine,
    FloatArray,
    IntArray,
    available_cores,
    default_threads,
)
from bart_export.runtime.generator import GeneratedSequence, Generator, Result, Timings
from bart_export.server import text_signatures
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call, Limits, StreamCall, Tensors
from bart_export.server.status import Code, StatusError
from bart_export.server.texts import TextReader, is_blank
from bart_export.server.workers import Answer, Workers

Work = Callable[[Generator], Answer]


class LimitedEngine:
    """An engine that ends a generation between two steps once its limits say so."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine = engine
        self.config = engine.config
        self.limits = limits
        self.steps = 0

    def start(self, token_ids: Sequence[int], num_beams: int, max_length: int) -> Any:
        """Encode a source."""
        self.limits.check()
        return self.engine.start(token_ids, num_beams, max_length)

    def step(self, state: Any, token_ids: IntArray, beam_index: IntArray) -> tuple[FloatArray, Any]:
        """Decode one token of every beam."""
        self.limits.check()
        self.steps += 1
        return self.engine.step(state, token_ids, beam_index)


class ArtifactServable:
    """A `server.servable.Servable` over a `.tflite` file.

    Args:
        directory: the artifact.
        options: `workers` generators with `num_threads` threads each; at most `queue_size` calls
            wait beside those that run.

    Raises:
        ArtifactError, EngineError: as `Generator.from_artifact` does.
    """

    streams = True

    def __init__(self, directory: pathlib.Path, options: ServeOptions) -> None:
        workers = options.workers or 1
        usual = default_threads(Artifact.open(directory).manifest["parameter_count"])
        threads = options.num_threads or min(usual, max(1, available_cores() // workers))
        generators = [
            Generator.from_artifact(directory, num_threads=threads) for _ in range(workers)
        ]
        self.reader = TextReader(generators[0].tokenizer, generators[0].encoder_sequence_length)
        self.signature_defs = text_signatures.signature_defs(generators[0].generation)
        self.idle: queue.SimpleQueue[Generator] = queue.SimpleQueue()
        for generator in generators:
            self.idle.put(generator)
        self.workers = Workers(workers, options.queue_size, "litert")

    def submit(self, call: Call) -> "Future[Tensors]":
        """Run a signature; see `Servable.submit`."""
        signature_def = self.signature_defs[call.signature]

        def work(generator: Generator) -> Tensors:
            outputs = text_signatures.compute(
                call.signature, signature_def, generator, call.inputs, call.limits
            )
            return {name: outputs[name] for name in call.outputs}

        return self.enqueue(work, call.limits)

    def stream(self, call: StreamCall) -> "Future[Result]":
        """Generate from a text piece by piece; see `Servable.stream`."""

        def work(generator: Generator) -> Result:
            generation = generator.settings(**call.parameters)
            remarks = call.limits.remarks
            token_ids = self.reader.encode(call.text, remarks)
            if is_blank(call.text):
                remarks.empty.append(0)
                return nothing(token_ids, generation)
            stream = generator.pieces(token_ids, generation)
            for piece in stream:
                call.emit(piece, generator.engine.steps)  # type: ignore[attr-defined]
            return stream.drain()

        return self.enqueue(work, call.limits)

    def enqueue(self, work: Work[Answer], limits: Limits) -> "Future[Answer]":
        """Have a generator do some work as soon as one is idle.

        Raises:
            StatusError: UNAVAILABLE if no more calls may wait.
        """
        return self.workers.submit(functools.partial(self.run, work, limits), limits)

    def run(self, work: Work[Answer], limits: Limits) -> Answer:
        """Do some work on an idle generator, within limits."""
        idle = self.idle.get()
        engine = LimitedEngine(idle.engine, limits)
        limited = Generator(idle.tokenizer, engine, idle.generation, idle.encoder_sequence_length)
        try:
            return work(limited)
        except (InputError, ConfigurationError) as error:
            raise StatusError(Code.INVALID_ARGUMENT, str(error)) from error
        except EngineError as error:
            raise StatusError(Code.INTERNAL, str(error)) from error
        finally:
            self.idle.put(idle)

    def close(self) -> None:
        """Wait for what runs and release the threads; the models go with the last reference."""
        self.workers.close()


def nothing(token_ids: Sequence[int], generation: GenerationConfig) -> Result:
    """Return the result of a text without a word: as many empty texts as were asked for."""
    sequence = GeneratedSequence("", (generation.decoder_start_token_id,), 0.0)
    return Result(
        (sequence,) * generation.num_return_sequences, tuple(token_ids), Timings(0.0, 0.0, 0)
    )


def open_artifact(directory: pathlib.Path, options: ServeOptions) -> ArtifactServable:
    """Open the `.tflite` file of an artifact that this machine runs best."""
    return ArtifactServable(directory, options)
