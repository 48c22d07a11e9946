"""A worker opens an artifact: what ends its process does not end the server."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import requests
from support import made_up_artifacts, tflite_files
from support.served_directories import wait_until
from support.serving_process import serving_process

import bart_export
from bart_export.artifact.artifact import Artifact
from bart_export.errors import EngineError, InputError
from bart_export.runtime.generator import Generator
from bart_export.server import open_version
from bart_export.server.litert_engine import ArtifactServable
from bart_export.server.metrics import GenerationMetrics, Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Limits
from bart_export.server.versions import LITERT, ServedModel
from bart_export.server.worker import Start, Worker
from bart_export.server.worker_pool import Job


def serve(directory, **options):
    served = ServedModel(name="m", base_path=directory, engine=LITERT)
    open_version.opener(ServeOptions(**options), Metrics())(served, 1, directory).close()


@pytest.fixture
def made(symmetric_artifact, tmp_path):
    """Return a copy of an artifact without the weight caches of other tests."""
    ignored = shutil.ignore_patterns(".cache")
    return shutil.copytree(symmetric_artifact.directory, tmp_path / "m", ignore=ignored)


@pytest.fixture
def ending(monkeypatch, tmp_path):
    """Return a function that makes every worker run a statement when it imports LiteRT."""

    def end(statement, unless="False"):
        code = f"""if True:
            import os, sys, time

            class Finder:
                def find_spec(self, name, *_):
                    if name == "ai_edge_litert" and not {unless}:
                        {statement}

            if "--multiprocessing-fork" in sys.orig_argv:
                sys.meta_path.insert(0, Finder())
        """
        (tmp_path / "sitecustomize.py").write_text(code)
        paths = [str(tmp_path), str(pathlib.Path(bart_export.__file__).parents[1])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    return end


def test_all_workers_map_the_weights_that_the_first_has_packed(made):
    options, metrics = ServeOptions(workers=3), GenerationMetrics(Metrics(), "m")
    with contextlib.closing(ArtifactServable(made, 1, options, metrics)) as servable:
        (cache,) = (made / ".cache").glob("*.xnnpack")
        mapped = [
            {int(line.split()[4]) for line in read_maps(worker.process.pid) if "xnnpack" in line}
            for worker in servable.pool.workers
        ]
    assert mapped == [{cache.stat().st_ino}] * 3


def read_maps(pid):
    return pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()


# What a worker does when it imports LiteRT, and the line that says so.
KILLED = "was killed by {}; the .tflite file may not be the one"
ENDS = [
    *[
        (f"os.kill(os.getpid(), {int(number)})", KILLED.format(number.name))
        for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL)
    ],
    ("time.sleep(600)", "was not ready within 2 s"),
    ("raise RuntimeError('It is\\nbroken')", "m: RuntimeError: It is broken"),
]


@pytest.mark.parametrize(("statement", "line"), ENDS)
def test_a_file_that_ends_the_worker_is_refused_in_a_line(made, ending, statement, line):
    ending(statement)
    with pytest.raises(EngineError, match=f"A worker cannot open .*{line}") as caught:
        serve(made, load_seconds=2.0 if "sleep" in statement else 60.0)
    assert "\n" not in str(caught.value)


def test_a_source_that_arrives_while_another_is_encoded_starts_with_it(symmetric_artifact):
    ours, pipe = multiprocessing.Pipe()
    generator = Generator.from_artifact(symmetric_artifact.directory)
    generation = generator.settings(num_beams=1, min_length=9, max_length=9)
    numbers, encode = iter(range(4)), generator.scheduler.encode

    def send(number):
        ours.send([Start(number, [0, 10 + number, 2], generation, streams=False)])

    def encode_and_send():
        encode()
        for number in itertools.islice(numbers, 1):
            send(number)

    generator.scheduler.encode = encode_and_send
    thread = threading.Thread(target=Worker(generator, pipe).work)
    thread.start()
    send(next(numbers))
    ended, batch_sizes = {}, []
    while len(ended) < 4:
        progress = ours.recv()
        ended |= progress.ended
        batch_sizes += progress.batch_sizes
    assert batch_sizes == [4] * 8
    ours.send(None)
    thread.join()


def test_a_source_that_ends_when_it_is_admitted_is_answered(symmetric_artifact):
    servable = ArtifactServable(
        symmetric_artifact.directory, 1, ServeOptions(), GenerationMetrics(Metrics(), "m")
    )
    job = Job([0] * 5000, servable.model.generation, Limits(deadline=time.monotonic() + 60))
    with pytest.raises(InputError, match="received 5000"):
        servable.pool.run([job])
    servable.close()


def test_what_is_wrong_in_words_is_said_in_those(made):
    (made / "tflite/float32.tflite").write_bytes(b"altered")
    with pytest.raises(EngineError, match="float32.tflite does not match its manifest"):
        serve(made)


def test_a_file_whose_logits_are_not_finite_is_refused(made):
    path = made / "tflite/float32.tflite"
    content = bytearray(path.read_bytes())
    weights = tflite_files.weight(content, "layer_0/cross_attention_key/weights")
    weights.view(np.float32)[0] = np.nan
    path.write_bytes(content)
    made_up_artifacts.reseal(made)
    with pytest.raises(EngineError, match="Expected finite logits from the decoder, received NaN"):
        serve(made)


def test_a_server_goes_on_with_the_version_it_has(made, ending, tmp_path):
    """A new export whose file ends the process that opens it is loaded once, and not served."""
    directory = tmp_path / "served"
    artifact = Artifact.open(made)
    made_up_artifacts.export_again(directory, artifact, 1)
    harmless = f"not os.path.exists({str(tmp_path / 'harmful')!r})"
    # What is left of a weight cache that was being written does not look like another export.
    unfinished = f"open({str(directory / '.cache')!r} + f'/{{os.getpid()}}.building', 'w').close()"
    ending(f"{unfinished}; os.kill(os.getpid(), 11)", unless=harmless)
    with serving_process(directory, "--poll-seconds", 0.1, "--threads", 1) as running:
        ask = functools.partial(requests.post, running.url("/v1/models/served:predict"), timeout=60)
        first = ask(json={"instances": ["A text."]})
        (tmp_path / "harmful").touch()
        made_up_artifacts.export_again(directory, artifact, 2)
        wait_until(lambda: running.logged("cannot be loaded") == 1)
        assert running.states("served") == {1: "AVAILABLE", 2: "END"}
        again = ask(json={"instances": ["A text."]})
        assert (again.status_code, again.json()) == (200, first.json())
        time.sleep(1)  # ten polls
        assert running.logged("was killed by SIGSEGV") == 1
