"""The scheduler: searches that share a batch find what each finds alone."""

import collections
import dataclasses
import itertools
import threading
import time
import weakref

import numpy as np
import pytest

from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError, EngineError, InputError
from bart_export.runtime.batch import Batch, StepLogits
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.drafts import PromptLookup
from bart_export.runtime.scheduler import Scheduler, Task
from bart_export.runtime.search import run, search

TOKENS = dict(decoder_start_token_id=2, bos_token_id=0, pad_token_id=1, eos_token_id=39)
# Of every kind of search; the random model seldom ends a sequence early.
SETTINGS = [
    GenerationConfig(**TOKENS, max_length=12),
    GenerationConfig(**TOKENS, max_length=40, no_repeat_ngram_size=2),
    GenerationConfig(**TOKENS, max_length=25, prompt_lookup_num_tokens=6),
    GenerationConfig(**TOKENS, max_length=20, do_sample=True, seed=7, top_k=0, temperature=2.0),
    GenerationConfig(**TOKENS, max_length=9, num_beams=3, early_stopping=True),
    GenerationConfig(**TOKENS, max_length=30, num_beams=3, length_penalty=2.0),
    GenerationConfig(**TOKENS, max_length=18, do_sample=True, seed=1, num_return_sequences=3),
    GenerationConfig(**TOKENS, max_length=2),
]


@pytest.fixture(scope="module")
def engine(roomy_file, roomy_config):
    return open_compiled_model(roomy_file, roomy_config, num_threads=1)


@pytest.fixture(scope="module")
def alone(engine):
    """Return a function that generates from one source as `drive` does, and remembers it."""
    found = {}

    def generate(source, generation):
        key = tuple(source), generation
        if key not in found:
            rows = max(generation.num_beams, generation.num_return_sequences)
            state = engine.start(source, rows, generation.max_length)
            found[key] = run(search(generation), engine.step, state)
        return outcome(found[key])

    return generate


def source(random):
    return random.integers(3, 40, random.integers(1, 60)).tolist()


def outcome(hypotheses):
    """Return what can be compared: the random model's tokens alone would hide small differences."""
    return [
        (hypothesis.token_ids, pytest.approx(hypothesis.score, abs=1e-4))
        for hypothesis in hypotheses
    ]


def finish(scheduler):
    while scheduler.waiting or scheduler.running:
        scheduler.step()


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_searches_in_random_order_find_what_each_finds_alone(engine, alone, slots, seed):
    random = np.random.default_rng(seed)
    scheduler = Scheduler(engine, slots)
    tasks, failing, left = [], [], []
    for _ in range(24):
        task = Task(source(random), SETTINGS[random.integers(len(SETTINGS))])
        if random.random() < 0.1:
            task.token_ids = [40]  # not in the vocabulary
            failing.append(task)
        elif random.random() < 0.2:
            left.append(task)
        else:
            tasks.append(task)
        scheduler.submit(task)
        for _ in range(random.integers(0, 6)):
            scheduler.step()
            assert len(scheduler.running) <= slots
        for task in left:
            if random.random() < 0.3:
                scheduler.cancel(task)
    scheduler.cancel(*left)
    finish(scheduler)
    for task in tasks:
        found = [(each.token_ids, each.score) for each in task.hypotheses]
        assert found == alone(task.token_ids, task.generation)
    assert all(isinstance(task.error, InputError) for task in failing)
    assert scheduler.batch is None or scheduler.batch.slots == []


def test_waiting_searches_take_free_slots_at_once(engine):
    scheduler = Scheduler(engine, 2)
    lengths = [5, 30, 5, 5, 5]
    tasks = [
        scheduler.submit(Task([5, 6], GenerationConfig(**TOKENS, min_length=each, max_length=each)))
        for each in lengths
    ]
    steps = 0
    while not all(task.ended for task in tasks):
        scheduler.step()
        steps += 1
    # One slot is busy for 29 steps; the other four take four steps each beside it.
    assert steps == 29


def test_other_numbers_of_beams_wait_for_their_turn(engine):
    scheduler = Scheduler(engine, 8)
    kinds = [1, 3, 1, 3, 3]
    tasks = [
        scheduler.submit(Task([5, 6], GenerationConfig(**TOKENS, num_beams=beams, max_length=8)))
        for beams in kinds
    ]
    order = []
    while len(order) < len(tasks):
        scheduler.step()
        order += [n for n, task in enumerate(tasks) if task.ended and n not in order]
        assert len({task.rows for task in scheduler.running}) <= 1
    assert order == [0, 1, 2, 3, 4]


def test_memory_bounds_how_many_run_together(engine):
    scheduler = Scheduler(engine, 8)
    one = Task([5] * 60, SETTINGS[1])
    scheduler.submit(one)
    scheduler.step()
    assert scheduler.source_limit([one]) == 8
    scheduler.memory_budget = 1
    assert scheduler.source_limit([one]) == 1
    scheduler.submit(Task([5] * 60, SETTINGS[1]))
    scheduler.step()
    assert len(scheduler.running) == 1
    finish(scheduler)


def test_a_restarted_search_gives_the_tokens_that_were_not_read(engine, alone):
    scheduler = Scheduler(engine, 4)
    random = np.random.default_rng(5)
    tasks = [
        scheduler.submit(Task(source(random), generation, streams=True))
        for generation in SETTINGS[:3]
    ]
    read = [[] for _ in tasks]
    for step in itertools.count():
        for task, tokens in zip(tasks, read, strict=True):
            tokens += task.take()
        if all(task.ended for task in tasks):
            break
        if step in (3, 4, 9):
            scheduler.restart()
        scheduler.step()
    for task, tokens in zip(tasks, read, strict=True):
        ((expected, _),) = alone(task.token_ids, task.generation)
        assert (2, *tokens) == expected


def test_threads_that_wait_step_for_each_other(engine, alone):
    scheduler = Scheduler(engine, 3)
    random = np.random.default_rng(6)
    tasks = [Task(source(random), SETTINGS[number % 2]) for number in range(12)]

    def work(task):
        scheduler.submit(task)
        scheduler.wait(lambda: bool(task.ended))

    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for task in tasks:
        found = [(each.token_ids, each.score) for each in task.hypotheses]
        assert found == alone(task.token_ids, task.generation)


def test_a_closed_scheduler_ends_its_tasks(roomy_file, roomy_config):
    scheduler = Scheduler(open_compiled_model(roomy_file, roomy_config, num_threads=1), 1)
    tasks = [scheduler.submit(Task([5, 6], SETTINGS[1])) for _ in range(2)]
    scheduler.step()
    scheduler.close()
    scheduler.close()
    assert all("was closed" in str(task.error) for task in tasks)
    with pytest.raises(EngineError, match="was closed"):
        scheduler.submit(Task([5, 6], SETTINGS[1]))


def test_a_task_refused_during_a_close_leaves_the_others_to_it(roomy_file, roomy_config):
    scheduler = Scheduler(open_compiled_model(roomy_file, roomy_config, num_threads=1), 1)
    task = scheduler.submit(Task([5, 6], SETTINGS[1]))
    scheduler.stepper = -1  # another thread, whose step `close` waits for
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while not scheduler.closing:
        time.sleep(0.001)
    with pytest.raises(EngineError, match="was closed"):
        scheduler.submit(Task([5, 6], SETTINGS[1]))
    with scheduler.lock:
        scheduler.stepper = None
        scheduler.changed.notify_all()
    closing.join(60)
    assert "was closed" in str(task.error)


def test_a_task_submitted_while_a_signal_handler_closes_is_refused(roomy_file, roomy_config):
    scheduler = Scheduler(open_compiled_model(roomy_file, roomy_config, num_threads=1), 1)

    class Interrupted(collections.deque):
        def append(self, task):
            scheduler.close()
            super().append(task)

    scheduler.waiting = Interrupted()
    with pytest.raises(EngineError, match="was closed"):
        scheduler.submit(Task([5, 6], SETTINGS[1]))
    assert not scheduler.waiting


@pytest.mark.parametrize("sizes", [(0, 1), (1025, 1), (1, 0), (True, 1), (1, 1.5)])
def test_sizes_out_of_range_are_refused(engine, sizes):
    with pytest.raises(ConfigurationError, match=r"(max_batch_size|memory_budget) must be an int"):
        Scheduler(engine, *sizes)


@pytest.mark.parametrize("generation", SETTINGS)
def test_a_finished_search_keeps_no_logits(engine, generation, monkeypatch):
    computed, get = [], StepLogits.__getitem__

    def observed(step, slot):
        logits = get(step, slot)
        computed.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(StepLogits, "__getitem__", observed)
    scheduler = Scheduler(engine, 2)
    tasks = [scheduler.submit(Task([3, 4, 5], generation)) for _ in range(3)]
    finish(scheduler)
    assert all(task.hypotheses for task in tasks)
    assert computed
    assert [logits() for logits in computed if logits() is not None] == []
    assert scheduler.finished == len(tasks)
    assert scheduler.tokens == sum(len(task.hypotheses[0].token_ids) - 1 for task in tasks)


def test_a_burst_of_sources_resizes_the_decoder_once(engine, monkeypatch):
    resized = []
    backend = engine.backend
    resize = backend.resize

    def count(decode, kept):
        resized.append(decode.sizes["sources"])
        resize(decode, kept)

    monkeypatch.setattr(backend, "resize", count)
    scheduler = Scheduler(engine)
    tasks = [scheduler.submit(Task([5] * 20, SETTINGS[0])) for _ in range(8)]
    finish(scheduler)
    assert resized == [8]
    assert all(task.hypotheses for task in tasks)


def test_another_source_does_not_cut_off_accepted_drafts(engine, alone, monkeypatch):
    generation = SETTINGS[1]
    source_ids = list(range(5, 30))
    ((expected, score),) = alone(source_ids, generation)

    def draft(lookup):
        at = len(lookup.generated) + 1
        return expected[at : at + 8] if at > 11 else ()

    monkeypatch.setattr(PromptLookup, "draft", draft)
    drafted = dataclasses.replace(generation, prompt_lookup_num_tokens=8)
    scheduler = Scheduler(engine)
    task = scheduler.submit(Task(source_ids, drafted, streams=True))
    while len(task.tokens) < 16 and not task.ended:  # the positions of the first size of the caches
        scheduler.step()
    scheduler.submit(Task([5, 6], SETTINGS[0]))
    finish(scheduler)
    (found,) = task.hypotheses
    assert (found.token_ids, found.score) == (expected, score)


def test_a_restarted_sample_without_a_seed_draws_the_same_tokens(engine):
    generation = GenerationConfig(**TOKENS, max_length=20, do_sample=True, top_k=0, temperature=3.0)
    scheduler = Scheduler(engine)
    task = scheduler.submit(Task([5, 6], generation, streams=True))
    for _ in range(8):
        scheduler.step()
    read = task.take()
    scheduler.restart()
    finish(scheduler)
    assert (2, *read, *task.tokens) == task.hypotheses[0].token_ids
    again = Scheduler(engine)
    other = again.submit(Task([5, 6], generation))
    finish(again)
    assert other.hypotheses[0].token_ids != task.hypotheses[0].token_ids


def test_sources_that_do_not_fit_together_are_tried_with_fewer(engine, alone, monkeypatch):
    backend = engine.backend
    resize = backend.resize

    def fail(decode, kept):
        if decode.sizes["sources"] > 2:
            raise EngineError("no memory")
        resize(decode, kept)

    monkeypatch.setattr(backend, "resize", fail)
    scheduler = Scheduler(engine)
    random = np.random.default_rng(8)
    tasks = [scheduler.submit(Task(source(random), SETTINGS[0])) for _ in range(8)]
    finish(scheduler)
    assert scheduler.row_limit == 2
    for task in tasks:
        found = [(each.token_ids, each.score) for each in task.hypotheses]
        assert found == alone(task.token_ids, task.generation)


def test_a_bug_in_a_step_ends_only_the_search_that_causes_it(engine, alone, monkeypatch):
    step = Batch.step

    def fail(self, requests):
        if any(slot.source_length == 9 for slot in requests):
            raise ZeroDivisionError("a bug")
        return step(self, requests)

    monkeypatch.setattr(Batch, "step", fail)
    scheduler = Scheduler(engine)
    good = [scheduler.submit(Task([5, 6, number], SETTINGS[0])) for number in range(3, 8)]
    bad = scheduler.submit(Task([7] * 9, SETTINGS[0]))
    finish(scheduler)
    assert isinstance(bad.error, ZeroDivisionError)
    for task in good:
        found = [(each.token_ids, each.score) for each in task.hypotheses]
        assert found == alone(task.token_ids, task.generation)
