"""The LiteRT engine: worker processes for an artifact's `.tflite` file, without TensorFlow.

Each call streams or runs a text or id signature. The sources of all calls are decoded together; see
`worker_pool`. Texts are tokenized, and streams detokenized, on the call's thread. Names, dtypes and
shapes are those of the SavedModel, so that clients need not know which engine they use.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.config import MAX_BATCH_SIZE, GenerationConfig
from bart_export.runtime.engine import available_cores, default_threads
from bart_export.runtime.generator import ModelInfo, call_settings
from bart_export.runtime.results import GeneratedSequence, Result, Timings
from bart_export.server import messages
from bart_export.server.messages import Array, object_array
from bart_export.server.metrics import GenerationMetrics
from bart_export.server.options import ServeOptions
from bart_export.server.servable import (
    Call,
    Emit,
    Limits,
    Tensors,
    TextReader,
    Workers,
    is_blank,
)
from bart_export.server.status import invalid
from bart_export.server.worker import Opening
from bart_export.server.worker_pool import Job, WorkerPool
from bart_export.text.tokenizer import IncrementalDetokenizer

METHOD = "tensorflow/serving/predict"
EARLY_STOPPING: Mapping[bytes, bool | str] = {b"true": True, b"false": False, b"never": "never"}
SETTINGS = {tensor.name: tensor for tensor in contract.GENERATION_INPUTS}
# Pads the results of a search that finds too few sequences; JSON has no infinity.
NO_SEQUENCE = GeneratedSequence("", (), float(np.finfo(np.float32).min))


class ArtifactServable:
    """A `servable.Servable` for a `.tflite` file of an artifact that must hold export `number`."""

    streams = True

    def __init__(
        self,
        directory: pathlib.Path,
        number: int,
        options: ServeOptions,
        metrics: GenerationMetrics,
    ) -> None:
        artifact = Artifact.open(directory)
        self.model = ModelInfo.from_artifact(artifact)
        workers = options.workers or 1
        cores = max(1, available_cores() // workers)
        default = default_threads(artifact.manifest.parameter_count)
        threads = options.num_threads or min(default, cores)
        batch_size = MAX_BATCH_SIZE if options.batching else 1
        opening = Opening(directory, number, threads, batch_size, options.load_seconds)
        self.pool = WorkerPool(opening, workers, metrics)
        self.reader = TextReader(self.model.tokenizer, self.pool.longest)
        self.signature_defs = signature_defs(self.model.generation)
        # Waiting calls have threads, too: their sources wait in a worker.
        self.threads = Workers(workers * batch_size + options.queue_size, 0, "litert")

    def submit(self, call: Call) -> "Future[Tensors]":
        """Run a signature; see `servable.Servable`."""

        def work() -> Tensors:
            check_inputs(self.signature_defs[call.signature], call.inputs)
            outputs = COMPUTE[call.signature](self, call.inputs, call.limits)
            return {name: outputs[name] for name in call.outputs}

        return self.threads.submit(work, call.limits)

    def stream(
        self, text: str, parameters: Mapping[str, object], emit: Emit, limits: Limits
    ) -> "Future[Result]":
        """Generate from a text piece by piece; see `servable.Servable`."""

        def work() -> Result:
            generation = call_settings(self.model.generation, self.model.config, **parameters)
            token_ids = self.reader.encode(text, limits.remarks)
            if is_blank(text):
                limits.remarks.empty.append(0)
                sequence = GeneratedSequence("", (generation.decoder_start_token_id,), 0.0)
                sequences = (sequence,) * generation.num_return_sequences
                return Result(sequences, tuple(token_ids), Timings(0.0, 0.0, 0))
            job = Job(token_ids, generation, limits, streams=True)
            detokenizer = IncrementalDetokenizer(self.model.tokenizer, keep_first_space=False)
            tokens = 0

            def emit_piece(piece: str) -> None:
                limits.check()
                if piece:
                    emit(piece, tokens)

            self.pool.submit([job])
            try:
                while settled := job.tokens.get():
                    tokens += len(settled)
                    emit_piece("".join(map(detokenizer.push, settled)))
                result = job.future.result()
                emit_piece(detokenizer.finish())
                return result
            finally:
                self.pool.cancel([job])

        return self.threads.submit(work, limits)

    def close(self) -> None:
        """Wait for running calls, and end the threads and processes."""
        self.threads.close()
        self.pool.close()


def signature_defs(generation: GenerationConfig) -> dict[str, messages.Message]:
    """Return the SignatureDefs of the signatures that this engine can compute, by name."""
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


def serving_default(servable: ArtifactServable, inputs: Tensors, limits: Limits) -> Tensors:
    """Generate the best text for each source text: generated_text (batch,)."""
    rows = sequences_of(servable, sources(servable, inputs["text"], limits), inputs, limits)
    return {"generated_text": object_array(row[0].text.encode() for row in rows)}


def generate_text(servable: ArtifactServable, inputs: Tensors, limits: Limits) -> Tensors:
    """Generate texts for each source text: generated_text and scores (batch, sequences)."""
    rows = sequences_of(servable, sources(servable, inputs["text"], limits), inputs, limits)
    shape = len(rows), servable.model.generation.num_return_sequences
    texts = object_array(sequence.text.encode() for row in rows for sequence in row)
    return {"generated_text": texts.reshape(shape), "scores": scores(rows).reshape(shape)}


def generate(servable: ArtifactServable, inputs: Tensors, limits: Limits) -> Tensors:
    """Generate token ids for each source: ids (batch, sequences, target), lengths and scores."""
    longest = servable.model.config.max_sequence_length
    source_rows = rows_of(inputs["encoder_token_ids"], inputs["encoder_lengths"], shortest=1)
    # A source that is too long keeps its last token, the end token.
    truncated = [
        row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in source_rows
    ]
    rows = sequences_of(servable, truncated, inputs, limits)
    shape = len(rows), servable.model.generation.num_return_sequences
    ids, lengths = padded(
        [sequence.token_ids for row in rows for sequence in row],
        servable.model.generation.pad_token_id,
        shortest=1,
    )
    return {
        "decoder_token_ids": ids.reshape(*shape, ids.shape[1]),
        "decoder_lengths": lengths.reshape(shape),
        "scores": scores(rows).reshape(shape),
    }


def tokenize(servable: ArtifactServable, inputs: Tensors, limits: Limits) -> Tensors:
    """Tokenize texts: ids (batch, source) and their lengths (batch,)."""
    ids, lengths = padded(
        sources(servable, inputs["text"], limits), servable.model.tokenizer.pad_token_id
    )
    return {"encoder_token_ids": ids, "encoder_lengths": lengths}


def detokenize(servable: ArtifactServable, inputs: Tensors, limits: Limits) -> Tensors:
    """Detokenize ids (batch, target) up to their lengths: texts (batch,)."""
    texts = []
    for row in rows_of(inputs["decoder_token_ids"], inputs["decoder_lengths"]):
        limits.check()
        texts.append(servable.model.tokenizer.detokenize(row).encode())
    return {"text": object_array(texts)}


COMPUTE: dict[str, Callable[[ArtifactServable, Tensors, Limits], Tensors]] = {
    compute.__name__: compute
    for compute in (serving_default, generate_text, generate, tokenize, detokenize)
}


def sources(servable: ArtifactServable, texts: Array, limits: Limits) -> list[list[int]]:
    """Return the source ids of each text, truncated to the model's source length."""
    rows = []
    for text in texts:
        limits.check()
        text = text.decode("utf-8", "replace")
        rows.append(servable.model.tokenizer.encode(text, servable.reader.longest, truncate=True))
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


def early_stopping(word: bytes) -> bool | str:
    """Return the value of a word for `early_stopping`."""
    if word not in EARLY_STOPPING:
        text = word.decode("utf-8", "replace")
        raise invalid(f"early_stopping must be true, false or never, received {text}")
    return EARLY_STOPPING[word]


def sequences_of(
    servable: ArtifactServable, rows: Sequence[Sequence[int]], inputs: Tensors, limits: Limits
) -> list[list[GeneratedSequence]]:
    """Generate `num_return_sequences` sequences for each source, best first.

    Lengths are clipped to the model's positions, as in a SavedModel, whose batches mix requests.
    """
    config, generation = servable.model.config, servable.model.generation
    columns = {name: inputs[name] for name in SETTINGS if name in inputs}
    if "max_length" in columns:
        columns["max_length"] = np.minimum(columns["max_length"], config.max_sequence_length)
    if "min_length" in columns:
        most = columns.get("max_length", generation.max_length)
        columns["min_length"] = np.minimum(columns["min_length"], most)
    if "early_stopping" in columns:
        columns["early_stopping"] = object_array(map(early_stopping, columns["early_stopping"]))
    values = {name: column.tolist() for name, column in columns.items()}
    jobs = []
    for number, row in enumerate(rows):
        settings = {name: column[number % len(column)] for name, column in values.items()}
        jobs.append(Job(row, call_settings(generation, config, **settings), limits))
    return [
        [*sequences, *[NO_SEQUENCE] * (generation.num_return_sequences - len(sequences))]
        for sequences in (result.sequences for result in servable.pool.run(jobs))
    ]
