"""What ends a process ends one that was made for it."""

import os
import pathlib
import shutil
import signal

import pytest

from bart_export.errors import ArtifactError, EngineError
from bart_export.runtime import trial
from bart_export.server import opening
from bart_export.server.metrics import Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.served_model import LITERT, ServedModel


def serve(directory):
    served = ServedModel(name="m", base_path=directory, engine=LITERT)
    opening.opener(ServeOptions(workers=1), Metrics())(served, 1, directory).close()


@pytest.fixture
def made(symmetric_artifact, tmp_path):
    return shutil.copytree(symmetric_artifact.directory, tmp_path / "made")


@pytest.fixture
def ending(monkeypatch, tmp_path):
    """Return a function that makes every process of a trial end before LiteRT opens a file."""

    def end(statement):
        code = f"import os, sys, time\nif 'trial' in sys.orig_argv[2]:\n    {statement}\n"
        (tmp_path / "sitecustomize.py").write_text(code)
        paths = [str(tmp_path), str(pathlib.Path(trial.__file__).parents[2])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    return end


def test_a_file_that_is_whole_is_served_and_its_weights_are_packed_before(made):
    trial.survive(made)
    (cache,) = (made / ".cache").glob("*.xnnpack")
    built = cache.stat().st_ino
    serve(made)
    assert cache.stat().st_ino == built


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_file_that_ends_the_process_is_refused_in_a_line(made, ending, number):
    ending(f"os.kill(os.getpid(), {int(number)})")
    with pytest.raises(
        EngineError, match=f"was ended by {number.name}: its .tflite file"
    ) as caught:
        serve(made)
    assert "\n" not in str(caught.value)


def test_a_process_that_does_not_end_is_ended(made, ending, monkeypatch):
    ending("time.sleep(600)")
    monkeypatch.setattr(trial, "SECONDS", 1.0)
    with pytest.raises(EngineError, match="did not end within 1 s"):
        serve(made)


def test_what_is_wrong_in_words_is_said_by_the_opening_itself(made):
    (made / "tflite/float32.tflite").write_bytes(b"altered")
    trial.survive(made)
    with pytest.raises(ArtifactError, match="altered"):
        serve(made)
