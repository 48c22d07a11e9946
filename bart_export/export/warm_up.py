"""The requests that a server runs on a new version before it answers clients.

They also measure the memory needed to serve the version. A separate process (this module, run as a
program) loads it as the server does, runs its warm-up requests and then the largest request. A
version that fails its own requests is therefore found before it is deployed.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from bart_export import contract
from bart_export.artifact.manifest import Memory
from bart_export.bench.measurements import status_bytes
from bart_export.documents import scratch_directory
from bart_export.errors import BartExportError, EngineError, last_words
from bart_export.runtime.generator import ModelInfo
from bart_export.server import messages, open_version, predict
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Limits

PredictRequest = Any  # the generated class has no types
# Rows of a full batch; batching_params.pbtxt explains the number.
MAX_BATCH_SIZE = 8
# Decoder tokens if a request can set the length: enough to run every part of the loop.
WARM_UP_LENGTH = 8
# Decoder tokens in a full batch of the longest source; most summaries are shorter than this.
LARGEST_LENGTH = 64
SIGNATURES = {signature.name: signature for signature in contract.saved_model_signatures()}


def warm_up_requests(info: ModelInfo, text: str) -> list[PredictRequest]:
    """Return the requests of `tf_serving_warmup_requests`, in execution order.

    Each signature runs once, so that its graph is optimized. `generate_text` and `generate` also
    run with a full batch and with the longest source, so that their memory is allocated.
    `serving_default` does not, because its length cannot be limited. `text` is prose of a few dozen
    tokens.
    """
    samples = ((text, MAX_BATCH_SIZE), (longest_text(info, text), 1))
    return [
        *(predict_request(info, signature, text, 1) for signature in SIGNATURES),
        *(
            predict_request(info, signature, sample, rows)
            for signature in ("generate_text", "generate")
            for sample, rows in samples
        ),
    ]


def largest_request(info: ModelInfo, text: str) -> PredictRequest:
    """Return the request that takes the most memory: a full batch of the longest source."""
    length = min(info.generation.max_length, LARGEST_LENGTH)
    return predict_request(info, "generate", longest_text(info, text), MAX_BATCH_SIZE, length)


def longest_text(info: ModelInfo, text: str) -> str:
    """Repeat a text until it has as many tokens as the encoder accepts."""
    repeated = text
    while len(info.encode(repeated)) < info.encoder_sequence_length:
        repeated = f"{repeated} {repeated}"
    return repeated


def predict_request(
    info: ModelInfo, signature: str, text: str, rows: int, max_length: int = WARM_UP_LENGTH
) -> PredictRequest:
    """Return a PredictRequest for a signature with the same text in every row."""
    generation, source = info.generation, info.encode(text)
    target: Sequence[int] = (generation.decoder_start_token_id, *source)[:max_length]
    stopping = generation.early_stopping
    row: dict[str, object] = {
        "text": text.encode(),
        "encoder_token_ids": source,
        "encoder_lengths": len(source),
        "encoder_padding_mask": [1] * len(source),
        "decoder_token_ids": target,
        "decoder_lengths": len(target),
        "decoder_padding_mask": [1] * len(target),
        "max_length": max_length,
        "min_length": 0,
        "length_penalty": generation.length_penalty,
        "repetition_penalty": generation.repetition_penalty,
        "early_stopping": str(stopping).lower().encode(),
    }
    message = messages.PredictRequest()
    message.model_spec.signature_name = signature
    for tensor in SIGNATURES[signature].inputs:
        dtype = object if tensor.dtype == "string" else tensor.dtype
        array = np.array([row[tensor.name]] * rows, dtype)
        message.inputs[tensor.name].CopyFrom(messages.tensor_proto(array))
    return message


def write_requests(directory: pathlib.Path, requests: Sequence[PredictRequest]) -> None:
    """Write the warm-up requests of a version directory: a TFRecord file of PredictionLogs."""
    import tensorflow as tf

    path = directory / open_version.WARMUP_REQUESTS
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = messages.PredictionLog(predict_log={"request": request})
            writer.write(log.SerializeToString(deterministic=True))


def measure_memory(directory: pathlib.Path, largest: PredictRequest) -> Memory:
    """Measure the memory for a version's warm-up requests and then the largest request.

    Raises:
        EngineError: if the version cannot be loaded, a request fails, or memory runs out.
    """
    with scratch_directory() as temporary:
        path = temporary / "largest_request"
        path.write_bytes(largest.SerializeToString())
        process = subprocess.run(
            [sys.executable, "-m", __spec__.name, str(directory), str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if process.returncode < 0:
        raise EngineError(
            f"The process that served version {directory.name} was killed by signal "
            f"{-process.returncode}: it needs memory for one version and a full batch of the "
            "longest source. Export on a machine with more memory."
        )
    if process.returncode:
        message = last_words(process.stderr, process.returncode)
        raise EngineError(f"Version {directory.name} fails its own requests: {message}")
    figures = json.loads(process.stdout)
    return Memory(**figures) if figures else guess_memory(directory)


def guess_memory(directory: pathlib.Path) -> Memory:
    """Estimate the memory from the files' size; for small models the libraries dominate."""
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return Memory(loaded=2**29 + size, peak=2**30 + 3 * size, measured=False)


def measure_version(directory: pathlib.Path, largest: PredictRequest) -> dict[str, int]:
    """Load a version, run its requests and return the fields of `Memory`, or {} if unknown."""
    from bart_export.server.tensorflow_engine import open_saved_model

    # The largest request is already a full batch.
    servable = open_saved_model(directory, ServeOptions(batching=False))
    try:
        loaded = private_bytes("VmRSS:")
        open_version.run_warmup(servable, directory)
        servable.submit(predict.call_of(servable, largest, Limits())).result()
        peak = private_bytes("VmHWM:")
    finally:
        servable.close()
    return {} if loaded is None or peak is None else {"loaded": loaded, "peak": peak}


def private_bytes(field: str) -> int | None:
    """Return a field of the process's status less evictable file pages, or None if unavailable."""
    size, files = status_bytes(field), status_bytes("RssFile:")
    return None if size is None or files is None else size - files


def main(directory: str, request: str) -> None:
    """Print the figures of a version, or exit with the error."""
    largest = messages.PredictRequest.FromString(pathlib.Path(request).read_bytes())
    try:
        print(json.dumps(measure_version(pathlib.Path(directory), largest)))
    except BartExportError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:3])
