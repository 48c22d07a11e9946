"""`bart-export generate --input`: texts decoded together, and interrupted outputs."""

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command import COMMAND, refusal, run
from support.many_texts import texts

from bart_export.cli import batch_files
from bart_export.runtime import Generator

# The command with windows of 8 texts.
SMALL = "from bart_export.cli import batch_files, main; batch_files.WINDOW = 8; main.main()"
SMALL_WINDOWS = [sys.executable, "-c", SMALL]
SETTINGS = ["--recipe", "float32", "--num-beams", "1", "--threads", "1"]


@pytest.fixture
def rows(tmp_path):
    """Return a file of 60 texts of mixed lengths, three of which are rejected."""
    content = [{"text": text, "id": number} for number, text in enumerate(texts(60, 80))]
    content[7]["text"] = " "
    content[30] = {"id": 30}
    content[59]["text"] = "word " * 600
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


@pytest.fixture
def generate(mini_artifact, rows, monkeypatch):
    """Return `generate(arguments...)`, which runs the command with small windows."""
    monkeypatch.setattr(batch_files, "WINDOW", 8)
    return functools.partial(run, "generate", mini_artifact.directory, *SETTINGS, "--input", rows)


@pytest.fixture(scope="module")
def alone(mini_artifact):
    """Return a function that generates from a text alone, and remembers it."""
    generator = Generator.from_artifact(mini_artifact.directory, recipe="float32", num_threads=1)
    return functools.cache(functools.partial(generator.generate, num_beams=1))


@pytest.fixture
def whole(generate, tmp_path):
    """Return the output of an uninterrupted run."""
    path = tmp_path / "whole.jsonl"
    assert generate("--output", path).exit_code == 1
    return path.read_bytes()


@pytest.mark.parametrize("size", [[], ["--max-batch-size", "5"], ["--max-batch-size", "1"]])
def test_each_text_has_the_result_that_it_has_alone(mini_artifact, rows, alone, tmp_path, size):
    output = tmp_path / "out.jsonl"
    arguments = [*SETTINGS, "--input", rows, "--output", output]
    done = run("generate", mini_artifact.directory, *arguments, *size)
    assert done.exit_code == 1
    assert done.stderr == f'No result for 3 of 60 texts: see "error" in their rows of {output}.\n'
    found = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [row["id"] for row in found] == list(range(60))
    assert [row["id"] for row in found if "error" in row] == [7, 30, 59]
    for row in found:
        if "error" not in row:
            result = alone(row["text"])
            assert tuple(row["token_ids"]) == result.token_ids
            assert row["generated_text"] == result.text
            assert row["score"] == pytest.approx(result.score, abs=1e-4)


def test_an_output_cut_anywhere_is_completed_byte_for_byte(generate, whole, tmp_path):
    output = tmp_path / "out.jsonl"
    ends = [match.end() for match in re.finditer(b"\n", whole)]
    # Nothing, a part of a line, a complete window, two windows in which the texts after the cut
    # are rounded differently without those before it, and everything.
    for size in (0, ends[0] - 1, ends[7], ends[45], ends[51] + 9, ends[59]):
        output.write_bytes(whole[:size])
        done = generate("--output", output, "--resume")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == (
            f'No result for 3 of 60 texts: see "error" in their rows of {output}.\n'
        )
        assert output.read_bytes() == whole
    output.unlink()
    assert generate("--output", output, "--resume").exit_code == 1
    assert output.read_bytes() == whole


def test_only_an_output_of_the_same_input_and_settings_is_resumed(
    generate, mini_artifact, rows, whole, tmp_path
):
    output = tmp_path / "out.jsonl"
    lines = whole.splitlines(keepends=True)
    fields = json.loads(lines[1])
    swapped = {name: fields[name] for name in ("id", "text", "generated_text", "score")}
    for content, words in (
        ([lines[1], lines[0]], "Line 1 of"),
        ([*lines[:9], lines[10]], "Line 10 of"),
        ([lines[0], lines[1].replace(b'"id": 1', b'"id": 2')], "Line 2 of"),
        ([lines[0], lines[1].replace(b'"id": 1', b'"id": 1, "more": 1')], "Line 2 of"),
        ([lines[0], json.dumps(swapped).encode() + b"\n"], "Line 2 of"),
        ([*lines[:2], b"a note"], "Line 3 of"),
        ([rows.read_bytes()], "Line 1 of"),
        ([*lines, lines[0]], "has more lines than"),
        ([*lines, b"{"], "has more lines than"),
    ):
        output.write_bytes(b"".join(content))
        done = generate("--output", output, "--resume")
        assert (done.exit_code, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert output.read_bytes() == b"".join(content)
    output.write_bytes(b"".join(lines[:12]))
    other = generate("--output", output, "--resume", "--num-beams", 2)
    assert (other.exit_code, other.stdout) == (2, "")
    assert "Line 9 of" in other.stderr
    assert "other settings" in other.stderr
    assert output.read_bytes() == b"".join(lines[:12])


def test_an_output_that_another_process_writes_is_kept(symmetric_artifact, rows, tmp_path):
    output = tmp_path / "out.jsonl"
    arguments = ["--input", rows, "--output", output, "--overwrite"]
    with batch_files.results(output) as write:
        write({"text": "a"})
        line = refusal("generate", symmetric_artifact.directory, *arguments)
        assert f"Another process is writing {output}." in line
    assert output.read_bytes() == b'{"text": "a"}\n'


def test_what_cannot_be_resumed_is_one_line(symmetric_artifact, rows, tmp_path):
    refuse = functools.partial(refusal, "generate", symmetric_artifact.directory)
    output = tmp_path / "out.jsonl"
    both = "--input", rows, "--output", output
    assert "either --resume or --overwrite" in refuse(*both, "--resume", "--overwrite")
    assert "needs an --output file" in refuse("--input", rows, "--output", "-", "--resume")
    assert "needs an --output file" in refuse("--input", rows, "--resume")
    assert "not a pipe" in refuse("--input", "-", "--output", output, "--resume", input="a text\n")
    assert "needs an --input file" in refuse("a text", "--output", output, "--resume")
    assert "--max-batch-size needs an --input" in refuse("a text", "--max-batch-size", "2")
    assert not output.exists()
    output.write_text("a note")
    assert "continue with --resume" in refuse(*both)
    assert "is also the input" in refuse("--input", rows, "--output", rows, "--resume")


def test_a_row_of_a_pipe_is_written_before_the_next_line_is(symmetric_artifact, tmp_path):
    arguments = ["generate", symmetric_artifact.directory, "--max-length", "6", "--input", "-"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([*COMMAND, *arguments, "--output", "-"], **pipes) as process:
        for text in ("first", "second"):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text
        process.stdin.write(b"".join(b"%d\n" % number for number in range(1000)))
        shown, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (0, b"")
    assert [json.loads(line)["text"] for line in shown.splitlines()] == list(map(str, range(1000)))


def complete_rows(output):
    return output.read_bytes().count(b"\n") if output.exists() else 0


def check_kills(command, path, tmp_path, kills):
    """Kill a command at random moments, resume it, and compare with an uninterrupted run.

    Moments are spread over the output: just after a row or, if that row is already there, up to a
    quarter of the whole time after the start.
    """
    whole, output, draw = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", random.Random(kills)
    began = time.monotonic()
    subprocess.run([*command, "--input", path, "--output", whole], check=True, timeout=600)
    took = time.monotonic() - began
    resume = [*command, "--input", path, "--output", output, "--resume"]
    # Not in the last window, so that no run ends before it is killed.
    killed_at = sorted(draw.sample(range(1, complete_rows(whole) * 3 // 4), kills))
    found = []
    for kill, row in enumerate(killed_at):
        late = complete_rows(output) >= row
        moment = time.monotonic() + draw.uniform(0, took / 4)
        with subprocess.Popen(resume, stderr=subprocess.PIPE) as process:
            while process.poll() is None and (
                time.monotonic() < moment if late else complete_rows(output) < row
            ):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL if kill % 4 < 2 else signal.SIGINT)
            _, message = process.communicate(timeout=60)
        assert process.returncode != 0
        written = output.read_bytes() if output.exists() else b""
        assert whole.read_bytes().startswith(written)
        interrupted = re.fullmatch(rb"Interrupted after (\d+) texts? of (.*); (.*)\n", message)
        if interrupted is not None:  # not while Python or the model was being loaded
            assert process.returncode == 130
            assert written.endswith(b"\n") or not written
            assert abs(int(interrupted[1]) - written.count(b"\n")) <= 1  # perhaps not counted yet
            assert interrupted[2] == os.fsencode(path)
            assert interrupted[3].endswith(b"Repeat the command with --resume to continue.")
        found.append(written.count(b"\n"))
    assert len(set(found)) > kills // 4
    subprocess.run(resume, check=True, timeout=600)
    assert output.read_bytes() == whole.read_bytes()


def test_a_run_that_is_killed_is_resumed(mini_artifact, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("\n".join(texts(60, 40)), encoding="utf-8")
    check_kills(
        [*SMALL_WINDOWS, "generate", str(mini_artifact.directory), *SETTINGS], path, tmp_path, 3
    )


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_is_resumed(mini_artifact, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("\n".join(texts(1000, 100)), encoding="utf-8")
    command = [*COMMAND, "generate", str(mini_artifact.directory), "--recipe", "float32"]
    check_kills([*command, "--truncate"], path, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_number_of_texts(mini_artifact, tmp_path):
    path, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    path.write_text("\n".join(texts(1000, 100)), encoding="utf-8")
    arguments = ["--input", path, "--output", output, "--truncate"]
    sizes = []
    with subprocess.Popen([*COMMAND, "generate", mini_artifact.directory, *arguments]) as run:
        while run.poll() is None:
            status = Path(f"/proc/{run.pid}/status").read_text()
            size = re.search(r"VmRSS:\s+(\d+)", status)
            if size is not None:
                sizes.append((complete_rows(output), int(size[1])))
            time.sleep(0.05)
    assert run.returncode == 0
    early = max(size for rows, size in sizes if 100 <= rows < 600)
    later = max(size for rows, size in sizes if rows >= 600)
    assert later < 1.05 * early


def test_only_a_failed_write_is_reported_as_one(tmp_path):
    with (
        pytest.raises(OSError, match="of the input"),
        batch_files.results(tmp_path / "out.jsonl") as write,
    ):
        write({"text": "a"})
        raise OSError("of the input")
