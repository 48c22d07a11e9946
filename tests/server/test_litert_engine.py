"""The LiteRT engine: what it refuses, and how it streams and ends within limits.

Its answers are held to those of TensorFlow and of the generator in test_every_signature.
"""

import dataclasses
import time

import numpy as np
import pytest

from bart_export.errors import BartExportError
from bart_export.runtime.generator import Generator
from bart_export.server.litert_engine import ArtifactServable
from bart_export.server.messages import object_array
from bart_export.server.metrics import GenerationMetrics, Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call, Limits
from bart_export.server.status import Code, StatusError, status_of_error

TEXT = "A library for reading and writing compressed archives. It streams large files."


@pytest.fixture(scope="module")
def servable(mini_artifact):
    """Return the embedded preset served by two generators."""
    opened = ArtifactServable(
        mini_artifact.directory, 1, ServeOptions(workers=2), GenerationMetrics(Metrics(), "m")
    )
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def generator(mini_artifact):
    return Generator.from_artifact(mini_artifact.directory)


def texts(*values):
    return object_array(value.encode() for value in values)


def run(servable, signature, outputs, inputs, limits=None):
    call = Call(signature=signature, inputs=inputs, outputs=outputs, limits=limits or Limits())
    return servable.submit(call).result(timeout=120)


def test_bytes_that_are_not_utf8_are_replaced(servable, generator):
    inputs = {"text": object_array([b"A \xff library"])}
    ids = run(servable, "tokenize", ("encoder_token_ids",), inputs)["encoder_token_ids"]
    assert ids[0].tolist() == generator.encode("A � library", truncate=False)


WRONG = {
    "another dtype": (
        "serving_default",
        {"text": np.array([1.0], np.float32)},
        r"Expects arg\[0\] to be string but float is provided",
    ),
    "another rank": ("serving_default", {"text": texts("a").reshape(1, 1)}, "1 dimensions"),
    "unequal rows": (
        "detokenize",
        {
            "decoder_token_ids": np.zeros((2, 3), np.int32),
            "decoder_lengths": np.zeros(3, np.int32),
        },
        "must have 3 rows, received 2",
    ),
    "settings for other rows": (
        "generate_text",
        {"text": texts("a", "b", "c"), "max_length": np.array([4, 5], np.int32)},
        "max_length must have 3 rows, received 2",
    ),
    "a word that early_stopping does not have": (
        "generate_text",
        {"text": texts("a"), "early_stopping": texts("yes")},
        "true, false or never, received yes",
    ),
    "an id that is none": (
        "detokenize",
        {
            "decoder_token_ids": np.array([[60000]], np.int32),
            "decoder_lengths": np.array([1], np.int32),
        },
        "received 60000",
    ),
    "a penalty that is none": (
        "generate_text",
        {"text": texts("a"), "repetition_penalty": np.array([0.0], np.float32)},
        "repetition_penalty must be a number above 0",
    ),
    **{
        f"a {name} of {value}": (
            "generate_text",
            {"text": texts("a"), name: np.array([value], np.int32)},
            f"{name} must be an integer of at least {lowest}, received {value}",
        )
        for name, lowest in (("max_length", 2), ("min_length", 0))
        for value in range(-1, lowest)
    },
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_are_told(servable, case):
    signature, inputs, message = WRONG[case]
    outputs = tuple(servable.signature_defs[signature].outputs)
    with pytest.raises(BartExportError, match=message) as error:
        run(servable, signature, outputs, inputs)
    assert status_of_error(error.value).code == Code.INVALID_ARGUMENT


def test_lengths_are_brought_within_the_model(servable, generator):
    inputs = {
        "text": texts(TEXT),
        "max_length": np.array([10**6], np.int32),
        "min_length": np.array([10**6], np.int32),
    }
    received = run(servable, "generate_text", ("generated_text",), inputs)
    longest = generator.engine.config.max_sequence_length
    expected = generator.generate(TEXT, max_length=longest, min_length=longest).text
    assert received["generated_text"][0, 0] == expected.encode()


def test_stopping_ends_the_work_before_the_next_token(servable):
    limits = Limits()
    pieces = []

    def emit(piece, tokens):
        pieces.append(tokens)
        if len(pieces) == 2:
            limits.stop.set()

    with pytest.raises(StatusError) as error:
        servable.stream(TEXT, {"num_beams": 1}, emit, limits).result(timeout=60)
    assert error.value.code == Code.CANCELLED
    assert len(pieces) == 2


def test_a_deadline_ends_the_work_between_tokens(servable):
    limits = Limits(deadline=time.monotonic() + 0.05)
    inputs = {
        "text": texts(TEXT),
        "min_length": np.array([1000], np.int32),
        "max_length": np.array([1000], np.int32),
    }
    with pytest.raises(StatusError) as error:
        run(servable, "generate_text", ("generated_text",), inputs, limits)
    assert error.value.code == Code.DEADLINE_EXCEEDED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(Limits):
    """Limits that end the work when they have been looked at so many times."""

    last: int
    seen: list = dataclasses.field(default_factory=list)

    def check(self):
        self.seen.append(1)
        if len(self.seen) == self.last:
            self.stop.set()
        super().check()


@pytest.mark.parametrize("signature", ["tokenize", "detokenize"])
def test_stopping_ends_the_work_between_rows(servable, signature):
    inputs = {"text": texts(*[TEXT] * 30)}
    if signature == "detokenize":
        ids = np.zeros((30, 5), np.int32)
        inputs = {"decoder_token_ids": ids, "decoder_lengths": np.full(30, 5, np.int32)}
    outputs = ("encoder_lengths",) if signature == "tokenize" else ("text",)
    limits = Counted(last=10)
    with pytest.raises(StatusError) as error:
        run(servable, signature, outputs, inputs, limits)
    assert error.value.code == Code.CANCELLED
    assert len(limits.seen) == 10
