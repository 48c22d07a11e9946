"""The requests that a new version answers before clients' do, and the largest one there is.

Tokenizer, texts and settings go in, PredictRequest messages come out: for each signature of the
contract the first call, which optimizes its graph, and for those that generate also the shapes that
memory is taken for. Nothing here knows a file or a server.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bart_export import contract
from bart_export.config import GenerationConfig
from bart_export.runtime.generator import ModelInfo
from bart_export.server import messages, tensors

# Rows of a full batch; the same number stands, with its reason, in batching_params.pbtxt.
MAX_BATCH_SIZE = 8
# Decoder tokens of a request whose length can be set: enough for each part of the loop to run.
WARM_UP_LENGTH = 8
# For full batches of the longest source; caches of most summaries have doubled to this by then.
LARGEST_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class Sample:
    """One text, its ids, and how often it stands in a request."""

    text: str
    token_ids: tuple[int, ...]
    rows: int


def short(info: ModelInfo, text: str, rows: int) -> Sample:
    """Return a source of a few dozen tokens, which the text has."""
    return Sample(text, info.encode(text), rows)


def longest(info: ModelInfo, text: str, rows: int) -> Sample:
    """Return a source of as many tokens as the model takes."""
    repeated = text
    while len(info.encode(repeated)) < info.encoder_sequence_length:
        repeated = f"{repeated} {repeated}"
    return short(info, repeated, rows)


def warm_up_requests(info: ModelInfo, text: str) -> list[Any]:
    """Return the requests of `tf_serving_warmup_requests`, in the order they are to run.

    Each signature is run once, and those that generate also with a full batch and with the longest
    source. `serving_default`, whose length a request cannot set, is run once. `text` is some prose
    of a few dozen tokens.
    """
    requests = [
        request(info, signature, short(info, text, 1), WARM_UP_LENGTH)
        for signature in contract.saved_model_signatures()
    ]
    return requests + [
        request(info, signature, sample, WARM_UP_LENGTH)
        for signature in contract.saved_model_signatures()
        if signature.name in ("generate_text", "generate")
        for sample in (short(info, text, MAX_BATCH_SIZE), longest(info, text, 1))
    ]


def largest_request(info: ModelInfo, text: str) -> Any:
    """Return a full batch of the longest source: what takes the most memory."""
    (signature,) = (one for one in contract.saved_model_signatures() if one.name == "generate")
    length = min(info.generation.max_length, LARGEST_LENGTH)
    return request(info, signature, longest(info, text, MAX_BATCH_SIZE), length)


def request(info: ModelInfo, signature: contract.Signature, sample: Sample, max_length: int) -> Any:
    """Return a PredictRequest that calls a signature with a sample in every row."""
    values = row_values(info.generation, sample, max_length)
    message = messages.PredictRequest()
    message.model_spec.signature_name = signature.name
    for tensor in signature.inputs:
        dtype = object if tensor.dtype == "string" else tensor.dtype
        array = np.array([values[tensor.name]] * sample.rows, dtype)
        message.inputs[tensor.name].CopyFrom(tensors.to_proto(array))
    return message


def row_values(generation: GenerationConfig, sample: Sample, max_length: int) -> Mapping[str, Any]:
    """Return the value of a row for each input of the contract, by name."""
    target: Sequence[int] = (generation.decoder_start_token_id, *sample.token_ids)
    target = target[:max_length]
    stopping = generation.early_stopping
    return {
        "text": sample.text.encode(),
        "encoder_token_ids": sample.token_ids,
        "encoder_lengths": len(sample.token_ids),
        "encoder_padding_mask": [1] * len(sample.token_ids),
        "decoder_token_ids": target,
        "decoder_lengths": len(target),
        "decoder_padding_mask": [1] * len(target),
        "max_length": max_length,
        "min_length": 0,
        "length_penalty": generation.length_penalty,
        "repetition_penalty": generation.repetition_penalty,
        "early_stopping": (
            stopping if isinstance(stopping, str) else str(stopping).lower()
        ).encode(),
    }
