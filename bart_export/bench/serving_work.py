"""What a server and its engine are asked while they are measured, the same for both.

An artifact and an amount of work go in; inputs of `generate` come out, as arrays for an engine and
as bytes for each front of a server. Sources are random, settings force an exact number of tokens,
and answers are held to it. Which figures are taken, nothing here knows.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.bench.bench import check, fitting_length
from bart_export.bench.serving_client import LENGTHS, OK, TOKENS, Requests, digest
from bart_export.errors import EngineError
from bart_export.server import messages
from bart_export.server.litert_engine import default
from bart_export.server.servable import Call, Servable, Tensors
from bart_export.server.sources import LITERT
from bart_export.server.tensors import to_proto

SIGNATURE = "generate"
# What decides how much work a search is; a SavedModel's are fixed at its export.
SEARCH = ("num_beams", "num_return_sequences", "no_repeat_ngram_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """How much there is to do: source tokens, and new tokens to generate."""

    source: int
    new_tokens: int


def fitting_work(
    artifact: Artifact, source: int | None, new_tokens: int | None, usual: Work
) -> Work:
    """Return the work that was given, what is None as usual or as far as the model has room.

    Raises:
        ConfigurationError: for numbers that are not positive, or more than the model can take.
    """
    positions = artifact.config.max_sequence_length
    work = Work(
        source=fitting_length("--source", source, usual.source, positions),
        new_tokens=fitting_length("--new-tokens", new_tokens, usual.new_tokens, positions - 1),
    )
    check(source=[work.source], new_tokens=[work.new_tokens])
    return work


def inputs_of(artifact: Artifact, work: Work, rows: int, count: int) -> list[Tensors]:
    """Return `count` inputs of `generate`, the same for the same arguments.

    Each has `rows` random sources, and settings for exactly so much work; what the work leaves open
    is the artifact's own.
    """
    length = work.new_tokens + 1
    settings = artifact.generation.replace(max_length=length, min_length=length)
    generator = np.random.default_rng(0)
    shape = count, rows, work.source
    return [
        {
            "encoder_token_ids": ids,
            "encoder_lengths": np.full(rows, work.source, np.int32),
            **{
                tensor.name: np.repeat(default(tensor, settings), rows)
                for tensor in contract.GENERATION_INPUTS
            },
        }
        for ids in generator.integers(0, artifact.config.vocabulary_size, shape, np.int32)
    ]


def requests_of(model: str, asked: Sequence[Tensors]) -> Requests:
    """Return the requests of both fronts that bring these inputs."""
    return Requests(
        model,
        tuple(rest_body(inputs) for inputs in asked),
        tuple(grpc_message(model, inputs) for inputs in asked),
    )


def rest_body(inputs: Tensors) -> bytes:
    """Return the body of a REST request in column format."""
    listed = {
        name: [text.decode() for text in array] if array.dtype == object else array.tolist()
        for name, array in inputs.items()
    }
    return json.dumps({"signature_name": SIGNATURE, "inputs": listed}).encode()


def grpc_message(model: str, inputs: Tensors) -> bytes:
    """Return a serialized PredictRequest, arrays as `tf.make_tensor_proto` writes them."""
    message = messages.PredictRequest()
    message.model_spec.name = model
    message.model_spec.signature_name = SIGNATURE
    for name, array in inputs.items():
        message.inputs[name].CopyFrom(to_proto(array, as_content=array.dtype != object))
    serialized: bytes = message.SerializeToString()
    return serialized


def run_engine(servable: Servable, inputs: Tensors, work: Work) -> float:
    """Run `generate` on an engine; return the seconds it took.

    Raises:
        EngineError: if it generates another number of tokens.
    """
    outputs = tuple(sorted(servable.signature_defs[SIGNATURE].outputs))
    began = time.perf_counter()
    answer = servable.submit(Call(signature=SIGNATURE, inputs=inputs, outputs=outputs)).result()
    seconds = time.perf_counter() - began
    check_answer("the engine", OK, digest(answer[TOKENS], answer[LENGTHS])[0], work)
    return seconds


def check_answer(what: str, status: str, new_tokens: int, work: Work) -> None:
    """Raise EngineError unless an answer has exactly as many tokens as asked for."""
    if status != OK:
        raise EngineError(f"Expected {what} to answer a request by itself, received {status}.")
    if new_tokens != work.new_tokens:
        raise EngineError(
            f"Expected {what} to generate {work.new_tokens} tokens, received {new_tokens}."
        )


def search_settings(artifact: Artifact, engine: str) -> dict[str, Any]:
    """Return how an engine searches: the values of `SEARCH`, None for what is not known.

    A SavedModel's are those of the golden questions that it was asked when it was exported.
    """
    if engine == LITERT:
        settings: Mapping[str, Any] = artifact.generation.to_dict()
    else:
        name = f"saved_model/{max(artifact.manifest.saved_model_versions, default=0)}"
        cases = artifact.golden().cases
        asked = [case.generation.to_dict() for case in cases if name in case.files]
        settings = asked[0] if asked else {}
    return {name: settings.get(name) for name in SEARCH}
