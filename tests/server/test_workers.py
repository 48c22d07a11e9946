"""Worker processes: shared batches, cancelled calls, and workers that die."""

import collections
import contextlib
import http.client
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from support.rest_server import METRICS, serving
from support.served_directories import wait_until
from support.serving_process import LOOPBACK, serving_process

from bart_export.bench.measurements import resident_bytes
from bart_export.errors import EngineError
from bart_export.runtime.generator import Generator
from bart_export.server import worker_pool
from bart_export.server.litert_engine import ArtifactServable
from bart_export.server.messages import object_array
from bart_export.server.metrics import GenerationMetrics, Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.servable import QUEUE_FULL, Call, Limits
from bart_export.server.status import Code, StatusError
from bart_export.server.worker_pool import Job

TEXT = "A library for reading and writing compressed archives. It streams large files."
# Inputs of `generate_text`, none of which REST lets be omitted.
SHORT = {"max_length": 12, "min_length": 0, "length_penalty": 1.0, "repetition_penalty": 1.0,
         "early_stopping": "false"}  # fmt: skip
LONG = {**SHORT, "min_length": 250, "max_length": 250}
STREAM = {"num_beams": 1, "min_length": 500, "max_length": 500}
TINY, MINI = "bart_tiny_symmetric", "bart_mini_en"


def predict_body(text, **settings):
    """Return a request for a text, or for several."""
    inputs = {"text": [text] if isinstance(text, str) else text}
    for name, value in settings.items():
        inputs[name] = [value] * len(inputs["text"])
    return json.dumps({"signature_name": "generate_text", "inputs": inputs})


class Client:
    """A client of a server on a port."""

    def __init__(self, port):
        self.address = f"http://{LOOPBACK}:{port}"

    def metric(self, name, model=MINI):
        """Return the value of a model's metric."""
        text = requests.get(self.address + METRICS, timeout=20).text
        found = re.search(rf'^:bart_export:{name}{{.*model_name="{model}".*}} (\S+)$', text, re.M)
        return float(found[1])

    def is_running(self, generations):
        return self.metric("running_generations") == generations

    def predict(self, text, model=MINI, **settings):
        """Return the response to a text, or to several in one request."""
        body = predict_body(text, **settings)
        return requests.post(f"{self.address}/v1/models/{model}:predict", body, timeout=60)

    def stream(self, **settings):
        """Return a response whose first event has arrived, and the iterator of its lines."""
        body = {"text": TEXT, **settings}
        url = f"{self.address}/v1/models/{MINI}:generate"
        response = requests.post(url, json=body, stream=True, timeout=60)
        lines = response.iter_lines(chunk_size=1)
        assert next(lines) == b"event: token"
        return response, lines


@pytest.fixture(scope="module")
def server(symmetric_artifact, mini_artifact):
    directories = symmetric_artifact.directory, mini_artifact.directory
    with serving_process(*directories, "--request-seconds", "100") as process:
        process.client = Client(process.rest_api_port)
        yield process


def workers(process):
    """Return the process ids of the workers of the server's models, the oldest first."""
    tasks = pathlib.Path(f"/proc/{process.process.pid}/task").iterdir()
    children = {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
    return sorted(pid for pid in children if b"spawn_main" in read_command(pid))


def read_command(pid):
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()


def test_concurrent_clients_share_a_batch_and_get_what_each_text_gives_alone(
    server, symmetric_artifact
):
    generator = Generator.from_artifact(symmetric_artifact.directory)
    questions = [
        (" ".join(TEXT.split()[: 2 + number % 9]), {**SHORT, "max_length": 6 + number % 7})
        for number in range(48)
    ]
    with ThreadPoolExecutor(16) as threads:
        answers = threads.map(
            lambda question: server.client.predict(question[0], TINY, **question[1]), questions
        )
        for (text, settings), answer in zip(questions, answers, strict=True):
            alone = generator.generate(text, **{**settings, "early_stopping": False})
            assert answer.json()["outputs"]["generated_text"] == [[alone.text]]
    sizes = "batch_size_bucket", "batch_size_count"
    alone, steps = (server.client.metric(name, TINY) for name in sizes)
    assert alone < steps


def test_rows_of_a_request_run_together(server, symmetric_artifact):
    generator = Generator.from_artifact(symmetric_artifact.directory)
    texts = [" ".join(TEXT.split()[:length]) for length in (1, 9, 4, 2)]
    timed = "queueing_time_count", "time_to_first_token_count"
    before = server.client.metric("generated_tokens", TINY)
    counts = [server.client.metric(name, TINY) for name in timed]
    answer = server.client.predict(texts, TINY, **SHORT).json()["outputs"]["generated_text"]
    settings = {**SHORT, "early_stopping": False}
    results = [generator.generate(text, **settings) for text in texts]
    assert answer == [[result.text] for result in results]
    tokens = server.client.metric("generated_tokens", TINY) - before
    assert tokens == sum(result.timings.tokens for result in results)
    assert [server.client.metric(name, TINY) for name in timed] == [each + 4 for each in counts]


def test_the_server_answers_while_a_model_runs_and_does_not_run_it(server):
    _, lines = server.client.stream(**STREAM)
    # As Ctrl-C sends to all processes of a terminal, and a service manager to all of a service.
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(mini_worker(server), number)
    answers = 0
    while server.client.is_running(1):
        answers += 1
    assert answers > 3
    assert json.loads(list(lines)[-2].removeprefix(b"data: "))["tokens"] == 499
    libraries = pathlib.Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "litert" not in libraries.casefold()
    assert all("litert" in pathlib.Path(f"/proc/{pid}/maps").read_text().casefold()
               for pid in workers(server))  # fmt: skip


def test_a_client_that_goes_away_frees_its_slot(server):
    before = server.client.metric("generated_tokens")
    endless = {**LONG, "min_length": 500, "max_length": 500}
    waiting = http.client.HTTPConnection(LOOPBACK, server.rest_api_port)
    waiting.request("POST", f"/v1/models/{MINI}:predict", predict_body(TEXT, **endless))
    wait_until(lambda: server.client.is_running(1))
    waiting.close()
    wait_until(lambda: server.client.is_running(0))
    streams = [server.client.stream(**STREAM) for _ in range(2)]
    wait_until(lambda: server.client.is_running(2))
    for response, _ in streams:
        response.close()
    wait_until(lambda: server.client.is_running(0))
    assert server.client.metric("generated_tokens") == before
    assert server.client.predict(TEXT, **SHORT).status_code == 200


@pytest.mark.slow
def test_a_server_asked_for_too_much_answers_or_refuses_and_keeps_its_memory(mini_artifact):
    """The server takes 20 calls at a time, and 40 clients ask it."""
    generator = Generator.from_artifact(mini_artifact.directory)
    texts = [" ".join(TEXT.split()[: 2 + number]) for number in range(9)]
    settings = {**SHORT, "early_stopping": False}
    expected = [[[result.text]] for result in generator.generate(texts, **settings)]
    statuses, resident = collections.Counter(), []
    with serving_process(mini_artifact.directory, "--queue-size", 4) as process:
        client = Client(process.rest_api_port)

        def ask(number):
            answer = client.predict(texts[number % 9], **SHORT)
            if answer.status_code == 200:
                assert answer.json()["outputs"]["generated_text"] == expected[number % 9]
            else:
                assert answer.json()["error"] == QUEUE_FULL
                time.sleep(0.05)
            return answer.status_code

        for _ in range(3):
            with ThreadPoolExecutor(40) as threads:
                statuses.update(threads.map(ask, range(800)))
            resident.append(resident_bytes(process.process.pid))
    assert statuses.keys() == {200, 503}
    assert min(statuses.values()) > 100
    assert abs(resident[2] - resident[1]) < 10 << 20


def mini_worker(server):
    """Return the worker that runs a generation of bart_mini_en, whose model is the larger one."""

    def size(pid):
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[0])

    return max(workers(server), key=size)


def test_a_worker_that_is_killed_loses_no_request(server):
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(server.client.predict, TEXT, **LONG) for _ in range(4)]
        wait_until(lambda: server.client.is_running(4))
        os.kill(mini_worker(server), signal.SIGKILL)
        texts = [answer.result().json()["outputs"]["generated_text"] for answer in answers]
    assert all(text == texts[0] for text in texts)
    line = "a worker process ended: it was killed by SIGKILL. Restarting it"
    wait_until(lambda: server.logged(line) == 1)
    assert server.client.is_running(0)
    assert server.client.metric("waiting_generations") == 0


def test_a_stream_whose_worker_is_killed_ends_with_an_error(server):
    _, lines = server.client.stream(**STREAM)
    os.kill(mini_worker(server), signal.SIGKILL)
    *_, name, data, _ = lines
    assert name == b"event: error"
    assert b"it was killed by SIGKILL. Try again." in data
    assert server.client.is_running(0)


def test_a_request_whose_worker_is_killed_twice_is_refused(server):
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(server.client.predict, TEXT, **LONG) for _ in range(2)]
        for _ in range(2):
            wait_until(lambda: server.client.is_running(2))
            os.kill(mini_worker(server), signal.SIGKILL)
            wait_until(lambda: server.client.is_running(0))
    for answer in answers:
        assert answer.result().status_code == 503
        assert "was killed by SIGKILL. Try again." in answer.result().json()["error"]
    assert server.client.predict(TEXT, **SHORT).status_code == 200


def opened(directory, **options):
    return ArtifactServable(
        directory, 1, ServeOptions(**options), GenerationMetrics(Metrics(), MINI)
    )


@pytest.fixture
def servable(symmetric_artifact):
    """Return a servable of one worker."""
    with contextlib.closing(opened(symmetric_artifact.directory)) as servable:
        yield servable


@pytest.fixture
def worker(servable):
    """Return the process of the servable's worker."""
    return servable.pool.workers[0].process


def test_a_worker_that_cannot_start_again_is_given_up(symmetric_artifact, tmp_path, caplog):
    made = shutil.copytree(symmetric_artifact.directory, tmp_path / "made")
    servable = opened(made)
    call = Call(
        signature="generate_text",
        inputs={"text": object_array([TEXT.encode()])},
        outputs=("generated_text",),
    )
    assert servable.submit(call).result(60)
    shutil.rmtree(made / "tflite")
    (process,) = multiprocessing.active_children()
    process.kill()
    servable.pool.workers[0].thread.join(60)
    with pytest.raises(StatusError, match="No worker process is running: .*tflite") as error:
        servable.submit(call).result(60)
    assert error.value.code == Code.UNAVAILABLE
    assert [record.levelname for record in caplog.records] == [*["WARNING"] * 3, "ERROR"]
    assert caplog.messages[-1].endswith("Given up after 3 failed starts")
    servable.close()


def test_a_process_that_cannot_be_started_once_delays_its_jobs(
    servable, worker, monkeypatch, caplog
):
    monkeypatch.setattr(worker_pool, "RESTART_SECONDS", 0.1)
    settings = servable.model.generation.replace(num_beams=1, min_length=60, max_length=60)
    jobs = [Job([0, 10 + number, 2], settings, Limits()) for number in range(2)]
    start, errors = worker_pool.PROCESSES.Process.start, [OSError(24, "Too many open files")]

    def start_or_fail(process):
        if errors:
            raise errors.pop()
        start(process)

    monkeypatch.setattr(worker_pool.PROCESSES.Process, "start", start_or_fail)
    os.kill(worker.pid, signal.SIGSTOP)  # so that it dies with its jobs
    servable.pool.submit(jobs)
    worker.kill()
    assert [job.future.result(60).timings.tokens for job in jobs] == [59, 59]
    killed, failed = caplog.messages
    assert "it was killed by SIGKILL" in killed
    assert "Too many open files" in failed


def test_a_job_that_is_cancelled_while_its_worker_is_replaced_is_not_run_again(
    servable, worker, monkeypatch
):
    pool, retry = servable.pool, servable.pool.retry

    def cancel_and_retry(jobs, reason):
        pool.cancel(jobs)
        retry(jobs, reason)

    monkeypatch.setattr(pool, "retry", cancel_and_retry)
    os.kill(worker.pid, signal.SIGSTOP)  # so that it dies with its job
    job = Job([0, 10, 2], servable.model.generation, Limits())
    pool.submit([job])
    worker.kill()
    with pytest.raises(StatusError, match="The request was cancelled"):
        job.future.result(60)


def test_a_first_process_that_cannot_be_started_is_an_error(symmetric_artifact, monkeypatch):
    def fail(process):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(worker_pool.PROCESSES.Process, "start", fail)
    with pytest.raises(EngineError, match="A worker cannot open .*Too many open files"):
        opened(symmetric_artifact.directory)


def test_a_worker_that_hangs_delays_no_job_beyond_its_limits_and_is_killed(
    servable, worker, monkeypatch
):
    monkeypatch.setattr(worker_pool, "EXIT_SECONDS", 0.2)
    os.kill(worker.pid, signal.SIGSTOP)
    limits = Limits(deadline=time.monotonic() + 0.1)
    with pytest.raises(StatusError) as error:
        servable.pool.run([Job([0, 10, 2], servable.model.generation, limits)])
    assert error.value.code == Code.DEADLINE_EXCEEDED
    servable.close()
    assert not worker.is_alive()


def test_the_worker_with_the_fewest_jobs_takes_the_next_and_those_of_one_that_dies(mini_artifact):
    servable = opened(mini_artifact.directory, workers=2)
    settings = servable.model.generation.replace(num_beams=1, min_length=200, max_length=200)
    jobs = [Job([0, 100 + number, 2], settings, Limits()) for number in range(3)]
    loads, processes = [], multiprocessing.active_children()
    for process in processes:  # no job ends meanwhile
        os.kill(process.pid, signal.SIGSTOP)
    for job in jobs:
        servable.pool.submit([job])
        loads.append(sorted(len(worker.jobs) for worker in servable.pool.workers))
    assert loads == [[0, 1], [1, 1], [1, 2]]
    alive, dead = processes
    dead.kill()
    os.kill(alive.pid, signal.SIGCONT)
    results = [job.future.result(60) for job in jobs]
    assert [result.timings.tokens for result in results] == [199] * 3
    assert sum(job.attempts == 2 for job in jobs) in (1, 2)
    assert alive.is_alive()
    servable.close()
    assert not alive.is_alive()


def test_calls_beyond_the_queue_are_refused(mini_artifact):
    servable = opened(mini_artifact.directory, batching=False, queue_size=1)
    with serving(servable) as running:
        client = Client(running.port)
        url = f"{client.address}/v1/models/m:generate"
        (worker,) = servable.pool.workers

        def ask(**settings):
            return requests.post(url, json={"text": TEXT, **settings}, timeout=60)

        with ThreadPoolExecutor(2) as threads:
            accepted = [threads.submit(ask, **STREAM) for _ in range(2)]
            wait_until(
                lambda: (
                    sorted(job.is_running for job in list(worker.jobs.values())) == [False, True]
                )
            )
            os.kill(worker.process.pid, signal.SIGSTOP)  # so that neither ends meanwhile
            refused = ask()
            os.kill(worker.process.pid, signal.SIGCONT)
        assert (refused.status_code, refused.json()["error"]) == (503, QUEUE_FULL)
        assert [answer.result().status_code for answer in accepted] == [200, 200]
