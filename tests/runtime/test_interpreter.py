"""The engine over `Interpreter` computes what the one over `CompiledModel` does, LiteRT's own."""

import numpy as np
import pytest

from bart_export.errors import EngineError, InputError, MissingExtra
from bart_export.runtime import engines
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.interpreter import open_interpreter

LITERT, TFLITE_RUNTIME = engines.LITERT, engines.TFLITE_RUNTIME


@pytest.fixture(scope="module")
def engine(roomy_file, roomy_config):
    return open_interpreter(roomy_file, roomy_config, num_threads=1, interpreter=LITERT)


@pytest.fixture(scope="module")
def compiled(roomy_file, roomy_config):
    return open_compiled_model(roomy_file, roomy_config, num_threads=1)


def source(length, seed=0):
    return np.random.default_rng(seed).integers(0, 40, length).tolist()


def moves(beams, steps, seed=0):
    """Return tokens and beam indices for every step; in every third the beams stay in place."""
    random = np.random.default_rng(seed)
    for step in range(steps):
        stay = np.arange(beams) if step % 3 == 1 else random.integers(0, beams, beams)
        yield random.integers(0, 40, beams).astype(np.int32), stay.astype(np.int32)


def trace(engine, token_ids, beams, steps, max_length=None):
    """Return the logits of every step, (steps, beams, vocabulary)."""
    state = engine.start(token_ids, beams, max_length or steps)
    rows = []
    for tokens, beam_index in moves(beams, steps):
        logits, state = engine.step(state, tokens, beam_index)
        rows.append(logits)
    return np.stack(rows)


def assert_same(logits, expected):
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_reordered_beams_give_the_logits_of_the_compiled_model(engine, compiled):
    assert_same(trace(engine, source(7), 3, 20), trace(compiled, source(7), 3, 20))


def test_a_source_leaves_nothing_behind_for_the_next(engine, compiled):
    # Longer, shorter, with more beams, with fewer, and twice the same shapes.
    for seed, (length, beams, steps) in enumerate(
        [(3, 1, 4), (11, 1, 9), (11, 4, 9), (2, 2, 30), (2, 2, 30), (1, 1, 1)]
    ):
        token_ids = source(length, seed)
        assert_same(
            trace(engine, token_ids, beams, steps), trace(compiled, token_ids, beams, steps)
        )


def test_growing_caches_keep_every_position(engine, compiled):
    # From 64 positions over 128 to all 256 of the model.
    assert_same(trace(engine, source(5), 2, 256), trace(compiled, source(5), 2, 256))


def test_room_for_more_positions_changes_no_logits(engine):
    assert_same(trace(engine, source(5), 2, 9, max_length=64), trace(engine, source(5), 2, 9))


def test_logits_are_the_callers_to_change(engine):
    state = engine.start(source(5), 1, 3)
    first, state = engine.step(state, np.array([2], np.int32), np.zeros(1, np.int32))
    kept = first.copy()
    engine.step(state, np.array([7], np.int32), np.zeros(1, np.int32))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("token_ids", "max_length", "message"),
    [
        ([], 9, "1 to 256 tokens, received 0"),
        ([0] * 257, 9, "1 to 256 tokens, received 257"),
        ([0, 40], 9, "in 0 to 39, received 40"),
        ([0, 1], 257, "at most the model's 256 positions, received 257"),
    ],
)
def test_what_the_model_cannot_take_is_refused_by_both_engines_alike(
    engine, compiled, token_ids, max_length, message
):
    for either in (engine, compiled):
        with pytest.raises(InputError, match=message):
            either.start(token_ids, 1, max_length)


def test_a_generation_ends_where_another_begins(engine):
    state = engine.start(source(5), 1, 9)
    engine.start(source(5), 1, 9)
    with pytest.raises(EngineError, match="runs one generation at a time"):
        engine.step(state, np.zeros(1, np.int32), np.zeros(1, np.int32))


def test_a_beam_that_is_not_there_is_an_error_and_the_engine_goes_on(engine, compiled):
    state = engine.start(source(5), 2, 9)
    with pytest.raises(EngineError, match="ai-edge-litert failed to run the signature decode"):
        engine.step(state, np.zeros(2, np.int32), np.array([0, 2], np.int32))
    assert_same(trace(engine, source(5), 2, 9), trace(compiled, source(5), 2, 9))


def test_a_damaged_file_cannot_be_opened(tmp_path, roomy_config, roomy_file):
    path = tmp_path / "damaged.tflite"
    path.write_bytes(roomy_file.read_bytes()[:1000])
    with pytest.raises(
        EngineError, match="ai-edge-litert cannot open .*damaged.tflite: "
    ) as caught:
        open_interpreter(path, roomy_config, interpreter=LITERT)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    TFLITE_RUNTIME in engines.installed_versions(), reason="tflite-runtime is installed here"
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(roomy_file, roomy_config):
    with pytest.raises(MissingExtra, match=r"tflite-runtime.*\[legacy-runtime\]"):
        open_interpreter(roomy_file, roomy_config, interpreter=TFLITE_RUNTIME)
