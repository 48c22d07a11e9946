"""Sources that are decoded together get the logits that each gets alone."""

import numpy as np
import pytest
from support.scripts import Running, Script, alone, assert_as_alone

from bart_export.errors import InputError
from bart_export.recipes.table import LITERT
from bart_export.runtime.batch import Slot
from bart_export.runtime.caches import copy_rows
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.engine import Decoding
from bart_export.runtime.interpreter import open_interpreter


@pytest.fixture(scope="module", params=["compiled", "interpreter"])
def engine(request, roomy_file, roomy_config):
    if request.param == "compiled":
        return open_compiled_model(roomy_file, roomy_config, num_threads=1)
    return open_interpreter(roomy_file, roomy_config, num_threads=1, interpreter=LITERT)


@pytest.mark.parametrize("beams", [1, 3])
def test_sources_come_and_go_each_at_its_own_position(engine, beams):
    lengths, steps = (5, 30, 9, 2, 40, 17, 6, 1), (20, 4, 40, 9, 33, 3, 18, 1)
    scripts = {
        seed: Script.random(seed, length, beams, count)
        for seed, (length, count) in enumerate(zip(lengths, steps, strict=True))
    }
    running, waiting, used = Running(engine.batch(beams)), dict(scripts), []
    positions = []
    while waiting or running.slots:
        if waiting and len(running.slots) < 3:
            name = next(iter(waiting))
            used.append(running.admit(name, waiting.pop(name)).index)
        running.step()
        positions.append({slot.position for slot, _ in running.slots.values()})
        for name in running.ended():
            running.release(name)
    assert max(used) == 2 and len(used) == 8  # slots are reused
    assert any(len(several) == 3 for several in positions)
    assert_as_alone(engine, running, scripts)


@pytest.mark.parametrize("beams", [1, 2])
def test_growth_keeps_what_runs(engine, beams):
    first = Script.random(0, 4, beams, 40)
    longer, third = Script.random(1, 50, beams, 40), Script.random(2, 7, beams, 40)
    running = Running(engine.batch(beams))

    def sizes():
        axes = ("sources", "source", "rows", "capacity")
        return tuple(running.batch.sizes[axis] for axis in axes)

    running.admit("first", first)
    running.step(3)
    assert sizes() == (1, 4, beams, 16)
    running.admit("longer", longer)  # more sources, and a longer one
    running.step(2)
    assert sizes() == (2, 64, 2 * beams, 16)
    running.batch.reserve(4, 4, 1)
    running.admit("third", third)
    running.step(2)
    assert sizes() == (4, 64, 4 * beams, 16)
    running.step(23)  # the first is beyond 16 positions before the third
    assert sizes() == (3, 64, 3 * beams, 32)
    running.step(8)
    assert sizes() == (3, 64, 3 * beams, 48)
    assert_as_alone(engine, running, {"first": first, "longer": longer, "third": third})


@pytest.mark.parametrize("beams", [1, 3])
def test_a_smaller_batch_keeps_the_sources_that_run_in_its_last_slots(engine, beams):
    scripts = {seed: Script.random(seed, 3 + 8 * (seed % 4), beams, 40) for seed in range(6)}
    running = Running(engine.batch(beams))
    for name, script in scripts.items():
        running.admit(name, script)
        running.step(2)
    for name in (0, 1, 2, 4):
        running.release(name)
    running.step(2)
    assert [slot.index for slot, _ in running.slots.values()] == [0, 1]
    assert running.batch.sizes["sources"] == 2
    running.step(6)
    assert_as_alone(engine, running, scripts)


@pytest.mark.parametrize("beams", [1, 3])
def test_sources_move_to_the_first_slots_when_caches_grow(engine, beams):
    scripts = {seed: Script.random(seed, 20 + seed, beams, 20) for seed in range(4)}
    running = Running(engine.batch(beams))
    for name, script in scripts.items():
        running.admit(name, script)
    running.step(16)
    running.release(1)
    running.batch.reserve(4, 5, 17)
    assert [running.slots[name][0].index for name in (0, 2, 3)] == [0, 1, 2]
    assert (running.batch.sizes["sources"], running.batch.sizes["capacity"]) == (4, 32)
    running.step(1)
    scripts["last"] = Script.random(9, 5, beams, 3)
    assert running.admit("last", scripts["last"]).index == 3
    running.step(3)
    assert_as_alone(engine, running, scripts)


def test_a_batch_that_loses_one_of_three_sources_stays_as_it_is(engine):
    running = Running(engine.batch(1))
    for seed in range(3):
        running.admit(seed, Script.random(seed, 5, 1, 9))
    running.release(0)
    running.step()
    assert [slot.index for slot in running.batch.slots] == [1, 2]
    assert running.batch.sizes["sources"] == 3


@pytest.mark.parametrize("beams", [1, 3])
def test_a_slot_is_as_good_as_new_after_a_longer_source(engine, beams):
    companion, longer = (Script.random(seed, 60, beams, 16) for seed in (0, 1))
    script = Script.random(2, 5, beams, 8)
    found = []
    for before in (longer, None):
        running = Running(engine.batch(beams))
        running.admit("companion", companion)
        running.batch.reserve(2, 60, 1)
        if before is not None:
            assert running.admit("longer", before).index == 1
            running.step(8)
            running.release("longer")
        assert running.admit("script", script).index == 1
        running.step(8)
        found.append(np.stack(running.logits["script"]))
    np.testing.assert_array_equal(*found)


def test_a_new_batch_has_nothing_of_the_one_before(engine):
    script = Script.random(3, 6, 2, 12)
    expected = alone(engine, script)
    for sources, length, beams in ((4, 90, 4), (4, 6, 2), (1, 6, 2), (2, 6, 1)):
        running = Running(engine.batch(beams))
        for seed in range(sources):
            running.admit(seed, Script.random(seed, length, beams, 20))
        running.step(20)
        np.testing.assert_array_equal(alone(engine, script), expected)


def test_a_source_may_use_fewer_beams_than_its_batch_has(engine):
    scripts = {1: Script.random(1, 9, 1, 12), 2: Script.random(2, 5, 2, 12)}
    running = Running(engine.batch(3))
    for name, script in scripts.items():
        running.admit(name, script)
        running.step(3)
    running.step(4)
    assert_as_alone(engine, running, scripts)


def test_a_source_that_is_refused_leaves_the_others_running(engine):
    script = Script.random(0, 5, 2, 12)
    running = Running(engine.batch(2))
    running.admit("script", script)
    running.step(2)
    for source, length in (([], 9), ([40], 9), ([3] * 257, 9), ([3], 257)):
        with pytest.raises(InputError):
            running.batch.admit(source, length)
    with pytest.raises(InputError, match="decoded together must be at most 1024 with this file"):
        running.batch.reserve(1025, 5, 1)
    running.step(6)
    assert_as_alone(engine, running, {"script": script})


@pytest.mark.parametrize("rejected", [0, 1, 3])
def test_drafted_tokens_get_the_logits_of_single_steps(engine, rejected):
    script = Script.random(0, 9, 1, 60)
    expected = alone(engine, script)[:, 0]
    random = np.random.default_rng(1)
    state, position = engine.start(script.source, 1, len(script)), 0
    while position < len(script):
        right = script.tokens[position:, 0][: random.integers(1, 7)].tolist()
        wrong = random.integers(0, 40, rejected).tolist()
        draft = [*right[1:], *wrong][: len(script) - position - 1]
        logits, _ = engine.step(
            Decoding(state.slot, position),
            np.array(right[:1], np.int32),
            np.zeros(1, np.int32),
            tuple(draft),
        )
        known = expected[position : position + len(right)]
        np.testing.assert_allclose(logits[: len(known)], known, rtol=0, atol=1e-4)
        position += len(right)


@pytest.mark.parametrize(
    ("rows", "beam_index", "copied", "then"),
    [
        ([0, 1, 2], [0, 1, 2], [], [0, 1, 2]),
        ([0, 1, 2], [2, 0, 1], [], [2, 0, 1]),
        ([0, 1, 2], [1, 1, 0], [(2, 1)], [1, 2, 0]),
        ([2, 0, 1], [0, 0, 0], [(1, 2), (0, 2)], [2, 1, 0]),
        ([1, 2, 0], [2, 2], [(2, 0)], [0, 2, 1]),
    ],
)
def test_only_beams_that_ended_are_overwritten(rows, beam_index, copied, then):
    slot = Slot(0, 1, rows)
    assert [(each.row, each.parent) for each in slot.reorder(beam_index)] == copied
    assert slot.rows == then


@pytest.mark.parametrize("beams", [2, 3, 4])
def test_rows_are_copied_from_where_they_differ(beams):
    random, length = np.random.default_rng(beams), 40
    slot = Slot(0, 1, [0, 1, 2, 3])
    cache = np.zeros((4, 1, length, 1), np.float32)
    expected = np.zeros((beams, length), np.float32)
    copied, whole = 0, 0  # positions
    for position in range(length):
        slot.position = position
        beam_index = random.integers(0, beams, beams)
        copies = slot.reorder(beam_index.tolist())
        copy_rows([cache], copies)
        copied += sum(each.end - each.begin for each in copies)
        whole += position * len(copies)
        entries = random.random(beams)
        expected = expected[beam_index]
        expected[:, position] = entries
        cache[slot.rows[:beams], 0, position, 0] = entries
        np.testing.assert_array_equal(cache[slot.rows[:beams], 0, :, 0], expected)
    assert copied < whole / 2
