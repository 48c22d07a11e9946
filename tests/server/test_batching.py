"""The queues in front of a model: which calls run together, when, and what the others are told."""

import threading
import time

import numpy as np
import pytest

from bart_export.server.batching import BatchScheduler, Parameters
from bart_export.server.merging import joined_outputs
from bart_export.server.servable import Limits
from bart_export.server.status import Code, StatusError

LONG = 60_000_000  # microseconds


class Doubling:
    """A model of one input and one output that notes what it is asked and waits when told to.

    A run whose first input is negative waits until `go` is set; `running` is released by each.
    """

    def __init__(self):
        self.runs = []
        self.go = threading.Event()
        self.running = threading.Semaphore(0)

    def __call__(self, signature, outputs, inputs, seconds):
        x = inputs["x"]
        self.runs.append((signature, x.tolist(), seconds))
        if x.size and x.flat[0] < 0:
            self.running.release()
            assert self.go.wait(60)
        return {name: x * 2 for name in outputs}

    @property
    def batches(self):
        """Return the inputs of every run."""
        return [x for _, x, _ in self.runs]


@pytest.fixture
def model():
    return Doubling()


def join(parts):
    return joined_outputs(parts, {})


@pytest.fixture
def scheduled(model):
    """Return a function that makes a scheduler, on one thread unless told otherwise."""
    schedulers = []

    def schedule(run=model, num_threads=1, queue_size=1000, **fields):
        parameters = Parameters(**fields)
        schedulers.append(BatchScheduler(run, join, parameters, num_threads, queue_size))
        return schedulers[-1]

    yield schedule
    model.go.set()
    for scheduler in schedulers:
        scheduler.close()


def submit(scheduler, *x, signature="s", outputs=("y",), limits=None, dtype=np.float32):
    inputs = {"x": np.array(x, dtype)}
    return scheduler.submit(signature, outputs, inputs, limits or Limits())


def keep_busy(scheduler, model):
    """Occupy one thread until `model.go` is set, and return the future of the call."""
    future = submit(scheduler, -1, signature="busy")
    assert model.running.acquire(timeout=60)
    return future


def answers(*futures):
    return [future.result(60)["y"].tolist() for future in futures]


def error_of(future):
    error = future.exception(60)
    assert isinstance(error, StatusError)
    return error.code, error.message


SPLIT = {"enable_large_batch_splitting": True, "max_batch_size": 10, "max_execution_batch_size": 3}

# Parameters, the calls that wait at the same time, and the batches that they run in.
BATCHES = {
    "together": ({}, [[1], [2, 3], [], [4]], [[1, 2, 3, 4]]),
    "closed by a call that it has no room for": (
        {"max_batch_size": 4}, [[0, 1, 2], [0, 1], [0, 1], [0]], [[0, 1, 2], [0, 1, 0, 1], [0]]
    ),
    "filled up to an allowed size": (
        {"max_batch_size": 8, "allowed_batch_sizes": (2, 4, 8)},
        [[1, 2], [3, 4, 5]], [[1, 2, 3, 4, 5, 3, 3, 3]],
    ),
    "nothing to fill up with": ({"max_batch_size": 2, "allowed_batch_sizes": (2,)}, [[]], [[]]),
    "a large call split": (
        SPLIT, [[0], [1, 2, 3, 4, 5, 6, 7]], [[0, 1, 2], [3, 4, 5], [6, 7]]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BATCHES)
def test_calls_that_wait_at_the_same_time_run_in_batches(scheduled, model, case):
    parameters, calls, batches = BATCHES[case]
    scheduler = scheduled(**parameters)
    busy = keep_busy(scheduler, model)
    waiting = [submit(scheduler, *x) for x in calls]
    model.go.set()
    assert answers(busy, *waiting) == [[-2], *[[2 * each for each in x] for x in calls]]
    assert model.batches[1:] == batches


def test_only_calls_of_the_same_signature_outputs_and_dtypes_are_merged(scheduled, model):
    scheduler = scheduled()
    keep_busy(scheduler, model)
    futures = [
        submit(scheduler, 1),
        submit(scheduler, 2, signature="other"),
        submit(scheduler, 3, outputs=("y", "z")),
        submit(scheduler, 4, dtype=np.int32),
        submit(scheduler, 5, outputs=("z", "y")),
        submit(scheduler, 6),
    ]
    model.go.set()
    assert answers(*futures) == [[2], [4], [6], [8], [10], [12]]
    assert model.batches[1:] == [[1, 6], [2], [3, 5], [4]]


def test_signatures_take_turns(scheduled, model):
    scheduler = scheduled(max_batch_size=1)
    keep_busy(scheduler, model)
    calls = [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b")]
    futures = [submit(scheduler, x, signature=signature) for x, signature in calls]
    model.go.set()
    answers(*futures)
    assert model.batches[1:] == [[1], [4], [2], [5], [3]]


def test_threads_run_side_by_side(scheduled, model):
    scheduler = scheduled(num_batch_threads=2)
    first, second = keep_busy(scheduler, model), keep_busy(scheduler, model)
    assert not first.done()
    assert not second.done()
    waiting = submit(scheduler, 1)
    model.go.set()
    assert answers(first, second, waiting) == [[-2], [-2], [2]]


def test_a_batch_that_is_not_full_waits_for_more(scheduled, model):
    scheduler = scheduled(max_batch_size=4, batch_timeout_micros=LONG)
    first = submit(scheduler, 1, 2)
    with pytest.raises(TimeoutError):
        first.result(0.05)
    assert answers(submit(scheduler, 3, 4), first) == [[6, 8], [2, 4]]
    assert model.batches == [[1, 2, 3, 4]]


def test_a_batch_that_others_wait_behind_waits_no_more(scheduled, model):
    scheduler = scheduled(max_batch_size=4, batch_timeout_micros=LONG)
    first, second = submit(scheduler, 1, 2, 3), submit(scheduler, 4, 5)
    assert answers(first) == [[2, 4, 6]]
    assert not second.done()


def test_a_batch_waits_no_longer_than_it_may(scheduled, model):
    scheduler = scheduled(max_batch_size=4, batch_timeout_micros=50_000)
    began = time.monotonic()
    assert answers(submit(scheduler, 1)) == [[2]]
    assert time.monotonic() - began >= 0.05


def test_closing_runs_what_waits(scheduled, model):
    scheduler = scheduled(batch_timeout_micros=LONG)
    waiting = submit(scheduler, 1)
    scheduler.close()
    assert answers(waiting) == [[2]]


FULL = "The batch scheduling queue to which this task was submitted is full"


def test_no_more_batches_wait_than_may(scheduled, model):
    scheduler = scheduled(max_batch_size=2, max_enqueued_batches=2)
    keep_busy(scheduler, model)
    waiting = [submit(scheduler, 1, 2), submit(scheduler, 3)]
    with pytest.raises(StatusError) as refused:
        submit(scheduler, 5, 6)
    assert (refused.value.code, refused.value.message) == (
        Code.UNAVAILABLE,
        f"{FULL}; currently 2 batches enqueued and max_enqueued_batches is 2",
    )
    waiting.append(submit(scheduler, 4))  # the last batch still has room for one row
    other = submit(scheduler, 9, signature="other")  # each signature has its own bound
    model.go.set()
    assert answers(*waiting, other) == [[2, 4], [6], [8], [18]]
    assert answers(submit(scheduler, 5, 6)) == [[10, 12]]


def test_no_more_calls_wait_than_may_beside_those_that_a_thread_is_free_for(scheduled, model):
    scheduler = scheduled(queue_size=1)
    keep_busy(scheduler, model)
    waiting = submit(scheduler, 1)
    with pytest.raises(StatusError) as refused:
        submit(scheduler, 3)
    assert (refused.value.code, refused.value.message) == (Code.UNAVAILABLE, FULL)
    model.go.set()
    assert answers(waiting) == [[2]]
    for x in range(100):
        assert answers(submit(scheduler, x), submit(scheduler, x)) == [[2 * x]] * 2


def test_a_split_call_needs_room_for_all_of_its_parts(scheduled, model):
    scheduler = scheduled(**SPLIT, max_enqueued_batches=2)
    keep_busy(scheduler, model)
    small = submit(scheduler, 0)
    with pytest.raises(StatusError, match=FULL):
        submit(scheduler, *range(6))
    large = submit(scheduler, *range(5))
    model.go.set()
    assert answers(small, large) == [[0], [0, 2, 4, 6, 8]]


def test_a_split_call_fails_as_its_part_does(scheduled):
    def run(signature, outputs, inputs, seconds):
        if 4 in inputs["x"]:
            raise StatusError(Code.INVALID_ARGUMENT, "no 4s")
        return {"y": inputs["x"]}

    scheduler = scheduled(run, **SPLIT)
    assert error_of(submit(scheduler, *range(7))) == (Code.INVALID_ARGUMENT, "no 4s")
    assert answers(submit(scheduler, 1)) == [[1]]


def test_calls_whose_time_is_over_or_that_nobody_waits_for_are_left_out(scheduled, model):
    scheduler = scheduled()
    keep_busy(scheduler, model)
    stopped = Limits()
    futures = [
        submit(scheduler, 1, limits=Limits(deadline=time.monotonic())),
        submit(scheduler, 2),
        submit(scheduler, 3, limits=stopped),
        submit(scheduler, 4),
    ]
    futures[3].cancel()
    stopped.stop.set()
    model.go.set()
    assert error_of(futures[0]) == (
        Code.RESOURCE_EXHAUSTED,
        "Run() timeout exceeded while waiting in batching queue",
    )
    assert answers(futures[1]) == [[4]]
    assert error_of(futures[2])[0] is Code.CANCELLED
    late = submit(scheduler, 5, limits=Limits(deadline=time.monotonic()))
    assert error_of(late)[0] is Code.RESOURCE_EXHAUSTED
    scheduler.close()
    assert model.batches[1:] == [[2]]


@pytest.mark.parametrize(
    ("allowed", "expected"), [((5000, 9000, 7000), 9000), ((5000, None), None)]
)
def test_a_batch_has_the_time_of_its_longest_call(scheduled, model, allowed, expected):
    scheduler = scheduled()
    keep_busy(scheduler, model)
    now = time.monotonic()
    futures = [
        submit(scheduler, 1, limits=Limits(deadline=None if each is None else now + each))
        for each in allowed
    ]
    model.go.set()
    answers(*futures)
    seconds = model.runs[-1][2]
    assert seconds == expected if expected is None else expected - 1000 < seconds <= expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StatusError(Code.INTERNAL, "It broke"), (StatusError, "It broke")),
        (ZeroDivisionError("what"), (ZeroDivisionError, "what")),
    ],
)
def test_a_failing_run_fails_its_calls_and_no_others(scheduled, model, error, expected):
    def run(signature, outputs, inputs, seconds):
        if signature == "failing":
            raise error
        return model(signature, outputs, inputs, seconds)

    scheduler = scheduled(run)
    keep_busy(scheduler, model)
    failing = [submit(scheduler, 1, signature="failing") for _ in range(2)]
    well = submit(scheduler, 1)
    model.go.set()
    for future in failing:
        failure = future.exception(60)
        assert (type(failure), str(failure)) == expected
    assert answers(well) == [[2]]


def test_an_invalid_call_does_not_fail_its_neighbours(scheduled, model):
    def run(signature, outputs, inputs, seconds):
        answer = model(signature, outputs, inputs, seconds)
        if 4 in inputs["x"]:
            raise StatusError(Code.INVALID_ARGUMENT, "no 4s")
        return answer

    scheduler = scheduled(run)
    keep_busy(scheduler, model)
    well, invalid, also_well = [submit(scheduler, *x) for x in ([1, 2], [4], [3])]
    model.go.set()
    assert answers(well, also_well) == [[2, 4], [6]]
    assert error_of(invalid) == (Code.INVALID_ARGUMENT, "no 4s")
    assert model.batches[1:] == [[1, 2, 4, 3], [1, 2], [4], [3]]


def test_shorter_calls_are_padded_with_their_own_first_element(scheduled, model):
    scheduler = scheduled(pad_variable_length_inputs=True)
    keep_busy(scheduler, model)
    futures = [submit(scheduler, [1, 2], [9, 8]), submit(scheduler, [3, 4, 5])]
    model.go.set()
    assert answers(*futures) == [[[2, 4, 2], [18, 16, 2]], [[6, 8, 10]]]


def test_many_clients_get_their_own_answers(scheduled):
    def run(signature, outputs, inputs, seconds):
        return {"y": inputs["x"] * 2}

    scheduler = scheduled(run, 3, max_enqueued_batches=99, batch_timeout_micros=100, **SPLIT)
    wrong = []

    def client(seed):
        random = np.random.default_rng(seed)
        for _ in range(50):
            x = random.integers(0, 1000, random.integers(1, 10)).tolist()
            if answers(submit(scheduler, *x)) != [[2 * each for each in x]]:
                wrong.append(x)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert wrong == []
