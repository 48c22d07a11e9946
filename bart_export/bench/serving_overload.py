"""A server that is asked for more than it can do: what it answers, how late, and its memory.

First the clients find out how much the server can answer, and what it answers when it has time;
then requests come at twice that rate, whatever becomes of them.
"""

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from bart_export.bench.serving import FRONTS, OK, REFUSED, Answer, Clients
from bart_export.errors import EngineError

TIMES = 2.0  # how much more is asked than can be answered
UNLOADED = 48  # requests by themselves, whose 99th percentile is what others are held to
CAPACITY_CLIENTS, CAPACITY_REQUESTS = 8, 64
SPARE_CLIENTS = 32  # threads for requests beyond those that can wait in the server
SAMPLE_SECONDS = 5.0
SETTLED_SECONDS = 60.0  # memory is to be flat from then on, in a shorter run from its half on


@dataclasses.dataclass(frozen=True)
class OverloadRow:
    """How a server withstands twice the load that it can answer, for some `seconds`.

    `capacity` and `rate` are requests per second. Of the `requests`, `other` counts those that were
    neither accepted nor refused, by status, and `wrong` those that were accepted and answered
    otherwise than without load. `resident_bytes` are rows of seconds and bytes, `resident_spread`
    is by how much of the least the most is more once the server has settled.
    """

    engine: str
    seconds: float
    capacity: float
    rate: float
    requests: int
    accepted: int
    refused: int
    other: Mapping[str, int]
    wrong: int
    unloaded_p99_seconds: float
    accepted_p99_seconds: float | None
    resident_bytes: Sequence[Sequence[float]]
    resident_spread: float | None

    def __str__(self) -> str:
        p99, spread = self.accepted_p99_seconds, self.resident_spread
        later = "nothing was accepted"
        if p99 is not None:
            later = f"{p99 / self.unloaded_p99_seconds:.2f} × without load"
        memory = "unknown" if spread is None else f"within {spread:.1%}"
        return (
            f"{self.engine}, {self.rate:.1f} requests per s for {self.seconds:g} s, of which it "
            f"can answer {self.capacity:.1f}: {self.accepted} of {self.requests} accepted, "
            f"{self.wrong} of them wrong, {self.refused} refused, other answers: "
            f"{self.other or 'none'}; p99 of accepted requests {later}; memory {memory}"
        )


def measure(engine: str, clients: Clients, room: int, seconds: float) -> OverloadRow:
    """Ask the server of an engine for twice of what it can answer.

    `room` is how many calls it runs or lets wait.
    """
    unloaded = [
        answer for front in FRONTS for answer in clients.in_turn(front, 1, UNLOADED // 2)[1]
    ]
    if {answer.status for answer in unloaded} != {OK}:
        raise EngineError("A server without load should answer every request, but it did not.")
    expected = {answer.question: answer.token_ids for answer in unloaded}
    took, answers = clients.in_turn("rest", CAPACITY_CLIENTS, CAPACITY_REQUESTS)
    capacity = sum(answer.status == OK for answer in answers) / took
    rate = TIMES * capacity
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(clients.steadily, rate, seconds, room + SPARE_CLIENTS)
        resident = sampled(clients, future)
    _, answers = future.result()
    return OverloadRow(
        engine,
        seconds,
        capacity,
        rate,
        **counts(answers, expected),
        unloaded_p99_seconds=float(np.percentile([answer.seconds for answer in unloaded], 99)),
        accepted_p99_seconds=percentile(answers, 99),
        resident_bytes=resident,
        resident_spread=spread(resident, min(SETTLED_SECONDS, seconds / 2)),
    )


def counts(answers: Sequence[Answer], expected: Mapping[int, bytes]) -> dict[str, Any]:
    """Return how many requests ended how."""
    statuses = collections.Counter(answer.status for answer in answers)
    wrong = sum(
        answer.status == OK and answer.token_ids != expected[answer.question] for answer in answers
    )
    return {
        "requests": len(answers),
        "accepted": statuses.pop(OK, 0),
        "refused": statuses.pop(REFUSED, 0),
        "other": dict(statuses),
        "wrong": wrong,
    }


def sampled(clients: Clients, future: "Future[tuple[float, list[Answer]]]") -> list[list[float]]:
    """Return the memory of the clients' server every few seconds, until `future` is done."""
    began = time.perf_counter()
    rows: list[list[float]] = []
    while not future.done():
        resident = clients.server.resident_bytes()
        if resident is not None:
            rows.append([time.perf_counter() - began, resident])
        until = len(rows) * SAMPLE_SECONDS + began
        while not future.done() and time.perf_counter() < until:
            time.sleep(0.1)
    return rows


def spread(rows: Sequence[Sequence[float]], since: float) -> float | None:
    """Return by how much of the least value the most is more, of those from `since` seconds on."""
    values = [value for seconds, value in rows if seconds >= since]
    return max(values) / min(values) - 1 if values else None


def percentile(answers: Sequence[Answer], percent: float) -> float | None:
    """Return a percentile of the seconds of accepted requests, None if there is none."""
    seconds = [answer.seconds for answer in answers if answer.status == OK]
    return float(np.percentile(seconds, percent)) if seconds else None
