"""A Generator in several threads, and unfinished streams."""

import collections
import gc
import threading
import weakref

import numpy as np
import pytest
from support.command import refusal

from bart_export.config import MOST_THREADS
from bart_export.errors import ConfigurationError, EngineError, InputError
from bart_export.runtime.generator import Generator
from bart_export.server.options import ServeOptions

TEXTS = (
    "This library reads and writes spreadsheets in Python. It keeps formulas, styles and charts.",
    "A small web framework with routing, templates and sessions for building sites quickly.",
    "short text",
    "word " * 40,
)
GREEDY = {"num_beams": 1, "min_length": 12, "max_length": 16}


@pytest.fixture
def generator(mini_artifact):
    with Generator.from_artifact(mini_artifact.directory, num_threads=1) as generator:
        yield generator


class FailingBackend:
    """A backend that counts steps, and at one of them raises an error or computes a NaN."""

    def __init__(self, engine, failing=0, error=None):
        self.backend = engine.backend
        engine.backend = self
        self.failing, self.error = failing, error
        self.steps = 0

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def decode(self, *arguments):
        self.steps += 1
        logits = self.backend.decode(*arguments)
        if self.steps == self.failing:
            if self.error is not None:
                raise self.error
            logits[0] = np.nan
        return logits


def test_four_threads_get_the_texts_that_one_gets(generator):
    asked = [(text, beams) for text in TEXTS for beams in (1, 3)]
    expected = {
        (text, beams): generator.generate(text, num_beams=beams, max_length=16).text
        for text, beams in asked
    }
    answers, errors = collections.Counter(), []
    together = threading.Barrier(4)

    def work(number):
        together.wait()
        for place in range(24):
            text, beams = asked[(place * (number + 1) + number) % len(asked)]
            try:
                if (place + number) % 3:
                    text_out = generator.generate(text, num_beams=beams, max_length=16).text
                else:
                    text_out = "".join(generator.stream(text, num_beams=beams, max_length=16))
            except Exception as error:
                errors.append(error)
                continue
            answers[text_out == expected[text, beams]] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
    assert answers == {True: 96}


@pytest.mark.parametrize("count", [0, -1, 50_000, 2**31, True, 2.0, "2"])
def test_a_number_of_threads_that_none_can_have_is_refused(mini_artifact, count):
    with pytest.raises(ConfigurationError, match="num_threads must be an integer from 1 to 1024"):
        Generator.from_artifact(mini_artifact.directory, num_threads=count)
    with pytest.raises(ConfigurationError, match="workers must be an integer from 1 to 1024"):
        ServeOptions(workers=count)


def test_the_most_threads_there_can_be_give_the_same_text(mini_artifact, generator):
    with Generator.from_artifact(mini_artifact.directory, num_threads=MOST_THREADS) as many:
        assert many.generate(TEXTS[0], **GREEDY).text == generator.generate(TEXTS[0], **GREEDY).text
    with pytest.raises(ConfigurationError, match="workers=64 and num_threads=64"):
        ServeOptions(workers=64, num_threads=64)


@pytest.mark.parametrize(
    "command", ["generate X Y --threads", "bench X --threads", "bench X --serve --workers",
                "serve X --threads", "serve X --workers"],
)  # fmt: skip
def test_no_command_takes_more_threads(command):
    assert "50000 is not in the range 1<=x<=1024" in refusal(*command.split(), 50000)


def test_another_text_first_runs_a_stream_that_is_half_read_to_its_end(generator):
    whole = generator.generate(TEXTS[0], **GREEDY)
    other = generator.generate(TEXTS[1], **GREEDY)
    stream = generator.stream(TEXTS[0], **GREEDY)
    pieces = [next(stream), next(stream)]
    assert stream.result is None
    assert generator.generate(TEXTS[1], **GREEDY).text == other.text
    pieces += stream
    assert len(pieces) == 3  # the rest was ready
    assert "".join(pieces) == whole.text
    assert stream.result.token_ids == whole.token_ids
    assert stream.result.score == whole.score
    assert list(stream) == []


def test_streams_may_be_read_in_turn(generator):
    expected = [generator.generate(text, **GREEDY).text for text in TEXTS]
    streams = [generator.stream(text, **GREEDY) for text in TEXTS]
    read = [""] * len(streams)
    for _ in range(32):
        for place, stream in enumerate(streams):
            read[place] += next(stream, "")
    assert read == expected


@pytest.mark.parametrize("leave", ["close", "drop", "never begin"])
def test_a_stream_that_is_left_takes_no_more_time(generator, leave):
    engine = FailingBackend(generator.engine)
    generator.generate(TEXTS[1], **GREEDY)
    usual, engine.steps = engine.steps, 0
    stream = generator.stream(TEXTS[0], **GREEDY)
    if leave != "never begin":
        next(stream)
        next(stream)
    begun = engine.steps
    if leave == "close":
        stream.close()
        assert list(stream) == []
        with pytest.raises(EngineError, match="closed before its end"):
            stream.drain()
    elif leave == "drop":
        del stream
    generator.generate(TEXTS[1], **GREEDY)
    assert engine.steps == begun + usual


def test_the_error_of_a_stream_is_raised_where_it_is_read(generator):
    expected = generator.generate(TEXTS[1], **GREEDY).text
    FailingBackend(generator.engine, 4)
    stream = generator.stream(TEXTS[0], **GREEDY)
    next(stream)
    assert generator.generate(TEXTS[1], **GREEDY).text == expected
    with pytest.raises(EngineError, match="finite logits"):
        list(stream)


def test_a_stream_goes_on_after_another_text_was_interrupted(generator):
    expected = generator.generate(TEXTS[0], **GREEDY).text
    FailingBackend(generator.engine, 4, KeyboardInterrupt())
    stream = generator.stream(TEXTS[0], **GREEDY)
    first = next(stream)
    with pytest.raises(KeyboardInterrupt):
        generator.generate(TEXTS[1], **GREEDY)
    assert first + "".join(stream) == expected
    assert generator.generate(TEXTS[1], **GREEDY).text


def test_a_step_that_fails_for_several_texts_is_tried_with_fewer(generator):
    expected = [result.text for result in generator.generate(TEXTS, **GREEDY)]
    backend = FailingBackend(generator.engine, 4, EngineError("no memory"))
    assert [result.text for result in generator.generate(TEXTS, **GREEDY)] == expected
    assert generator.scheduler.row_limit == 2
    generator.generate(TEXTS[2:3] * 62, **GREEDY)
    assert generator.scheduler.row_limit == 4
    backend.steps, backend.failing = 0, 2
    with pytest.raises(EngineError, match="no memory"):
        generator.generate(TEXTS[0], **GREEDY)


def test_a_signal_handler_may_close_the_generator_that_it_interrupts(generator):
    backend = FailingBackend(generator.engine)
    decode = backend.decode

    def closing(*arguments):
        generator.close()
        return decode(*arguments)

    backend.decode = closing
    with pytest.raises(EngineError, match="was closed"):
        generator.generate(TEXTS, **GREEDY)
    assert not hasattr(generator.engine, "backend")
    generator.close()


def test_a_close_that_is_interrupted_is_completed_by_the_thread_that_steps(generator):
    backend = FailingBackend(generator.engine)
    decode, begun, go = backend.decode, threading.Event(), threading.Event()
    errors = []

    def decode_slowly(*arguments):
        begun.set()
        go.wait(60)
        return decode(*arguments)

    def generate():
        with pytest.raises(EngineError, match="was closed") as caught:
            generator.generate(TEXTS[0], **GREEDY)
        errors.append(caught.value)

    backend.decode = decode_slowly
    thread = threading.Thread(target=generate)
    thread.start()
    assert begun.wait(60)
    wait, generator.scheduler.changed.wait = generator.scheduler.changed.wait, interrupt
    with pytest.raises(KeyboardInterrupt):
        generator.close()
    generator.scheduler.changed.wait = wait
    go.set()
    thread.join(60)
    assert len(errors) == 1
    assert not hasattr(generator.engine, "backend")


def interrupt():
    raise KeyboardInterrupt


def test_a_closed_generator_lets_go_of_its_model_and_says_so(mini_artifact):
    with Generator.from_artifact(mini_artifact.directory, num_threads=1) as generator:
        model = weakref.ref(generator.engine.backend)
        stream, later = generator.stream(TEXTS[0], **GREEDY), generator.stream(TEXTS[1], **GREEDY)
        next(stream)
    gc.collect()
    assert model() is None
    for use in (
        lambda: next(stream),
        lambda: next(later),
        lambda: generator.generate(TEXTS[0]),
        lambda: list(generator.stream(TEXTS[0])),
    ):
        with pytest.raises(EngineError, match="was closed"):
            use()
    generator.close()


def test_a_generator_says_what_it_is(generator, mini_artifact):
    assert repr(generator) == (
        f"<Generator of tflite/dynamic_wi8_afp32.tflite of {mini_artifact.directory}: "
        "max_length=32, num_beams=4, early_stopping=True, no_repeat_ngram_size=3, "
        "forced_bos_token_id=0, forced_eos_token_id=2>"
    )


EMPTY = ["", " ", "\n\t \u3000"]


@pytest.mark.parametrize("text", EMPTY)
def test_from_nothing_nothing_is_made_up(generator, text):
    for use in (generator.generate, generator.stream, lambda text: generator.generate(["a", text])):
        with pytest.raises(InputError, match="must not be blank, received"):
            use(text)


@pytest.mark.parametrize("text", EMPTY)
def test_who_wants_what_the_model_makes_up_may_have_it(generator, text):
    result = generator.generate(text, allow_empty=True)
    ids = generator.tokenizer.encode(text, 160)
    assert result.token_ids == generator.generate_ids(ids).token_ids
    assert "".join(generator.stream(text, allow_empty=True)) == result.text


def test_of_several_texts_none_is_generated_from_unless_all_can_be(generator):
    engine = FailingBackend(generator.engine)
    with pytest.raises(InputError, match="at most 160 tokens"):
        generator.generate([TEXTS[0], "word " * 999])
    assert engine.steps == 0


class Interrupted:
    """A LiteRT model that is interrupted while it allocates a buffer."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def create_input_buffer_by_name(self, *names):
        raise KeyboardInterrupt


def test_a_text_after_an_interrupted_resize_gets_its_result(generator):
    expected = generator.generate(TEXTS[2], **GREEDY).text
    generator.generate(TEXTS[0], **GREEDY)
    decoder = generator.engine.backend.decoder
    model, decoder.model = decoder.model, Interrupted(decoder.model)
    with pytest.raises(KeyboardInterrupt):
        generator.generate(TEXTS[2], **GREEDY)
    decoder.model = model
    assert generator.generate(TEXTS[2], **GREEDY).text == expected


def test_a_stream_that_is_first_read_after_the_end_is_an_error_each_time(mini_artifact):
    with Generator.from_artifact(mini_artifact.directory, num_threads=1) as generator:
        stream = generator.stream(TEXTS[0])
    found = []

    def read():
        for use in (lambda: next(stream), lambda: next(stream), stream.drain):
            with pytest.raises(EngineError, match="was closed"):
                use()
            found.append(use)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(60)
    assert len(found) == 3


@pytest.mark.parametrize("texts", ["short text", b"bytes", {"a": 1}, None, 5, np.array(4)])
def test_one_text_is_not_an_iterable_of_texts(generator, texts):
    with pytest.raises(InputError, match="texts must be an iterable of texts, received "):
        generator.generate_iter(texts)
