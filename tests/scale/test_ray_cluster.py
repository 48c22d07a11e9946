"""examples/ray_summarize.py on a cluster whose processes and nodes are killed."""

import contextlib
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import ray_nodes
from support.command import python, run
from support.many_texts import texts
from support.pages import ROOT, blocks, command_lines

pytestmark = pytest.mark.slow

SCALE = "docs/guide/scale.md"
EXAMPLE = ROOT / "examples/ray_summarize.py"

COUNT, ROWS = 2000, 25
BLANK, LONG = 5, 60
REFUSED = {BLANK: "   ", LONG: "word " * 600}
SETTINGS = ["--num-beams", "1", "--max-length", "24"]
SECONDS = 900  # a hang, not a speed: Ray may wait forever after many faults


@pytest.fixture(scope="module", autouse=True)
def ray_directory():
    """Let Ray keep its logs and sockets in a directory that is removed.

    Sockets have paths of at most 107 bytes, which pytest's directories would exceed.
    """
    temporary = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
    with temporary as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", directory)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a file with a row for each id, two of which are refused."""
    path = tmp_path_factory.mktemp("ray") / "texts.jsonl"
    rows = [
        {"id": number, "text": REFUSED.get(number, text)}
        for number, text in enumerate(texts(COUNT, 80))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(mini_artifact, source):
    """Return the token ids of each id, None if refused, as `bart-export generate` writes them."""
    output = source.with_name("expected.jsonl")
    generate = ["generate", mini_artifact.directory, "--threads", "1", *SETTINGS]
    assert run(*generate, "--input", source, "--output", output).exit_code == 1
    rows = map(json.loads, output.read_text("utf-8").splitlines())
    return {row["id"]: row.get("token_ids") for row in rows}


@pytest.fixture
def place(mini_artifact, tmp_path):
    """Return a directory beside `artifacts/bart_mini_en`."""
    place = tmp_path / "id=9"  # Ray must not take it for the id of all rows
    (place / "artifacts").mkdir(parents=True)
    (place / "artifacts" / "bart_mini_en").symlink_to(mini_artifact.directory)
    return place


@contextlib.contextmanager
def summarizing(*arguments, address="", cwd=None):
    """Start the example, with `printed` and `log` for its output; kill it at the end."""
    command = [sys.executable, EXAMPLE, *arguments, "--rows", ROWS, *SETTINGS]
    with (
        tempfile.TemporaryFile("w+") as printed,
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            list(map(str, command)), stdout=printed, stderr=log, cwd=cwd, start_new_session=True,
            env={**os.environ, "RAY_ADDRESS": address},
        ) as process,
    ):  # fmt: skip
        process.printed, process.log = printed, log
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def content(file):
    """Return what was written to a file."""
    file.seek(0)
    return file.read()


def ended(process):
    """Wait until the example has refused some texts, and return what it printed and logged."""
    code = process.wait(SECONDS)
    log = content(process.log)
    assert code == 1, log
    return content(process.printed), log


def files(output):
    """Return the number of files with results."""
    return len(list(output.glob("*.parquet")))


def wait_for_files(output, count, process):
    """Wait until there are so many files with results."""
    end = time.monotonic() + SECONDS
    while files(output) < count:
        assert time.monotonic() < end
        assert process.poll() is None, content(process.log)
        time.sleep(0.05)


def answers(output):
    """Return the token ids of each id, None if it was refused; no id may be there twice."""
    rows = pq.read_table(output).to_pylist()
    assert all((row["token_ids"] is None) == (row["error"] is not None) for row in rows)
    answered = {row["id"]: row["token_ids"] for row in rows}
    assert len(answered) == len(rows)
    return answered


def test_each_id_is_there_once_whatever_is_killed(mini_artifact, source, expected, tmp_path):
    output, killed = tmp_path / "headlines", set()
    with ray_nodes.nodes([2, 2, 2]) as cluster:
        start = functools.partial(
            summarizing,
            mini_artifact.directory,
            source,
            output,
            "--workers",
            "2",
            address=cluster.address,
        )
        with start() as process:
            for count in (2, 8, 14):
                wait_for_files(output, count, process)
                killed.add(ray_nodes.kill_worker(cluster, killed))
            wait_for_files(output, 20, process)
            ray_nodes.kill_node(cluster)
            cluster.add_node(**ray_nodes.NODE, num_cpus=2)
            wait_for_files(output, 40, process)
            process.kill()
        assert files(output) < COUNT // ROWS
        with start() as process:
            wait_for_files(output, 50, process)
            killed.add(ray_nodes.kill_worker(cluster, killed))
            printed, log = ended(process)
    assert len(killed) == 4
    assert answers(output) == expected
    assert printed == f"{output}: {COUNT} texts.\n"
    assert log.splitlines()[-1].startswith(f"No result for 2 of {COUNT} texts: ")


def test_on_this_machine_a_second_run_adds_only_new_rows(place, source, expected):
    (line,) = (line for line in command_lines(SCALE) if "ray_summarize" in line)
    _, script, *arguments = shlex.split(line)
    assert ROOT / script == EXAMPLE
    few = source.read_text("utf-8").splitlines(keepends=True)[:101]
    output = place / "headlines"
    for named, count in ((output, 100), (f"file://{output}/?a=b", 101)):  # one place
        (place / "texts.jsonl").write_text("".join(few[:count]).strip(), "utf-8")
        with summarizing(*arguments[:-1], str(named), "--truncate", cwd=place) as process:
            printed, log = ended(process)
        shown = str(named).removesuffix("?a=b")
        assert printed == f"{shown}: {count} texts.\n"
        reason = f'No result for 1 of {count} texts: see "error" in their rows of {shown}.'
        assert log.splitlines()[-1] == reason
        assert not re.findall("INFO|Traceback|DeprecationWarning", log), log
    found = answers(output)
    assert found.pop(LONG) is not None  # truncated
    assert found == {number: expected[number] for number in range(101) if number != LONG}


def test_what_ends_a_job_is_one_line(mini_artifact, source, tmp_path):
    """Of which a worker's error has no traceback, and an unreachable cluster is not waited for."""
    start, types = functools.partial(summarizing, mini_artifact.directory), tmp_path / "types"
    types.mkdir()
    for name, others in (("a", [2**60 + 1]), ("b", [0.5])):  # no float64 is the first
        table = pa.table([[name], ["A text."], others], ["id", "text", "o"])
        pq.write_table(table, types / f"{name}.parquet")
    reasons = {"": "Error: Integer value 11", "[::1]:9": "Error: [::1]:9 cannot be reached"}
    for address, reason in reasons.items():
        with start(types, tmp_path / "failed", address=address) as process:
            assert process.wait(SECONDS) == 2
            log = content(process.log)
        assert "Traceback" not in log
        assert log.splitlines()[-1].startswith(reason)
    output = tmp_path / "interrupted"
    with start(source, output) as process:
        wait_for_files(output, 1, process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(SECONDS) == 130
        assert content(process.log).splitlines()[-1] == "Interrupted."


def test_the_python_of_the_guide_prints_a_headline_and_a_reason(place):
    (program,) = (code for code in blocks("python", SCALE) if "ray.init" in code)
    done = python(program, cwd=place, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    headline, reason = sorted(done.stdout.splitlines())
    assert headline.startswith("1 ")
    assert "must not be blank" in reason


def test_the_engine_of_a_worker_has_as_many_threads_as_the_worker_has_cpus(mini_artifact):
    program = """if True:
        import os, sys, time
        os.environ.pop("OMP_NUM_THREADS", None)
        import pyarrow as pa, ray
        from bart_export.scale.ray import BartGenerator

        def threads():
            # Ray starts and ends some of its own at any time.
            counts = []
            while len(counts) < 5 or len(set(counts[-5:])) > 1:
                counts.append(len(os.listdir("/proc/self/task")))
                time.sleep(0.1)
            return counts[-1]

        class Counting(BartGenerator):
            def __init__(self, *arguments):
                before = threads()
                super().__init__(*arguments)
                self.threads = threads() - before

            def __call__(self, batch):
                return pa.table({"started": [self.threads]})

        ray.init(num_cpus=4, include_dashboard=False)
        for cpus in (1, 3):
            made = ray.data.range(1).map_batches(
                Counting, fn_constructor_args=[sys.argv[1]], batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=1), num_cpus=cpus,
            )
            print(made.take_all()[0]["started"])
    """
    done = python(program, mini_artifact.directory, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    one, three = map(int, done.stdout.split())
    assert three == one + 2
