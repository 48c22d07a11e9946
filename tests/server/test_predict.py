"""Requests to servables: checked inputs, awaited results, errors, and leases."""

import asyncio
import contextlib
import time
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest
from support.arithmetic import FLOAT, PREDICT, Arithmetic, signature

from bart_export.errors import ArtifactError, ConfigurationError, InputError
from bart_export.server.predict import check_inputs, run
from bart_export.server.servable import Call, Lease, Limits
from bart_export.server.status import Code, StatusError, status_of_error

ONE = np.array([1], np.float32)
PLAIN = signature(PREDICT, {"a": FLOAT, "b": FLOAT}, {"x": FLOAT, "y": FLOAT})
DEFAULTED = signature(PREDICT, {"a": FLOAT, "b": FLOAT}, {"x": FLOAT}, b=ONE)


@pytest.mark.parametrize(
    ("definition", "given", "missing", "unknown"),
    [
        (PLAIN, ["a"], "b", ""),
        (PLAIN, ["b", "a", "z"], "", "z"),
        (PLAIN, ["a", "z"], "b", "z"),
        (DEFAULTED, ["b"], "a", ""),
        (DEFAULTED, ["a", "z"], "", "z"),
    ],
)
def test_inputs_must_match_the_signature(definition, given, missing, unknown):
    with pytest.raises(StatusError) as raised:
        check_inputs(definition, given)
    assert raised.value.code == Code.INVALID_ARGUMENT
    assert raised.value.message.endswith(
        f"Missing but required: {{{missing}}}. Unknown: {{{unknown}}}."
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StatusError(Code.ABORTED, "so"), Code.ABORTED, "so"),
        (InputError("long"), Code.INVALID_ARGUMENT, "long"),
        (ConfigurationError("wrong"), Code.INVALID_ARGUMENT, "wrong"),
        (ArtifactError("gone"), Code.INTERNAL, "gone"),
        (CancelledError(), Code.CANCELLED, "The request was cancelled"),
        (TimeoutError(), Code.DEADLINE_EXCEEDED, "Timed out waiting for notification"),
        (MemoryError(), Code.RESOURCE_EXHAUSTED, "Out of memory"),
        (KeyError("x"), Code.INTERNAL, "KeyError: 'x'"),
    ],
)
def test_each_error_has_a_code_and_a_message(error, code, message):
    status = status_of_error(error)
    assert (status.code, status.message) == (code, message)


def waiting(seconds, limits):
    """Return a call that takes a number of seconds."""
    inputs = {"seconds": np.array([seconds], np.float32)}
    return Call(signature="wait", inputs=inputs, outputs=("seconds",), limits=limits)


class Lender:
    """Lends a servable, and counts its users."""

    def __init__(self, servable):
        self.servable = servable
        self.holders = 0

    @contextlib.contextmanager
    def lease(self):
        self.hold(1)
        try:
            yield Lease(self.servable, 1, self.hold)
        finally:
            self.hold(-1)

    def hold(self, number):
        self.holders += number


def test_run_returns_the_outputs_and_the_lease_ends():
    async def ask():
        with lender.lease() as lease:
            outputs = await run(lease, waiting(0.05, Limits()))
            assert lender.holders
        return outputs

    lender = Lender(Arithmetic())
    assert asyncio.run(ask())["seconds"] == pytest.approx(0.05)
    assert not lender.holders


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_abandoned_work_is_stopped_and_keeps_its_servable_open(is_cancelled):
    """Either the client disconnects, or the deadline passes during a step."""
    release = Future()

    class Stubborn(Arithmetic):
        def submit(self, call):
            return release

    async def ask():
        with lender.lease() as lease:
            await run(lease, waiting(10, limits))

    async def give_up():
        task = asyncio.create_task(ask())
        await asyncio.sleep(0)  # it begins
        if is_cancelled:
            task.cancel()
        assert (await asyncio.wait([task], timeout=60))[0]
        with pytest.raises(asyncio.CancelledError if is_cancelled else TimeoutError):
            await task

    limits = Limits(deadline=None if is_cancelled else time.monotonic() + 0.1)
    lender = Lender(Stubborn())
    asyncio.run(give_up())
    assert limits.stop.is_set()
    assert lender.holders
    release.set_result({})
    assert not lender.holders
