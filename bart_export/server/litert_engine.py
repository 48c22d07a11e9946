"""The engine without TensorFlow: a pool of LiteRT generators over one `.tflite` of an artifact.

Each call runs a text or id signature of the contract on one generator, its texts in turn, and may
stream. All generators map the same weight cache. Names, dtypes and shapes are those of the
SavedModel, so that a client need not know which engine answers.
"""

import functools
import pathlib
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export import contract
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
from bart_export.runtime.generator import Generator
from bart_export.runtime.results import GeneratedSequence, Result, Timings
from bart_export.server import messages
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
from bart_export.server.tensors import DATA_TYPES, data_type, string_array, to_proto, type_name

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
    """A `server.servable.Servable` over a `.tflite` file."""

    streams = True

    def __init__(self, directory: pathlib.Path, options: ServeOptions) -> None:
        workers = options.workers or 1
        usual = default_threads(Artifact.open(directory).manifest.parameter_count)
        threads = options.num_threads or min(usual, max(1, available_cores() // workers))
        generators = [
            Generator.from_artifact(directory, num_threads=threads) for _ in range(workers)
        ]
        self.reader = TextReader(generators[0].tokenizer, generators[0].encoder_sequence_length)
        self.signature_defs = signature_defs(generators[0].generation)
        self.idle: queue.SimpleQueue[Generator] = queue.SimpleQueue()
        for generator in generators:
            self.idle.put(generator)
        self.workers = Workers(workers, options.queue_size, "litert")

    def submit(self, call: Call) -> "Future[Tensors]":
        """Run a signature; see `Servable.submit`."""
        signature_def = self.signature_defs[call.signature]

        def work(generator: Generator) -> Tensors:
            outputs = compute(call.signature, signature_def, generator, call.inputs, call.limits)
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
        """Have a generator do some work as soon as one is idle."""
        return self.workers.submit(functools.partial(self.run, work, limits), limits)

    def run(self, work: Work[Answer], limits: Limits) -> Answer:
        """Do some work on an idle generator, within limits."""
        idle = self.idle.get()
        engine = LimitedEngine(idle.engine, limits)
        limited = Generator(idle.tokenizer, engine, idle.generation, idle.encoder_sequence_length)
        try:
            return work(limited)
        except (InputError, ConfigurationError) as error:
            raise invalid(str(error)) from error
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


Array = npt.NDArray[Any]
Compute = Callable[[Generator, Tensors, Limits], Tensors]

METHOD = "tensorflow/serving/predict"
EARLY_STOPPING: Mapping[bytes, bool | str] = {b"true": True, b"false": False, b"never": "never"}
# The score of a sequence that there is none of: JSON has no infinity.
NO_SCORE = np.finfo(np.float32).min


def signature_defs(generation: GenerationConfig) -> dict[str, Any]:
    """Return the SignatureDef of each signature that a generator can compute."""
    sizes = {contract.SEQUENCES: generation.num_return_sequences}
    defs = {}
    for signature in contract.saved_model_signatures():
        if signature.name not in COMPUTE:
            continue
        message = messages.SignatureDef(method_name=METHOD)
        for tensors, infos in (
            (signature.inputs, message.inputs),
            (signature.outputs, message.outputs),
        ):
            for tensor in tensors:
                info = infos[tensor.name]
                info.name = f"{signature.name}_{tensor.name}:0"
                info.dtype = DATA_TYPES["object" if tensor.dtype == "string" else tensor.dtype]
                for size in tensor.shape(sizes):
                    info.tensor_shape.dim.add(size=-1 if size is None else size)
        for tensor in signature.inputs:
            if tensor in contract.GENERATION_INPUTS:
                message.defaults[tensor.name].CopyFrom(to_proto(default(tensor, generation)))
        defs[signature.name] = message
    return defs


def default(tensor: contract.Tensor, generation: GenerationConfig) -> Array:
    """Return the value that a request's settings have if it does not say, (1,)."""
    value = getattr(generation, tensor.name)
    if tensor.dtype == "string":
        names = {setting: name for name, setting in EARLY_STOPPING.items()}
        return string_array([names[value]])
    return np.array([value], tensor.dtype)


def compute(
    name: str, signature_def: Any, generator: Generator, inputs: Tensors, limits: Limits
) -> Tensors:
    """Compute a signature."""
    rows: dict[str, int] = {}
    for place, (tensor, array) in enumerate(inputs.items()):
        info = signature_def.inputs[tensor]
        if data_type(array) != info.dtype:
            raise invalid(
                f"Expects arg[{place}] to be {type_name(info.dtype)} but "
                f"{type_name(data_type(array))} is provided"
            )
        if array.ndim != len(info.tensor_shape.dim):
            raise invalid(
                f"{tensor} must have {len(info.tensor_shape.dim)} dimensions, received {array.ndim}"
            )
        rows[tensor] = len(array)
    settings = {tensor.name for tensor in contract.GENERATION_INPUTS}
    batch = max((size for tensor, size in rows.items() if tensor not in settings), default=0)
    for tensor, size in rows.items():
        if size != batch and not (tensor in settings and size == 1):
            raise invalid(f"{tensor} must have {batch} rows, received {size}")
    return COMPUTE[name](generator, inputs, limits)


def serving_default(generator: Generator, inputs: Tensors, limits: Limits) -> Tensors:
    """Generate the best text for each text: text (batch,) to generated_text (batch,)."""
    sequences = sequences_of(generator, sources(generator, inputs["text"], limits), inputs)
    return {"generated_text": string_array(row[0].text.encode() for row in sequences)}


def generate_text(generator: Generator, inputs: Tensors, limits: Limits) -> Tensors:
    """Generate texts for each text: generated_text and scores (batch, sequences)."""
    rows = sequences_of(generator, sources(generator, inputs["text"], limits), inputs)
    shape = len(rows), generator.generation.num_return_sequences
    texts = np.full(shape, b"", object)
    for number, row in enumerate(rows):
        texts[number, : len(row)] = [sequence.text.encode() for sequence in row]
    return {"generated_text": texts, "scores": scores(rows, shape)}


def generate(generator: Generator, inputs: Tensors, limits: Limits) -> Tensors:
    """Generate token ids for each source: ids (batch, sequences, target), lengths and scores."""
    longest = generator.engine.config.max_sequence_length
    given = rows_of(inputs["encoder_token_ids"], inputs["encoder_lengths"], shortest=1)
    cut = [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in given]
    rows = sequences_of(generator, cut, inputs)
    shape = len(rows), generator.generation.num_return_sequences
    lengths = np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        lengths[number, : len(row)] = [len(sequence.token_ids) for sequence in row]
    padding = generator.generation.pad_token_id
    padded = np.full((*shape, lengths.max(initial=1)), padding, np.int32)
    for number, row in enumerate(rows):
        for place, sequence in enumerate(row):
            padded[number, place, : len(sequence.token_ids)] = sequence.token_ids
    return {
        "decoder_token_ids": padded,
        "decoder_lengths": lengths,
        "scores": scores(rows, shape),
    }


def tokenize(generator: Generator, inputs: Tensors, limits: Limits) -> Tensors:
    """Turn texts into ids (batch, source) and their lengths (batch,)."""
    rows = sources(generator, inputs["text"], limits)
    lengths = np.array([len(row) for row in rows], np.int32)
    shape = len(rows), int(lengths.max(initial=0))
    ids = np.full(shape, generator.tokenizer.pad_token_id, np.int32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return {"encoder_token_ids": ids, "encoder_lengths": lengths}


def detokenize(generator: Generator, inputs: Tensors, limits: Limits) -> Tensors:
    """Turn ids (batch, target), as far as their lengths say, into texts (batch,)."""
    rows = rows_of(inputs["decoder_token_ids"], inputs["decoder_lengths"])
    texts = []
    for row in rows:
        limits.check()
        texts.append(generator.tokenizer.detokenize(row).encode())
    return {"text": string_array(texts)}


COMPUTE: dict[str, Compute] = {
    "serving_default": serving_default,
    "generate_text": generate_text,
    "generate": generate,
    "tokenize": tokenize,
    "detokenize": detokenize,
}


def sources(generator: Generator, texts: Array, limits: Limits) -> list[list[int]]:
    """Return the source ids of each text, cut to what the model takes."""
    rows = []
    for text in texts:
        limits.check()
        rows.append(generator.encode(text.decode("utf-8", "replace"), truncate=True))
    return rows


def rows_of(ids: Array, lengths: Array, shortest: int = 0) -> list[list[int]]:
    """Return each row of ids as far as its length says, within what there is."""
    ends = np.clip(lengths, min(shortest, ids.shape[1]), ids.shape[1])
    return [row[:end].tolist() for row, end in zip(ids, ends, strict=True)]


def sequences_of(
    generator: Generator, rows: Sequence[Sequence[int]], inputs: Tensors
) -> list[tuple[GeneratedSequence, ...]]:
    """Generate from each source, best sequences first."""
    found = []
    for number, row in enumerate(rows):
        given = {
            tensor.name: inputs[tensor.name].tolist()[number % len(inputs[tensor.name])]
            for tensor in contract.GENERATION_INPUTS
            if tensor.name in inputs
        }
        found.append(generator.generate_ids(row, **parameters(generator, given)).sequences)
    return found


def parameters(generator: Generator, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return one text's settings as a GenerationConfig takes them.

    Lengths beyond what the model has positions for are brought within it, as in the graph of a
    SavedModel, which may have texts of several requests in one batch.
    """
    values = dict(given)
    longest = generator.engine.config.max_sequence_length
    if "max_length" in values:
        values["max_length"] = min(values["max_length"], longest)
    if "min_length" in values:
        most = values.get("max_length", generator.generation.max_length)
        values["min_length"] = min(values["min_length"], most)
    if "early_stopping" in values:
        word = values["early_stopping"]
        if word not in EARLY_STOPPING:
            raise invalid(
                "early_stopping must be true, false or never, received "
                f"{word.decode('utf-8', 'replace')}"
            )
        values["early_stopping"] = EARLY_STOPPING[word]
    return values


def scores(rows: Sequence[Sequence[GeneratedSequence]], shape: tuple[int, int]) -> Array:
    """Return the score of each sequence, float32 (batch, sequences)."""
    array = np.full(shape, NO_SCORE, np.float32)
    for number, row in enumerate(rows):
        array[number, : len(row)] = [sequence.score for sequence in row]
    return array
