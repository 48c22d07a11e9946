"""A server that is asked for more than it can do: what it answers, how late, and what it takes.

A server and its clients go in; figures come out. First the clients find out how much the server can
answer, and what it answers when it has time; then requests come at twice that rate, whatever
becomes of them. Nothing here knows what is asked, or what a figure should be.
"""

import collections
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from bart_export.bench.serving_client import FRONTS, OK, REFUSED, Answer, ClientProcess
from bart_export.bench.serving_process import ServerProcess
from bart_export.errors import EngineError
from bart_export.server.options import ServeOptions

TIMES = 2.0  # how much more is asked than can be answered
UNLOADED = 48  # requests by themselves, whose 99th percentile is what others are held to
CAPACITY_CLIENTS = 8
CAPACITY_REQUESTS = 64
SPARE_CLIENTS = 32  # threads for requests beyond those that can wait in the server
SAMPLE_SECONDS = 5.0
SETTLED_SECONDS = 60.0  # memory is to be flat from then on, in a shorter run from its half on


def measure(
    server: ServerProcess, clients: ClientProcess, options: ServeOptions, seconds: float
) -> dict[str, Any]:
    """Ask a server for twice of what it can answer.

    Args:
        server: the server.
        clients: that ask it.
        options: of the server.
        seconds: for how long.

    Returns:
        `capacity` and `rate` in requests per second; how many `requests` were `accepted`,
        `refused` and answered by an `other` status (which, and how often), how many of the accepted
        were answered otherwise than without load (`wrong`); `unloaded_p99_seconds`,
        `accepted_p99_seconds`; `resident_bytes`, rows of seconds and bytes, and `resident_spread`,
        by how much of the least the most is more once the server has settled.
    """
    unloaded = [
        answer for front in FRONTS for answer in clients.in_turn(front, 1, UNLOADED // 2)[1]
    ]
    if {answer.status for answer in unloaded} != {OK}:
        raise EngineError("A server without load should answer every request, but it did not.")
    expected = {answer.question: answer.digest for answer in unloaded}
    took, answers = clients.in_turn("rest", CAPACITY_CLIENTS, CAPACITY_REQUESTS)
    capacity = sum(answer.status == OK for answer in answers) / took
    rate = TIMES * capacity
    with ThreadPoolExecutor(1) as executor:
        waiting = (options.workers or 1) + options.queue_size + SPARE_CLIENTS
        future = executor.submit(clients.steadily, rate, seconds, waiting)
        resident = sampled(server, future)
    _, answers = future.result()
    return {
        "seconds": seconds,
        "capacity": capacity,
        "rate": rate,
        **counts(answers, expected),
        "unloaded_p99_seconds": percentile([answer.seconds for answer in unloaded], 99),
        "accepted_p99_seconds": percentile(
            [answer.seconds for answer in answers if answer.status == OK], 99
        ),
        "resident_bytes": resident,
        "resident_spread": spread(resident, min(SETTLED_SECONDS, seconds / 2)),
    }


def counts(answers: Sequence[Answer], expected: dict[int, str]) -> dict[str, Any]:
    """Return how many requests ended how."""
    statuses = collections.Counter(answer.status for answer in answers)
    wrong = sum(
        answer.status == OK and answer.digest != expected[answer.question] for answer in answers
    )
    return {
        "requests": len(answers),
        "accepted": statuses.pop(OK, 0),
        "refused": statuses.pop(REFUSED, 0),
        "other": dict(statuses),
        "wrong": wrong,
    }


def sampled(server: ServerProcess, future: "Future[Any]") -> list[list[float]]:
    """Return the memory of a server every few seconds, until `future` is done."""
    began = time.perf_counter()
    rows: list[list[float]] = []
    while not future.done():
        resident = server.resident_bytes()
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


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return a percentile, None of nothing."""
    return float(np.percentile(values, percent)) if values else None


def text(row: Mapping[str, Any]) -> str:
    """Return a row of the report, that of one engine, as a sentence or two."""
    p99, unloaded, spreading = (
        row[name] for name in ("accepted_p99_seconds", "unloaded_p99_seconds", "resident_spread")
    )
    later = "nothing was accepted" if p99 is None else f"{p99 / unloaded:.2f} × without load"
    memory = "unknown" if spreading is None else f"within {spreading:.1%}"
    return (
        f"{row['engine']}, {row['rate']:.1f} requests per s for {row['seconds']:g} s, of which it "
        f"can answer {row['capacity']:.1f}: {row['accepted']} of {row['requests']} accepted, "
        f"{row['wrong']} of them wrong, {row['refused']} refused, other answers: "
        f"{row['other'] or 'none'}; p99 of accepted requests {later}; memory {memory}"
    )
