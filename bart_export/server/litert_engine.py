"""The LiteRT engine: a pool of generators for an artifact's `.tflite` file, without TensorFlow.

Each call streams or runs a text or id signature on one generator, one text at a time. The
generators share a weight cache. Names, dtypes and shapes are those of the SavedModel, so that
clients need not know which engine they use.
"""

import itertools
import pathlib
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError, EngineError, InputError
from bart_export.runtime.engine import available_cores, default_threads
from bart_export.runtime.generator import Generator
from bart_export.runtime.results import GeneratedSequence, Result, Timings
from bart_export.runtime.scheduler import Source, Task
from bart_export.server import messages
from bart_export.server.messages import Array, object_array
from bart_export.server.options import ServeOptions
from bart_export.server.servable import (
    Answer,
    Call,
    Limits,
    StreamCall,
    Tensors,
    TextReader,
    Workers,
    is_blank,
)
from bart_export.server.status import Code, StatusError, invalid
from bart_export.text.tokenizer import IncrementalDetokenizer

METHOD = "tensorflow/serving/predict"
EARLY_STOPPING: Mapping[bytes, bool | str] = {b"true": True, b"false": False, b"never": "never"}
SETTINGS = {tensor.name: tensor for tensor in contract.GENERATION_INPUTS}
# Pads the results of a search that finds too few sequences; JSON has no infinity.
NO_SEQUENCE = GeneratedSequence("", (), float(np.finfo(np.float32).min))


def run_task(
    generator: Generator, task: Task, limits: Limits, step: Callable[[int], object] = id
) -> Result:
    """Run a task within limits; `step` is called with the number of steps after each of them."""
    scheduler = generator.scheduler
    scheduler.submit(task)
    try:
        for number in itertools.count():
            if task.ended:
                break
            limits.check()
            scheduler.step()
            step(number)
    finally:
        scheduler.cancel(task)
    if task.error is not None:
        raise task.error
    return generator.result(Source(task.token_ids), task)


class ArtifactServable:
    """A `servable.Servable` for a `.tflite` file."""

    streams = True

    def __init__(self, directory: pathlib.Path, options: ServeOptions) -> None:
        workers = options.workers or 1
        most = default_threads(Artifact.open(directory).manifest.parameter_count)
        threads = options.num_threads or min(most, max(1, available_cores() // workers))
        self.idle: queue.SimpleQueue[Generator] = queue.SimpleQueue()
        for _ in range(workers):
            generator = Generator.from_artifact(directory, num_threads=threads)
            self.idle.put(generator)
        self.reader = TextReader(generator.tokenizer, generator.encoder_sequence_length)
        self.signature_defs = signature_defs(generator.generation)
        self.workers = Workers(workers, options.queue_size, "litert")

    def submit(self, call: Call) -> "Future[Tensors]":
        """Run a signature; see `servable.Servable`."""

        def work(generator: Generator) -> Tensors:
            check_inputs(self.signature_defs[call.signature], call.inputs)
            outputs = COMPUTE[call.signature](generator, call.inputs, call.limits)
            return {name: outputs[name] for name in call.outputs}

        return self.workers.submit(lambda: self.run(work, call.limits), call.limits)

    def stream(self, call: StreamCall) -> "Future[Result]":
        """Generate from a text piece by piece; see `servable.Servable`."""

        def work(generator: Generator) -> Result:
            generation = generator.settings(**call.parameters)
            remarks = call.limits.remarks
            token_ids = self.reader.encode(call.text, remarks)
            if is_blank(call.text):
                remarks.empty.append(0)
                sequence = GeneratedSequence("", (generation.decoder_start_token_id,), 0.0)
                sequences = (sequence,) * generation.num_return_sequences
                return Result(sequences, tuple(token_ids), Timings(0.0, 0.0, 0))
            task = Task(token_ids, generation)
            detokenizer = IncrementalDetokenizer(generator.tokenizer, keep_first_space=False)

            def emit(step: int) -> None:
                piece = "".join(map(detokenizer.push, task.take()))
                if task.hypotheses is not None:
                    piece += detokenizer.finish()
                if piece:
                    call.emit(piece, step)

            return run_task(generator, task, call.limits, emit)

        return self.workers.submit(lambda: self.run(work, call.limits), call.limits)

    def run(self, work: Callable[[Generator], Answer], limits: Limits) -> Answer:
        """Do some work with an idle generator, within limits."""
        idle = self.idle.get()
        try:
            return work(idle)
        except (InputError, ConfigurationError) as error:
            raise invalid(str(error)) from error
        except EngineError as error:
            raise StatusError(Code.INTERNAL, str(error)) from error
        finally:
            self.idle.put(idle)

    def close(self) -> None:
        """Wait for running calls and end the threads."""
        self.workers.close()


def signature_defs(generation: GenerationConfig) -> dict[str, messages.Message]:
    """Return the SignatureDefs of the signatures that a generator can compute, by name."""
    sizes = {contract.SEQUENCES: generation.num_return_sequences}
    defs = {}
    for signature in contract.saved_model_signatures():
        if signature.name not in COMPUTE:
            continue
        message = defs[signature.name] = messages.SignatureDef(method_name=METHOD)
        for infos, declared in (
            (message.inputs, signature.inputs),
            (message.outputs, signature.outputs),
        ):
            for tensor in declared:
                info = infos[tensor.name]
                info.name = f"{signature.name}_{tensor.name}:0"
                dtype = "object" if tensor.dtype == "string" else tensor.dtype
                info.dtype = messages.DATA_TYPES[dtype]
                for size in tensor.shape(sizes):
                    info.tensor_shape.dim.add(size=-1 if size is None else size)
        for name, tensor in SETTINGS.items():
            if name in message.inputs:
                value = default(tensor, generation)
                message.defaults[name].CopyFrom(messages.tensor_proto(value))
    return defs


def default(tensor: contract.Tensor, generation: GenerationConfig) -> Array:
    """Return the default value, (1,), of a setting in requests."""
    value = getattr(generation, tensor.name)
    if tensor.dtype == "string":
        return object_array([str(value).lower().encode()])
    return np.array([value], tensor.dtype)


def check_inputs(signature_def: messages.Message, inputs: Tensors) -> None:
    """Raise StatusError unless inputs have a signature's dtypes and ranks, and equal row counts."""
    for place, (name, array) in enumerate(inputs.items()):
        info = signature_def.inputs[name]
        if messages.data_type_of(array) != info.dtype:
            raise invalid(
                f"Expects arg[{place}] to be {messages.type_name(info.dtype)} but "
                f"{messages.type_name(messages.data_type_of(array))} is provided"
            )
        if array.ndim != len(info.tensor_shape.dim):
            raise invalid(
                f"{name} must have {len(info.tensor_shape.dim)} dimensions, received {array.ndim}"
            )
    batch = max((len(array) for name, array in inputs.items() if name not in SETTINGS), default=0)
    for name, array in inputs.items():
        if len(array) != batch and not (name in SETTINGS and len(array) == 1):
            raise invalid(f"{name} must have {batch} rows, received {len(array)}")


def serving_default(generator: Generator, inputs: Tensors, limits: Limits) -> Tensors:
    """Generate the best text for each source text: generated_text (batch,)."""
    rows = sequences_of(generator, sources(generator, inputs["text"], limits), inputs, limits)
    return {"generated_text": object_array(row[0].text.encode() for row in rows)}


def generate_text(generator: Generator, inputs: Tensors, limits: Limits) -> Tensors:
    """Generate texts for each source text: generated_text and scores (batch, sequences)."""
    rows = sequences_of(generator, sources(generator, inputs["text"], limits), inputs, limits)
    shape = len(rows), generator.generation.num_return_sequences
    texts = object_array(sequence.text.encode() for row in rows for sequence in row)
    return {"generated_text": texts.reshape(shape), "scores": scores(rows).reshape(shape)}


def generate(generator: Generator, inputs: Tensors, limits: Limits) -> Tensors:
    """Generate token ids for each source: ids (batch, sequences, target), lengths and scores."""
    longest = generator.engine.config.max_sequence_length
    source_rows = rows_of(inputs["encoder_token_ids"], inputs["encoder_lengths"], shortest=1)
    # A source that is too long keeps its last token, the end token.
    truncated = [
        row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in source_rows
    ]
    rows = sequences_of(generator, truncated, inputs, limits)
    shape = len(rows), generator.generation.num_return_sequences
    ids, lengths = padded(
        [sequence.token_ids for row in rows for sequence in row],
        generator.generation.pad_token_id,
        shortest=1,
    )
    return {
        "decoder_token_ids": ids.reshape(*shape, ids.shape[1]),
        "decoder_lengths": lengths.reshape(shape),
        "scores": scores(rows).reshape(shape),
    }


def tokenize(generator: Generator, inputs: Tensors, limits: Limits) -> Tensors:
    """Tokenize texts: ids (batch, source) and their lengths (batch,)."""
    ids, lengths = padded(
        sources(generator, inputs["text"], limits), generator.tokenizer.pad_token_id
    )
    return {"encoder_token_ids": ids, "encoder_lengths": lengths}


def detokenize(generator: Generator, inputs: Tensors, limits: Limits) -> Tensors:
    """Detokenize ids (batch, target) up to their lengths: texts (batch,)."""
    texts = []
    for row in rows_of(inputs["decoder_token_ids"], inputs["decoder_lengths"]):
        limits.check()
        texts.append(generator.tokenizer.detokenize(row).encode())
    return {"text": object_array(texts)}


COMPUTE: dict[str, Callable[[Generator, Tensors, Limits], Tensors]] = {
    compute.__name__: compute
    for compute in (serving_default, generate_text, generate, tokenize, detokenize)
}


def sources(generator: Generator, texts: Array, limits: Limits) -> list[list[int]]:
    """Return the source ids of each text, truncated to the model's source length."""
    rows = []
    for text in texts:
        limits.check()
        rows.append(generator.encode(text.decode("utf-8", "replace"), truncate=True))
    return rows


def rows_of(ids: Array, lengths: Array, shortest: int = 0) -> list[list[int]]:
    """Return each row of ids up to its length, which is clipped to the width of `ids`."""
    ends = np.clip(lengths, min(shortest, ids.shape[1]), ids.shape[1])
    return [row[:end].tolist() for row, end in zip(ids, ends, strict=True)]


def padded(rows: Sequence[Sequence[int]], padding: int, shortest: int = 0) -> tuple[Array, Array]:
    """Return rows as int32 (rows, longest), at least `shortest` wide, and their lengths (rows,)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.full((len(rows), lengths.max(initial=shortest)), padding, np.int32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return ids, lengths


def scores(rows: Sequence[Sequence[GeneratedSequence]]) -> Array:
    """Return the score of each sequence, float32 (batch * sequences,)."""
    return np.array([sequence.score for row in rows for sequence in row], np.float32)


def sequences_of(
    generator: Generator, rows: Sequence[Sequence[int]], inputs: Tensors, limits: Limits
) -> list[list[GeneratedSequence]]:
    """Generate `num_return_sequences` sequences for each source, best first.

    Lengths are clipped to the model's positions, as in a SavedModel, whose batches mix requests.
    """
    longest, generation = generator.engine.config.max_sequence_length, generator.generation
    results = []
    for number, row in enumerate(rows):
        settings: dict[str, Any] = {
            name: inputs[name].tolist()[number % len(inputs[name])]
            for name in SETTINGS.keys() & inputs.keys()
        }
        if "max_length" in settings:
            settings["max_length"] = min(settings["max_length"], longest)
        if "min_length" in settings:
            most = settings.get("max_length", generation.max_length)
            settings["min_length"] = min(settings["min_length"], most)
        if "early_stopping" in settings:
            word = settings["early_stopping"]
            if word not in EARLY_STOPPING:
                text = word.decode("utf-8", "replace")
                raise invalid(f"early_stopping must be true, false or never, received {text}")
            settings["early_stopping"] = EARLY_STOPPING[word]
        task = Task(row, generator.settings(**settings))
        sequences = run_task(generator, task, limits).sequences
        missing = generation.num_return_sequences - len(sequences)
        results.append([*sequences, *[NO_SEQUENCE] * missing])
    return results
