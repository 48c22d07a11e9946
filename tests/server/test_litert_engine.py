"""The LiteRT engine: the generator's answers, within limits, from a queue that is bounded."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from bart_export import contract
from bart_export.runtime.generator import Generator
from bart_export.server import messages
from bart_export.server.litert_engine import ArtifactServable
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call, Limits, StreamCall
from bart_export.server.status import Code, StatusError
from bart_export.server.tensors import from_proto, string_array

TEXTS = [
    "A library for reading and writing compressed archives. It streams large files.",
    "The river rose two metres overnight, and by morning the lower bridge was closed.",
    "",
]


@pytest.fixture(scope="module")
def servable(mini_artifact):
    """Return the embedded preset served by two generators, with room for one call that waits."""
    opened = ArtifactServable(mini_artifact.directory, ServeOptions(workers=2, queue_size=1))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def generator(mini_artifact):
    return Generator.from_artifact(mini_artifact.directory)


def texts(*values):
    return string_array(value.encode() for value in values)


def run(servable, signature, outputs, inputs, limits=None):
    call = Call(signature=signature, inputs=inputs, outputs=outputs, limits=limits or Limits())
    return servable.submit(call).result(timeout=120)


def test_texts_are_those_of_the_generator(servable, generator):
    received = run(servable, "serving_default", ("generated_text",), {"text": texts(*TEXTS)})
    expected = [generator.generate(text, allow_empty=True).text.encode() for text in TEXTS]
    assert received["generated_text"].tolist() == expected
    assert len(set(expected)) == 3


def test_each_text_has_settings_of_its_own(servable, generator):
    inputs = {
        "text": texts(TEXTS[0], TEXTS[0]),
        "max_length": np.array([5, 30], np.int32),
        "early_stopping": string_array([b"never"]),
    }
    received = run(servable, "generate_text", ("generated_text", "scores"), inputs)
    expected = [
        generator.generate(TEXTS[0], max_length=length, early_stopping="never")
        for length in (5, 30)
    ]
    assert received["generated_text"].tolist() == [[one.text.encode()] for one in expected]
    assert received["scores"][:, 0] == pytest.approx([one.score for one in expected], abs=1e-5)
    assert expected[0].text != expected[1].text


def test_ids_go_through_tokenize_generate_and_detokenize(servable, generator):
    ids = run(
        servable, "tokenize", ("encoder_token_ids", "encoder_lengths"), {"text": texts(*TEXTS)}
    )
    generated = run(servable, "generate", ("decoder_token_ids", "decoder_lengths", "scores"), ids)
    expected = [generator.generate(text, allow_empty=True) for text in TEXTS]
    for number, one in enumerate(expected):
        length = generated["decoder_lengths"][number, 0]
        assert generated["decoder_token_ids"][number, 0, :length].tolist() == list(one.token_ids)
        assert (generated["decoder_token_ids"][number, 0, length:] == 1).all()
    back = {
        "decoder_token_ids": generated["decoder_token_ids"][:, 0],
        "decoder_lengths": generated["decoder_lengths"][:, 0],
    }
    text = run(servable, "detokenize", ("text",), back)["text"]
    # A text as such does not begin with the space that says that a word begins.
    assert [one.removeprefix(b" ") for one in text] == [one.text.encode() for one in expected]


def test_texts_that_are_too_long_are_cut(servable, generator):
    long = "word " * 2000
    received = run(servable, "serving_default", ("generated_text",), {"text": texts(long)})
    assert received["generated_text"][0] == generator.generate(long, truncate=True).text.encode()


def test_bytes_that_are_not_utf8_are_replaced(servable, generator):
    inputs = {"text": string_array([b"A \xff library"])}
    ids = run(servable, "tokenize", ("encoder_token_ids",), inputs)["encoder_token_ids"]
    assert ids[0].tolist() == generator.encode("A � library", truncate=False)


def test_signatures_are_those_of_the_contract(servable, generator):
    declared = {one.name: one for one in contract.saved_model_signatures()}
    for name, definition in servable.signature_defs.items():
        for side in ("inputs", "outputs"):
            infos = getattr(definition, side)
            assert set(infos) == {tensor.name for tensor in getattr(declared[name], side)}
            for tensor in getattr(declared[name], side):
                kind = messages.DataType.Name(infos[tensor.name].dtype)
                assert kind == {"string": "DT_STRING", "int32": "DT_INT32"}.get(
                    tensor.dtype, "DT_FLOAT"
                )
                assert len(infos[tensor.name].tensor_shape.dim) == len(tensor.axes)
    defaults = servable.signature_defs["generate_text"].defaults
    assert set(defaults) == {tensor.name for tensor in contract.GENERATION_INPUTS}
    assert from_proto(defaults["max_length"], "").tolist() == [generator.generation.max_length]


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
    with pytest.raises(StatusError, match=message) as error:
        run(servable, signature, outputs, inputs)
    assert error.value.code == Code.INVALID_ARGUMENT


def test_lengths_are_brought_within_the_model(servable, generator):
    inputs = {
        "text": texts(TEXTS[0]),
        "max_length": np.array([10**6], np.int32),
        "min_length": np.array([10**6], np.int32),
    }
    received = run(servable, "generate_text", ("generated_text",), inputs)
    longest = generator.engine.config.max_sequence_length
    expected = generator.generate(TEXTS[0], max_length=longest, min_length=longest).text
    assert received["generated_text"][0, 0] == expected.encode()


def test_a_stream_is_the_text_and_ends_with_the_result(servable, generator):
    pieces = []
    call = StreamCall(
        text=TEXTS[0],
        parameters={"num_beams": 1},
        emit=lambda piece, tokens: pieces.append((piece, tokens)),
    )
    result = servable.stream(call).result(timeout=60)
    assert "".join(piece for piece, _ in pieces) == result.text
    assert result.text == generator.generate(TEXTS[0], num_beams=1).text
    counts = [tokens for _, tokens in pieces]
    assert counts == sorted(counts) and len(set(counts)) > 3


def test_stopping_ends_the_work_before_the_next_token(servable):
    limits = Limits()
    pieces = []

    def emit(piece, tokens):
        pieces.append(tokens)
        if len(pieces) == 2:
            limits.stop.set()

    call = StreamCall(text=TEXTS[0], parameters={"num_beams": 1}, emit=emit, limits=limits)
    with pytest.raises(StatusError) as error:
        servable.stream(call).result(timeout=60)
    assert error.value.code == Code.CANCELLED
    assert len(pieces) == 2


def test_a_deadline_ends_the_work_between_tokens(servable):
    limits = Limits(deadline=time.monotonic() + 0.05)
    inputs = {
        "text": texts(TEXTS[0]),
        "min_length": np.array([1000], np.int32),
        "max_length": np.array([1000], np.int32),
    }
    began = time.monotonic()
    with pytest.raises(StatusError) as error:
        run(servable, "generate_text", ("generated_text",), inputs, limits)
    assert error.value.code == Code.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 1


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
    inputs = {"text": texts(*TEXTS[:1] * 30)}
    if signature == "detokenize":
        ids = np.zeros((30, 5), np.int32)
        inputs = {"decoder_token_ids": ids, "decoder_lengths": np.full(30, 5, np.int32)}
    outputs = ("encoder_lengths",) if signature == "tokenize" else ("text",)
    limits = Counted(last=10)
    with pytest.raises(StatusError) as error:
        run(servable, signature, outputs, inputs, limits)
    assert error.value.code == Code.CANCELLED
    assert len(limits.seen) == 10


def test_a_full_queue_is_refused_at_once_and_room_comes_back(servable):
    release = threading.Event()
    busy = threading.Semaphore(0)

    def emit(piece, tokens):
        busy.release()
        release.wait(timeout=60)

    def stream():
        call = StreamCall(text=TEXTS[0], parameters={"num_beams": 1, "max_length": 6}, emit=emit)
        return servable.stream(call)

    running = [stream(), stream()]
    assert busy.acquire(timeout=60) and busy.acquire(timeout=60)
    waiting = stream()
    with pytest.raises(StatusError, match="queue") as error:
        stream()
    assert error.value.code == Code.UNAVAILABLE
    assert not busy.acquire(timeout=0.2)  # nothing else has begun
    release.set()
    assert {future.result(timeout=60).text for future in (*running, waiting)} != {""}
    assert stream().result(timeout=60).text
