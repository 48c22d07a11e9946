"""Empty version directories, and servables that stand in for loaded models."""

import contextlib
import shutil
import threading
import time

import pytest

from bart_export.server import versions
from bart_export.server.model_store import ModelSpec, ModelStore
from bart_export.server.options import ServeOptions
from bart_export.server.status import StatusError
from bart_export.server.versions import TENSORFLOW, ServedModel


def add_version(base_path, number):
    """Create a version directory atomically, and return its path."""
    unfinished = base_path / f"unfinished-{number}"
    unfinished.mkdir(parents=True)
    (unfinished / "saved_model.pb").touch()
    return unfinished.rename(base_path / str(number))


def remove_version(base_path, number):
    """Remove a version directory atomically."""
    shutil.rmtree((base_path / str(number)).rename(base_path / "removed"))


def served(base_path, name="m", **fields):
    """Return a model with this base path."""
    return ServedModel(name=name, base_path=base_path, engine=TENSORFLOW, **fields)


def wait_until(condition, seconds=60):
    """Wait until a condition holds; fail after some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.002)


class Opened:
    """A servable that records its version and whether it is closed."""

    streams = False
    reader = None

    def __init__(self, number, path):
        self.signature_defs = {}
        self.number = number
        self.path = path
        self.closed = threading.Event()

    def submit(self, call):
        raise NotImplementedError

    def stream(self, text, parameters, emit, limits):
        raise NotImplementedError

    def close(self):
        assert not self.closed.is_set(), "closed twice"
        self.closed.set()


class Opener:
    """Opens versions and records them; openings fail or wait as configured."""

    def __init__(self):
        self.opened = []
        self.errors = {}  # number -> the errors of its next openings
        self.gates = {}  # number -> the event that an opening waits for
        self.attempts = []
        self.polls = 0
        self.polling = threading.Event()  # the event that a poll waits for
        self.polling.set()

    def open_version(self, model, number, path):
        self.attempts.append(number)
        if number in self.gates:
            assert self.gates[number].wait(60)
        if self.errors.get(number):
            raise self.errors[number].pop(0)
        self.opened.append(Opened(number, path))
        return self.opened[-1]

    def of(self, number):
        """Return the servable of a version, which must have been opened once."""
        (servable,) = [servable for servable in self.opened if servable.number == number]
        return servable


@contextlib.contextmanager
def running_store(opener, **options):
    """Return a store that polls real directories; it is stopped after the block."""
    settings = ServeOptions(**{"poll_seconds": 0.01, **options})

    def find_versions(model):
        opener.polls += 1
        assert opener.polling.wait(60)
        return versions.find_versions(model)

    store = ModelStore(opener.open_version, settings, find_versions)
    try:
        yield store
    finally:
        store.stop()


def wait_for_polls(opener, number):
    """Wait for a number of polls that begin after this call."""
    before = opener.polls
    wait_until(lambda: opener.polls > before + number)


def latest(store, name="m", **spec):
    """Return the version that answers."""
    with store.lease(ModelSpec(name, **spec)) as lease:
        assert lease.servable.number == lease.version
        return lease.version


def states(store, name="m"):
    """Return the state of each version."""
    return {version.number: version.state for version in store.status(ModelSpec(name))}


def refusal(act):
    """Return the code and message of the StatusError that a call raises."""
    with pytest.raises(StatusError) as error:
        act()
    return error.value.code, error.value.message
