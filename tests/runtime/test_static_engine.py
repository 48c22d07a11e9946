"""A static build says what the dynamic one says, whichever bucket and runtime it runs in."""

import numpy as np
import pytest

from bart_export import contract
from bart_export.config import GenerationConfig
from bart_export.errors import EngineError, InputError
from bart_export.recipes.table import LITERT
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.interpreter import open_interpreter
from bart_export.runtime.search import run, search

SOURCES, TARGET, BEAMS = (8, 32), 20, (2, 4)


@pytest.fixture(scope="module")
def buckets(roomy_config):
    return contract.static_buckets(roomy_config, SOURCES, TARGET, BEAMS)


@pytest.fixture(scope="module")
def path(roomy_parameters, tmp_path_factory):
    from bart_export.contract import StaticShapes
    from bart_export.convert import tflite

    path = tmp_path_factory.mktemp("roomy_static") / "float32.static.tflite"
    tflite.write_float(roomy_parameters, path, StaticShapes(SOURCES, TARGET, BEAMS))
    return path


@pytest.fixture(scope="module")
def compiled(path, roomy_config, buckets):
    return open_compiled_model(path, roomy_config, buckets, num_threads=1)


@pytest.fixture(scope="module", params=["compiled", "interpreter"])
def engine(request, path, roomy_config, buckets):
    if request.param == "compiled":
        return request.getfixturevalue("compiled")
    return open_interpreter(path, roomy_config, buckets, num_threads=1, interpreter=LITERT)


@pytest.fixture(scope="module")
def dynamic(roomy_file, roomy_config):
    return open_compiled_model(roomy_file, roomy_config, num_threads=1)


def source_of(length):
    return np.random.default_rng(length).integers(3, 40, length).tolist()


@pytest.mark.parametrize("num_beams", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 32])
def test_the_tokens_are_those_of_the_dynamic_build(engine, dynamic, length, num_beams):
    generation = GenerationConfig(
        num_beams=num_beams, max_length=TARGET, min_length=TARGET, decoder_start_token_id=2
    )
    best = [
        run(search(generation), one.step, one.start(source_of(length), num_beams, TARGET))[0]
        for one in (engine, dynamic)
    ]
    assert len(best[0].token_ids) == TARGET
    assert best[0].token_ids == best[1].token_ids
    assert best[0].score == pytest.approx(best[1].score, abs=1e-4)


def test_rows_are_as_many_as_were_asked_for_and_caches_follow_their_beams(engine, dynamic):
    random = np.random.default_rng(0)
    states = [one.start(source_of(5), 3, TARGET) for one in (engine, dynamic)]
    for _ in range(TARGET):
        token_ids = random.integers(3, 40, 3).astype(np.int32)
        beam_index = random.integers(0, 3, 3).astype(np.int32)
        steps = [
            one.step(state, token_ids, beam_index)
            for one, state in zip((engine, dynamic), states, strict=True)
        ]
        logits, states = zip(*steps, strict=True)
        assert logits[0].shape == (3, 40)
        np.testing.assert_allclose(*logits, rtol=0, atol=1e-4)


def test_a_bucket_begins_with_empty_caches_each_time(engine):
    generation = GenerationConfig(num_beams=2, max_length=12, min_length=12)

    def generate(length):
        return run(search(generation), engine.step, engine.start(source_of(length), 2, 12))[0]

    first = generate(6)
    generate(8)
    generate(20)
    assert generate(6) == first


def test_an_engine_of_one_bucket_knows_no_other(compiled):
    one = compiled.only(32, 2)
    assert [bucket.name for bucket in one.sizing.buckets] == ["encode_32", "decode_32_2"]
    assert one.start(source_of(3), 1, 2).fitted.decode.name == "decode_32_2"
    with pytest.raises(InputError, match="which was made for 2, received 3"):
        one.start(source_of(3), 3, 2)


def test_a_step_of_an_earlier_generation_is_refused(engine):
    state = engine.start(source_of(3), 1, 4)
    engine.start(source_of(3), 1, 4)
    with pytest.raises(EngineError, match="one generation at a time"):
        engine.step(state, np.array([2], np.int32), np.zeros(1, np.int32))
