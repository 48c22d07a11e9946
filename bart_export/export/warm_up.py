"""The requests that a new version answers before clients' do, and the memory that it takes.

Memory is measured in a process of its own, which loads the version as a server does, runs the
warm-up requests and then the largest one, so that a version whose own requests fail is found out
before it is deployed. As a program this module is that process.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bart_export import contract
from bart_export.artifact.manifest import Memory
from bart_export.documents import scratch_directory
from bart_export.errors import BartExportError, EngineError, last_words
from bart_export.server import messages, open_version, tensors
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call

if TYPE_CHECKING:  # whose engines count as memory
    from bart_export.runtime.generator import ModelInfo

PredictRequest = Any  # a class made of descriptors, which is untyped
# Rows of a full batch; the same number stands, with its reason, in batching_params.pbtxt.
MAX_BATCH_SIZE = 8
# Decoder tokens of a request whose length can be set: enough for each part of the loop to run.
WARM_UP_LENGTH = 8
# For full batches of the longest source; caches of most summaries have doubled to this by then.
LARGEST_LENGTH = 64
SIGNATURES = {signature.name: signature for signature in contract.saved_model_signatures()}
STATUS = pathlib.Path("/proc/self/status")


def warm_up_requests(info: "ModelInfo", text: str) -> list[PredictRequest]:
    """Return the requests of `tf_serving_warmup_requests`, in the order they are to run.

    Each signature is run once, which optimizes its graph, and those that generate also with a full
    batch and with the longest source, so that memory is taken for them. `serving_default`, whose
    length a request cannot set, is run once. `text` is some prose of a few dozen tokens.
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


def largest_request(info: "ModelInfo", text: str) -> PredictRequest:
    """Return a full batch of the longest source: what takes the most memory."""
    length = min(info.generation.max_length, LARGEST_LENGTH)
    return predict_request(info, "generate", longest_text(info, text), MAX_BATCH_SIZE, length)


def longest_text(info: "ModelInfo", text: str) -> str:
    """Return a text repeated to as many tokens as the model takes."""
    repeated = text
    while len(info.encode(repeated)) < info.encoder_sequence_length:
        repeated = f"{repeated} {repeated}"
    return repeated


def predict_request(
    info: "ModelInfo",
    signature: str,
    text: str,
    rows: int,
    max_length: int = WARM_UP_LENGTH,
) -> PredictRequest:
    """Return a PredictRequest that calls a signature with a text in every row."""
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
        message.inputs[tensor.name].CopyFrom(tensors.to_proto(array))
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
    """Measure what a version directory takes, with its warm-up requests and at last the largest.

    Raises:
        EngineError: if the version cannot be loaded or a request fails, or memory does not suffice.
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
            f"Serving {directory.name} in a process of its own was ended by signal "
            f"{-process.returncode}: expected memory for one version and a full batch of the "
            "longest source. Export on a machine with more memory."
        )
    if process.returncode:
        message = last_words(process.stderr, process.returncode)
        raise EngineError(f"Version {directory.name} does not serve its requests: {message}")
    figures = json.loads(process.stdout)
    return Memory(**figures) if figures else guess_memory(directory)


def guess_memory(directory: pathlib.Path) -> Memory:
    """Return figures where nothing can be measured; the libraries count most for small models."""
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return Memory(loaded=2**29 + size, peak=2**30 + 3 * size, measured=False)


def serve(directory: pathlib.Path, largest: PredictRequest) -> dict[str, int]:
    """Load a version, run its requests and return the fields of `Memory`, none if unknown.

    Raises:
        BartExportError: as the server does for a version that cannot be loaded or a request that
            fails.
    """
    from bart_export.server.tensorflow_engine import open_saved_model

    # A batch as it runs, whatever batches it.
    servable = open_saved_model(directory, ServeOptions(batching=False))
    name = largest.model_spec.signature_name
    inputs = {alias: tensors.from_proto(proto, alias) for alias, proto in largest.inputs.items()}
    try:
        loaded = private_bytes("VmRSS")
        open_version.run_warmup(servable, directory)
        outputs = tuple(servable.signature_defs[name].outputs)
        servable.submit(Call(signature=name, inputs=inputs, outputs=outputs)).result()
        peak = private_bytes("VmHWM")
    finally:
        servable.close()
    return {} if loaded is None or peak is None else {"loaded": loaded, "peak": peak}


def private_bytes(field: str) -> int | None:
    """Return a field of /proc/self/status without pages of files, None where there is no such file.

    Pages of files, which are libraries, may be dropped and count against nobody's limit.
    """
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines)
    kilobytes, files = (int(values[name].split()[0]) for name in (field, "RssFile"))
    return 1024 * (kilobytes - files)


def main(directory: str, request: str) -> None:
    """Serve what is named and print the figures, or why not as the last line of standard error."""
    largest = messages.PredictRequest.FromString(pathlib.Path(request).read_bytes())
    try:
        print(json.dumps(serve(pathlib.Path(directory), largest)))
    except BartExportError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:3])
