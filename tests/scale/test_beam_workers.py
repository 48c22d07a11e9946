"""Worker processes of Beam are killed, and no text is lost or written twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import recipes
from support.command import printed

ROOT = Path(__file__).parents[2]
HEADLINES = ROOT / "tests/data/mini_model/headlines_4_beams.jsonl"
COUNT = 2000
KILLS = 3


@pytest.fixture
def place(tmp_path):
    """Return a directory with `COUNT` different texts of at most twelve words."""
    lines = HEADLINES.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"].split() for line in lines]
    with (tmp_path / "texts.jsonl").open("w") as file:
        for number in range(COUNT):
            turn, index = divmod(number, len(texts))
            words = texts[index][turn : turn + 12] or ["Nothing"]
            file.write(json.dumps({"id": number, "text": " ".join(words)}) + "\n")
    return tmp_path


@contextlib.contextmanager
def started(artifact, place):
    """Start the example with two worker processes; end what is left of it."""
    command = [
        sys.executable, ROOT / "examples/beam_summarize.py", artifact.directory,
        f"--input={place}/texts.jsonl", f"--output={place}/headlines.jsonl",
        f"--failed={place}/failed.jsonl", "--shards=2", "--runner=FnApiRunner",
        "--direct_running_mode=multi_processing", "--direct_num_workers=2",
    ]  # fmt: skip
    with (place / "errors").open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def rows_of(path):
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


def generating(process):
    """Return the ids of the worker processes that have opened the model."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(folder.name)) == process.pid != int(folder.name):
                found += [int(folder.name)] * (".xnnpack" in (folder / "maps").read_text())
    return found


@pytest.mark.slow
def test_a_run_after_killed_workers_has_each_text_once(export_once, place):
    artifact = export_once("bart_mini_en", recipes("float32"))
    printed("generate", artifact.directory, "--input", place / "texts.jsonl",
            "--output", place / "expected.jsonl")  # fmt: skip
    expected = rows_of(place / "expected.jsonl")
    for kill in range(KILLS):
        with started(artifact, place) as process:
            while len(workers := generating(process)) < 2:
                assert process.poll() is None, (place / "errors").read_text()
                time.sleep(0.02)
            time.sleep(0.3 * kill)
            os.kill(workers[kill % 2], signal.SIGKILL)
            assert process.wait(120) == 2  # Beam's local runner repeats nothing, but notices
        assert list(place.glob("headlines-*")) == []
    with started(artifact, place) as process:
        assert process.wait(300) == 0, (place / "errors").read_text()
    paths = sorted(place.glob("headlines-*"))
    assert [path.name for path in paths] == [
        "headlines-00000-of-00002.jsonl", "headlines-00001-of-00002.jsonl"
    ]  # fmt: skip
    rows = [row for path in paths for row in rows_of(path)]
    assert [row["id"] for row in sorted(rows, key=lambda row: row["id"])] == [*range(COUNT)]
    differing = [row for row in rows if row["token_ids"] != expected[row["id"]]["token_ids"]]
    assert differing == []
    assert (place / "failed-00000-of-00001.jsonl").read_text() == ""
