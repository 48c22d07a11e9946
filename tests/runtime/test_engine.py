"""Engines of both backends and both builds compute and refuse the same."""

import numpy as np
import pytest
from support.scripts import Running, Script, assert_as_alone

from bart_export import contract
from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.errors import EngineError, InputError, MissingExtra
from bart_export.recipes.table import LITERT, TFLITE_RUNTIME
from bart_export.runtime import engine_choice
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.interpreter import open_interpreter
from bart_export.runtime.scheduler import Scheduler, Task
from bart_export.runtime.search import run, search
from bart_export.runtime.sizing import Buckets

SHAPES = StaticShapes(source_lengths=(8, 32), target_length=20, num_beams=(2, 4))
TARGET = SHAPES.target_length


@pytest.fixture(scope="module")
def buckets(roomy_config):
    # Not in the order of their sizes.
    return contract.static_buckets(roomy_config, (32, 8), TARGET, (4, 2))


@pytest.fixture(scope="module")
def static_file(roomy_parameters, tmp_path_factory):
    from bart_export.convert import tflite

    path = tmp_path_factory.mktemp("roomy_static") / "float32.static.tflite"
    tflite.write_float(roomy_parameters, path, SHAPES)
    return path


@pytest.fixture(scope="module")
def compiled(roomy_file, roomy_config):
    return open_compiled_model(roomy_file, roomy_config, num_threads=1)


@pytest.fixture(scope="module")
def interpreter(roomy_file, roomy_config):
    return open_interpreter(roomy_file, roomy_config, num_threads=1, interpreter=LITERT)


@pytest.fixture(scope="module")
def static(static_file, roomy_config, buckets):
    return open_compiled_model(static_file, roomy_config, buckets, num_threads=1)


@pytest.fixture(scope="module")
def static_interpreter(static_file, roomy_config, buckets):
    return open_interpreter(static_file, roomy_config, buckets, num_threads=1, interpreter=LITERT)


ALL = ("compiled", "interpreter", "static", "static_interpreter")


@pytest.fixture
def engine(request):
    return request.getfixturevalue(request.param)


def each(*names):
    return pytest.mark.parametrize("engine", names, indirect=True)


def source(length, seed=0):
    return np.random.default_rng(seed).integers(3, 40, length).tolist()


def trace(engine, token_ids, beams, steps):
    """Return the logits of every step; every third step keeps the order of the beams."""
    random = np.random.default_rng(0)
    state = engine.start(token_ids, beams, steps)
    rows = []
    for step in range(steps):
        stay = np.arange(beams) if step % 3 == 1 else random.integers(0, beams, beams)
        tokens = random.integers(0, 40, beams).astype(np.int32)
        logits, state = engine.step(state, tokens, stay.astype(np.int32))
        rows.append(logits)
    assert logits.dtype == np.float32
    return np.stack(rows)


def assert_same(logits, expected):
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@each(*ALL[1:])
def test_a_source_leaves_nothing_behind_for_the_next(engine, compiled):
    # Longer, shorter, with more beams, with fewer, and twice the same shapes.
    for seed, (length, beams, steps) in enumerate(
        [(3, 1, 4), (11, 1, 9), (11, 4, 9), (7, 3, 20), (2, 2, 20), (2, 2, 20), (1, 1, 1)]
    ):
        token_ids = source(length, seed)
        assert_same(
            trace(engine, token_ids, beams, steps), trace(compiled, token_ids, beams, steps)
        )


@each("compiled", "interpreter")
def test_growing_caches_keep_every_position(engine, monkeypatch):
    # From 16 positions over 32, 64 and 128 to all 256 of the model.
    grown = trace(engine, source(5), 2, 256)
    monkeypatch.setattr("bart_export.runtime.sizing.FIRST_CAPACITY", 256)
    assert_same(trace(engine, source(5), 2, 256), grown)


@each("static", "static_interpreter")
@pytest.mark.parametrize("num_beams", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 32])
def test_the_tokens_of_a_bucket_are_those_of_the_dynamic_build(engine, compiled, length, num_beams):
    generation = GenerationConfig(
        num_beams=num_beams, max_length=TARGET, min_length=TARGET, decoder_start_token_id=2
    )
    best, expected = (
        run(search(generation), opened.step, opened.start(source(length), num_beams, TARGET))[0]
        for opened in (engine, compiled)
    )
    assert len(best.token_ids) == TARGET
    assert best.token_ids == expected.token_ids
    assert best.score == pytest.approx(expected.score, abs=1e-4)


@each("compiled", "interpreter")
def test_logits_are_the_callers_to_change(engine):
    state = engine.start(source(5), 1, 3)
    first, state = engine.step(state, np.array([2], np.int32), np.zeros(1, np.int32))
    kept = first.copy()
    engine.step(state, np.array([7], np.int32), np.zeros(1, np.int32))
    np.testing.assert_array_equal(first, kept)


@each(*ALL)
@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([], "1 to 256 tokens, received 0"),
        ([0] * 257, "1 to 256 tokens, received 257"),
        ([0, 40], "from 0 to 39, received 40"),
    ],
)
def test_what_the_model_cannot_take_is_refused_by_all_alike(engine, token_ids, message):
    with pytest.raises(InputError, match=message):
        engine.start(token_ids, 1, 9)


@each(*ALL)
def test_a_step_of_an_earlier_generation_is_refused(engine):
    state = engine.start(source(5), 1, 9)
    engine.start(source(5), 1, 9)
    with pytest.raises(EngineError, match="runs one generation at a time"):
        engine.step(state, np.zeros(1, np.int32), np.zeros(1, np.int32))


def test_a_token_that_is_not_there_is_an_error_and_the_engine_goes_on(interpreter, compiled):
    state = interpreter.start(source(5), 2, 9)
    with pytest.raises(EngineError, match="ai-edge-litert failed to run the signature decode"):
        interpreter.step(state, np.array([0, 10**6], np.int32), np.arange(2, dtype=np.int32))
    assert_same(trace(interpreter, source(5), 2, 9), trace(compiled, source(5), 2, 9))


def test_a_damaged_file_cannot_be_opened(tmp_path, roomy_config, roomy_file):
    path = tmp_path / "damaged.tflite"
    path.write_bytes(roomy_file.read_bytes()[:1000])
    words = "ai-edge-litert cannot open .*damaged.tflite: "
    with pytest.raises(EngineError, match=words):
        open_interpreter(path, roomy_config, interpreter=LITERT)


@pytest.mark.skipif(
    TFLITE_RUNTIME in engine_choice.installed_versions(), reason="tflite-runtime is installed here"
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(roomy_file, roomy_config):
    with pytest.raises(MissingExtra, match=r"tflite-runtime.*\[legacy-runtime\]"):
        open_interpreter(roomy_file, roomy_config, interpreter=TFLITE_RUNTIME)


@pytest.mark.parametrize(
    ("length", "num_beams", "max_length", "encode", "decode"),
    [
        (1, 1, 2, "encode_8", "decode_8_2"),
        (8, 2, 20, "encode_8", "decode_8_2"),
        (9, 2, 20, "encode_32", "decode_32_2"),
        (8, 3, 2, "encode_8", "decode_8_4"),
        (32, 4, 20, "encode_32", "decode_32_4"),
    ],
)
def test_the_smallest_bucket_that_fits_is_taken(
    roomy_config, buckets, length, num_beams, max_length, encode, decode
):
    sizing = Buckets(roomy_config, buckets)
    assert sizing.encode(length).name == encode
    assert sizing.decode(1, length, num_beams, max_length).name == decode


@pytest.mark.parametrize(
    ("length", "num_beams", "max_length", "words"),
    [
        (33, 1, 2, "A source's number of tokens must be at most 32 in this static build, which "
         "supports 8, 32; received 33."),
        (3, 5, 2, "num_beams, or num_return_sequences, must be at most 4 in this static build, "
         "which supports 2, 4; received 5."),
        (3, 1, 21, "max_length must be at most 20 in this static build, which supports 20; "
         "received 21."),
    ],
)  # fmt: skip
def test_what_fits_in_no_bucket_is_refused(static, length, num_beams, max_length, words):
    with pytest.raises(InputError) as caught:
        static.start(source(length), num_beams, max_length)
    assert str(caught.value) == f"{words} A dynamic build accepts more."


@each("static", "static_interpreter")
@pytest.mark.parametrize("beams", [1, 2])
def test_a_static_build_runs_one_source_after_the_other(engine, compiled, beams):
    scripts = {
        seed: Script.random(seed, length, beams, 12) for seed, length in enumerate((30, 5, 9))
    }
    running = Running(engine.batch(beams))
    for name, script in scripts.items():
        running.admit(name, script)
        running.step(3)
        with pytest.raises(InputError, match="together must be at most 1 in this static build"):
            running.batch.admit([3], 9)
        running.step(9)
        running.release(name)
    assert_as_alone(compiled, running, scripts)


SEVERAL = StaticShapes((8, 32), TARGET, (1, 2), sources=(2, 4))


@pytest.fixture(scope="module")
def several_file(roomy_parameters, tmp_path_factory):
    from bart_export.convert import tflite

    path = tmp_path_factory.mktemp("roomy_sources") / "float32.static.tflite"
    tflite.write_float(roomy_parameters, path, SEVERAL)
    return path


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("interpreter_package", [None, LITERT])
def test_a_static_build_decodes_several_sources_in_buckets_for_them(
    several_file, roomy_config, compiled, beams, interpreter_package
):
    opened = several_file, roomy_config, contract.tflite_buckets(roomy_config, SEVERAL)
    if interpreter_package:
        engine = open_interpreter(*opened, num_threads=1, interpreter=interpreter_package)
    else:
        engine = open_compiled_model(*opened, num_threads=1)
    lengths = (5, 30, 7, 3, 9, 2, 20)
    scripts = {
        seed: Script.random(seed, length, beams, 3 + seed) for seed, length in enumerate(lengths)
    }
    waiting, running, buckets = list(scripts), Running(engine.batch(beams)), set()
    while waiting or running.slots:
        if waiting and len(running.slots) < 4:
            running.admit(waiting[0], scripts[waiting.pop(0)])
        elif waiting:
            with pytest.raises(InputError, match="must be at most 4 in this static build"):
                running.batch.admit([3], 9)
        running.step()
        buckets.add(running.batch.bucket.name)
        for name in running.ended():
            running.release(name)
    of_a_length = [f"decode_{length}_{beams}" for length in (8, 32)]
    assert {*of_a_length, *(f"{of_a_length[1]}_{count}" for count in (2, 4))} <= buckets
    assert_as_alone(compiled, running, scripts)


def test_the_scheduler_fills_the_buckets_of_a_static_build(several_file, roomy_config, compiled):
    opened = several_file, roomy_config, contract.tflite_buckets(roomy_config, SEVERAL)
    generation = GenerationConfig(max_length=TARGET, min_length=TARGET, decoder_start_token_id=2)
    found = []
    for engine in (open_compiled_model(*opened, num_threads=1), compiled):
        scheduler = Scheduler(engine)
        tasks = [scheduler.submit(Task(source(6, seed), generation)) for seed in range(9)]
        steps = 0
        while not all(task.ended for task in tasks):
            scheduler.step()
            steps += 1
        found.append(([task.hypotheses[0].token_ids for task in tasks], steps))
    assert found[0][0] == found[1][0]
    assert [steps // (TARGET - 1) for _, steps in found] == [3, 1]


def test_an_engine_of_one_bucket_knows_no_other(static):
    only = static.only(32, 2)
    assert [bucket.name for bucket in only.sizing.buckets] == ["encode_32", "decode_32_2"]
    only.start(source(3), 1, 2)
    assert only.running.bucket.name == "decode_32_2"
    with pytest.raises(InputError, match="which supports 2; received 3"):
        only.start(source(3), 3, 2)
