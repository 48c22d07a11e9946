"""The requests that a server runs on a new version before it answers clients."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bart_export import contract
from bart_export.server import messages, open_version

if TYPE_CHECKING:  # importing it would add the engines to the measured memory
    from bart_export.runtime.generator import ModelInfo

PredictRequest = Any  # the generated class has no types
# Rows of a full batch; batching_params.pbtxt explains the number.
MAX_BATCH_SIZE = 8
# Decoder tokens if a request can set the length: enough to run every part of the loop.
WARM_UP_LENGTH = 8
# Decoder tokens in a full batch of the longest source; most summaries are shorter than this.
LARGEST_LENGTH = 64
SIGNATURES = {signature.name: signature for signature in contract.saved_model_signatures()}


def warm_up_requests(info: "ModelInfo", text: str) -> list[PredictRequest]:
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


def largest_request(info: "ModelInfo", text: str) -> PredictRequest:
    """Return the request that takes the most memory: a full batch of the longest source."""
    length = min(info.generation.max_length, LARGEST_LENGTH)
    return predict_request(info, "generate", longest_text(info, text), MAX_BATCH_SIZE, length)


def longest_text(info: "ModelInfo", text: str) -> str:
    """Repeat a text until it has as many tokens as the encoder accepts."""
    repeated = text
    while len(info.encode(repeated)) < info.encoder_sequence_length:
        repeated = f"{repeated} {repeated}"
    return repeated


def predict_request(
    info: "ModelInfo", signature: str, text: str, rows: int, max_length: int = WARM_UP_LENGTH
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
