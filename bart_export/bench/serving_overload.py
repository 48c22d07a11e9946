"""A server under overload: its answers, their latency, and its memory."""

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from bart_export.bench.measurements import resident_bytes
from bart_export.bench.serving import FRONTS, OK, REFUSED, Clients, ServerAnswer
from bart_export.errors import EngineError

LOAD = 2.0  # rate of requests as a multiple of the capacity
UNLOADED = 48  # requests under no load, for their 99th percentile
CAPACITY_CLIENTS, CAPACITY_REQUESTS = 8, 64
SPARE_CLIENTS = 32  # clients beyond the calls that the server accepts
SAMPLE_SECONDS = 5.0
SETTLED_SECONDS = 60.0  # memory must be flat from here, or from the middle of a shorter run


@dataclasses.dataclass(frozen=True)
class OverloadRow:
    """The behavior of a server under twice the load that it can answer.

    `capacity` and `rate` are requests per second. `other` counts other answers by status, and
    `wrong` the answers that differ from those under no load. `resident_bytes` has rows of seconds
    and bytes; `resident_spread` is (max - min) / min of these bytes once the server has settled.
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
        latency = "unknown"
        if p99 is not None:
            latency = f"{p99 / self.unloaded_p99_seconds:.2f} × that under no load"
        memory = "unknown" if spread is None else f"within {spread:.1%}"
        return (
            f"{self.engine}, {self.rate:.1f} requests per s for {self.seconds:g} s (capacity "
            f"{self.capacity:.1f} per s): {self.accepted} of {self.requests} accepted, "
            f"{self.wrong} of them wrong, {self.refused} refused, other answers: "
            f"{self.other or 'none'}; p99 of accepted requests {latency}; memory {memory}"
        )


def measure(engine: str, clients: Clients, calls: int, seconds: float) -> OverloadRow:
    """Send a server twice the load that it can answer; it runs or queues up to `calls` calls."""
    unloaded = [
        answer for front in FRONTS for answer in clients.send_all(front, 1, UNLOADED // 2)[1]
    ]
    if {answer.status for answer in unloaded} != {OK}:
        raise EngineError("A server under no load must answer every request, but this one did not.")
    expected = {answer.question: answer.token_ids for answer in unloaded}
    took, answers = clients.send_all("rest", CAPACITY_CLIENTS, CAPACITY_REQUESTS)
    capacity = sum(answer.status == OK for answer in answers) / took
    rate = LOAD * capacity
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(clients.send_at_rate, rate, seconds, calls + SPARE_CLIENTS)
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


def counts(answers: Sequence[ServerAnswer], expected: Mapping[int, bytes]) -> dict[str, Any]:
    """Return the number of requests by answer."""
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


def sampled(
    clients: Clients, future: "Future[tuple[float, list[ServerAnswer]]]"
) -> list[list[float]]:
    """Return the server's resident bytes every few seconds until `future` is done."""
    began = time.perf_counter()
    rows: list[list[float]] = []
    while not future.done():
        resident = resident_bytes(clients.server.pid)
        if resident is not None:
            rows.append([time.perf_counter() - began, resident])
        wait([future], SAMPLE_SECONDS)
    return rows


def spread(rows: Sequence[Sequence[float]], since: float) -> float | None:
    """Return (max - min) / min of the values from `since` seconds on."""
    values = [value for seconds, value in rows if seconds >= since]
    return max(values) / min(values) - 1 if values else None


def percentile(answers: Sequence[ServerAnswer], percent: float) -> float | None:
    """Return a percentile of the seconds of accepted requests, or None if there are none."""
    seconds = [answer.seconds for answer in answers if answer.status == OK]
    return float(np.percentile(seconds, percent)) if seconds else None
