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
from bart_export.server import messages, tensors
from bart_export.text.tokenizer import BartTokenizer

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


@dataclasses.dataclass(frozen=True)
class Served:
    """What requests are made for.

    `generation` is what the model was exported with, `encoder_sequence_length` what it cuts texts
    to. `text` is some prose of a few dozen tokens.
    """

    tokenizer: BartTokenizer
    generation: GenerationConfig
    encoder_sequence_length: int
    text: str

    def short(self, rows: int) -> Sample:
        """Return a source of a few dozen tokens."""
        return self.sample(self.text, rows)

    def longest(self, rows: int) -> Sample:
        """Return a source of as many tokens as the model takes."""
        text = self.text
        while len(self.token_ids(text)) < self.encoder_sequence_length:
            text = f"{text} {text}"
        return self.sample(text, rows)

    def sample(self, text: str, rows: int) -> Sample:
        """Return some rows of a text."""
        return Sample(text, self.token_ids(text), rows)

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text, cut to what the model takes."""
        return tuple(self.tokenizer.encode(text, self.encoder_sequence_length, truncate=True))


def warm_up_requests(served: Served) -> list[Any]:
    """Return the requests of `tf_serving_warmup_requests`, in the order they are to run.

    Each signature is run once, and those that generate also with a full batch and with the longest
    source. `serving_default`, whose length a request cannot set, is run once.
    """
    short = served.short(1)
    requests = [
        request(served, signature, short, WARM_UP_LENGTH)
        for signature in contract.saved_model_signatures()
    ]
    return requests + [
        request(served, signature, sample, WARM_UP_LENGTH)
        for signature in contract.saved_model_signatures()
        if signature.name in ("generate_text", "generate")
        for sample in (served.short(MAX_BATCH_SIZE), served.longest(1))
    ]


def largest_request(served: Served) -> Any:
    """Return a full batch of the longest source: what takes the most memory."""
    (signature,) = (one for one in contract.saved_model_signatures() if one.name == "generate")
    length = min(served.generation.max_length, LARGEST_LENGTH)
    return request(served, signature, served.longest(MAX_BATCH_SIZE), length)


def request(served: Served, signature: contract.Signature, sample: Sample, max_length: int) -> Any:
    """Return a PredictRequest that calls a signature with a sample in every row."""
    values = row_values(served, sample, max_length)
    message = messages.PredictRequest()
    message.model_spec.signature_name = signature.name
    for tensor in signature.inputs:
        dtype = object if tensor.dtype == "string" else tensor.dtype
        array = np.array([values[tensor.name]] * sample.rows, dtype)
        message.inputs[tensor.name].CopyFrom(tensors.to_proto(array))
    return message


def row_values(served: Served, sample: Sample, max_length: int) -> Mapping[str, Any]:
    """Return the value of a row for each input of the contract, by name."""
    generation = served.generation
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
