"""What ends a process ends one that was made for it."""

import functools
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest
import requests
from support import made_up_artifacts, tflite_files
from support.served_directories import wait_until
from support.serving_process import serving_process

from bart_export.artifact.artifact import Artifact
from bart_export.errors import EngineError
from bart_export.runtime import opening_trial
from bart_export.server import open_version
from bart_export.server.metrics import Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.versions import LITERT, ServedModel


def serve(directory):
    served = ServedModel(name="m", base_path=directory, engine=LITERT)
    open_version.opener(ServeOptions(workers=1), Metrics())(served, 1, directory).close()


@pytest.fixture
def made(symmetric_artifact, tmp_path):
    return shutil.copytree(symmetric_artifact.directory, tmp_path / "made")


@pytest.fixture
def ending(monkeypatch, tmp_path):
    """Return a function that makes every process of a trial end before LiteRT opens a file."""

    def end(statement, unless="False"):
        code = f"""if True:
            import os, sys, time
            if "trial" in sys.orig_argv[2] and not {unless}:
                {statement}
        """
        (tmp_path / "sitecustomize.py").write_text(code)
        paths = [str(tmp_path), str(pathlib.Path(opening_trial.__file__).parents[2])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    return end


def test_a_file_that_is_whole_is_served_and_its_weights_are_packed_before(made):
    opening_trial.survive(made)
    (cache,) = (made / ".cache").glob("*.xnnpack")
    built = cache.stat().st_ino
    serve(made)
    assert cache.stat().st_ino == built


# What a process of the trial does before LiteRT opens a file, and the line that says so.
ENDS = [
    *[
        (f"os.kill(os.getpid(), {int(number)})", f"was killed by {number.name}: its .tflite file")
        for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL)
    ],
    ("time.sleep(600)", "did not finish within 1 s"),
    ("sys.modules['numpy'] = None", "failed: ModuleNotFoundError: import of numpy halted"),
]


@pytest.mark.parametrize(("statement", "line"), ENDS)
def test_a_file_that_ends_the_process_is_refused_in_a_line(
    made, ending, monkeypatch, statement, line
):
    ending(statement)
    if "sleep" in statement:
        monkeypatch.setattr(opening_trial, "SECONDS", 1.0)
    with pytest.raises(EngineError, match=line) as caught:
        serve(made)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_in_words_is_said_in_those(made):
    (made / "tflite/float32.tflite").write_bytes(b"altered")
    with pytest.raises(EngineError, match=r"^\S+float32.tflite does not match its manifest"):
        serve(made)


def test_a_file_whose_logits_are_not_finite_is_refused(made):
    path = made / "tflite/float32.tflite"
    content = bytearray(path.read_bytes())
    weights = tflite_files.weight(content, "layer_0/cross_attention_key/weights")
    weights.view(np.float32)[0] = np.nan
    path.write_bytes(content)
    made_up_artifacts.reseal(made)
    with pytest.raises(EngineError, match="^Expected finite logits from the decoder, received NaN"):
        serve(made)


def test_a_server_goes_on_with_the_version_it_has(made, ending, tmp_path):
    """A new export whose file ends the process that opens it does not become available."""
    directory = tmp_path / "m"
    artifact = Artifact.open(made)
    made_up_artifacts.export_again(directory, artifact, 1)
    harmless = f"not os.path.exists({str(tmp_path / 'harmful')!r})"
    ending("os.kill(os.getpid(), 11)", unless=harmless)
    with serving_process(directory, "--poll-seconds", 0.1, "--threads", 1) as running:
        ask = functools.partial(requests.post, running.url("/v1/models/m:predict"), timeout=60)
        first = ask(json={"instances": ["A text."]})
        (tmp_path / "harmful").touch()
        made_up_artifacts.export_again(directory, artifact, 2)
        wait_until(lambda: running.logged("the last") == 1, 60)
        assert running.states("m") == {1: "AVAILABLE", 2: "END"}
        again = ask(json={"instances": ["A text."]})
        assert (again.status_code, again.json()) == (200, first.json())
        assert running.logged("was killed by SIGSEGV") == 3
