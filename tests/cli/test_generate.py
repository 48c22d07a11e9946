"""`bart-export generate`: batches with a result for every line, streams and exit codes."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from support.command import COMMAND, printed, refusal, run
from support.paths import CASES

from bart_export.cli import batch_files, in_flags
from bart_export.cli.generate import NAMES
from bart_export.cli.main import main
from bart_export.runtime.results import GeneratedSequence

EMPTY = "must not be blank, received"


@pytest.fixture
def generate(symmetric_artifact):
    """Return `generate(arguments...)`, which runs the command on a tiny model."""
    return functools.partial(run, "generate", symmetric_artifact.directory, "--max-length", 6)


@pytest.fixture
def refuse(symmetric_artifact):
    """Return `refuse(arguments...)`: the error line of the command."""
    return functools.partial(refusal, "generate", symmetric_artifact.directory, "--max-length", 6)


@pytest.fixture
def answers(generate, tmp_path):
    """Return `answers(content, name)`: the exit code and results for a file of texts."""

    def run(content, name="in.jsonl", *arguments):
        path = tmp_path / name
        path.write_bytes(content)
        result = generate("--input", path, "--output", "-", *arguments)
        return result.exit_code, [json.loads(line) for line in result.stdout_bytes.splitlines()]

    return run


def errors(rows):
    return [row.get("error", "") for row in rows]


def test_a_blank_line_keeps_its_place(generate, tmp_path):
    blank, output = CASES / "input-blank-line/blank.txt", tmp_path / "out.jsonl"
    lines = blank.read_text().splitlines()
    result = generate("--input", blank, "--output", output)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f'No result for 1 of 3 texts: see "error" in their rows of {output}.\n'
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in rows] == lines
    assert EMPTY in rows[1]["error"]
    good = ["text", "generated_text", "score", "token_ids"]
    assert [list(row) for row in rows] == [good, ["text", "error"], good]
    shown = generate("--input", blank)
    assert shown.exit_code == 1
    assert shown.stdout.split("\n")[:-1] == [row.get("generated_text", "") for row in rows]
    assert shown.stderr.startswith(f"Text 2 of {blank}: A text must not be blank")


def test_empty_texts_are_refused_unless_they_are_wanted(generate, refuse, answers):
    case = CASES / "input-empty/empty.jsonl"
    for asked in ({"input": ""}, {"input": " \n"}):
        assert EMPTY in refuse(**asked)
    assert "--allow-empty" in refuse("")
    assert EMPTY in refuse("", "--stream")
    code, rows = answers(case.read_bytes())
    assert (code, [EMPTY in error for error in errors(rows)]) == (1, [True, True])
    code, rows = answers(case.read_bytes(), "in.jsonl", "--allow-empty")
    assert (code, [len(row["token_ids"]) > 1 for row in rows]) == (0, [True, True])
    assert generate("", "--allow-empty").exit_code == 0


def test_a_mask_in_a_text_is_a_token_when_it_is_asked_for(generate, refuse):
    # As tokens these masks fit the tiny model's positions, as characters they do not.
    text = (CASES / "mask-infilling/text.txt").read_text(encoding="utf-8").strip()
    many = text.replace("<mask>", "<mask>" * 30)
    assert "Shorten it" in refuse(many)
    assert generate(many, "--special-tokens").exit_code == 0
    streamed = generate(many, "--special-tokens", "--stream")
    assert streamed.stdout == generate(many, "--special-tokens").stdout


def test_a_text_too_long_costs_nothing_but_itself(generate, answers, tmp_path):
    case = CASES / "input-one-too-long/three.txt"
    code, rows = answers(case.read_bytes(), "in.txt")
    assert (code, ["generated_text" in row for row in rows]) == (1, [True, True, False])
    assert "--truncate" in rows[2]["error"]
    code, rows = answers(case.read_bytes(), "in.txt", "--truncate")
    assert (code, [row.get("truncated") for row in rows]) == (0, [None, None, True])
    assert (
        generate("--input", case, "--truncate").stderr == f"Text 3 of {case}: It was truncated.\n"
    )
    for options in ([], ["--stream"], ["--output", tmp_path / "one.jsonl"]):
        one = generate(rows[2]["text"], "--truncate", *options)
        assert one.stderr == "The text was truncated to its first 64 tokens.\n"


def test_what_a_file_is_its_ending_says_or_its_first_line(generate, refuse, tmp_path):
    case = CASES / "input-suffix"
    whole = generate("--input", case / "rows.ndjson", "--output", "-")
    assert whole.exit_code == 0
    assert "generated_text" in json.loads(whole.stdout)
    assert generate("--input", case / "ROWS.JSONL", "--output", "-").stdout == whole.stdout
    rows = (case / "rows.ndjson").read_bytes()
    assert generate("--input", "-", "--output", "-", input=rows).stdout == whole.stdout
    lines = generate("--input", "-", "--output", "-", input=b"a text\n[1] a text\n").stdout
    assert [json.loads(line)["text"] for line in lines.splitlines()] == ["a text", "[1] a text"]
    for name, content, words in (
        ("rows.txt", rows, "Rename it to end in .jsonl"),
        ("rows.md", b"a text", ".md is not supported"),
        ("rows.jsonl", b'[{"text": "a"}]', "is a JSON array. Convert it"),
        ("rows", b'[\n{"text": "a"}\n]', "is a JSON array. Convert it"),
        ("wide.txt", "a text".encode("utf-16"), "binary or UTF-16"),
        ("binary", b"PK\0\0", "binary or UTF-16"),
    ):
        (tmp_path / name).write_bytes(content)
        assert words in refuse("--input", tmp_path / name)


@pytest.mark.parametrize("name", ["array.json", "table.csv"])
def test_the_line_about_another_kind_of_file_says_how_to_make_one(refuse, tmp_path, name):
    shutil.copy(CASES / "input-suffix" / name, tmp_path)
    line = refuse("--input", tmp_path / name)
    assert ".txt, one text per line, or .jsonl" in line
    command = line.partition("Convert it: ")[2].replace("python3", sys.executable)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    rows = list(batch_files.read_rows((tmp_path / name).with_suffix(".jsonl")))
    assert rows[0]["text"].startswith("This library reads")
    assert "error" not in rows[0]


BAD = {
    b'{"text": "cut': "must be a JSON object",
    b'["a text"]': "must be a JSON object",
    b'{"source": "a text"}': 'must have a string "text", has ["source"]',
    b'{"text": null, "id": 3}': 'must have a string "text", received null',
    b'{"text": [1]}': 'must have a string "text", received [1]',
    b'{"text": "a", "score": NaN}': "must be a JSON object",
    b"": "must be a JSON object",
    b'{"text": "a\xff"}': "byte 0xff at position 11",
    b'{"text": "a \\ud800 b"}': "lone surrogate",
    b'{"text": "a", "x": ' + b"[" * 100_000: "must be a JSON object",
    b'{"text": "a", "text": "b"}': "unique names",
    b'{"text": "a", "score": 1e999}': "finite numbers",
}


def test_a_bad_line_has_its_row_among_good_ones(answers):
    good = b'{"text": "a text", "id": 7, "error": "of an earlier run"}'
    content = b"".join(good + b"\n" + bad + b"\r\n" for bad in BAD)
    code, rows = answers(content)
    assert code == 1
    assert len(rows) == 2 * len(BAD)
    for row in rows[::2]:
        assert list(row) == ["text", "id", "generated_text", "score", "token_ids"]
    for row, words in zip(rows[1::2], BAD.values(), strict=True):
        assert words in row["error"]
        assert "generated_text" not in row
    assert rows[9]["text"] == [1]
    assert rows[17]["text"] == "a \ud800 b"


def test_objects_nested_as_deeply_as_can_be_read_are_rows_as_well(answers):
    lines = [b'{"text": "a", "x": %s1%s}' % (b"[" * n, b"]" * n) for n in range(800, 1000, 3)]
    code, rows = answers(b"\n".join(lines))
    assert len(rows) == len(lines)
    assert ("error" in rows[0], "error" in rows[-1]) == (False, True)
    assert code == 1


def test_a_line_without_end_is_read_no_further_than_a_bound(answers, monkeypatch):
    monkeypatch.setattr("bart_export.runtime.lines.LONGEST", 4000)
    code, rows = answers(b"a text\n" + b"word " * 4000 + b"\nanother\n", "in.txt")
    assert code == 1
    assert [row["text"][:8] for row in rows] == ["a text", "word wor", "another"]
    assert "exceeds 4000 bytes" in rows[1]["error"]
    assert len(rows[1]["text"]) == 1000


@pytest.mark.parametrize(
    ("content", "name", "found"),
    [
        (b"\xef\xbb\xbfa text\n", "in.txt", ["a text"]),
        (b"\xef\xbb\xbfa text\n" * 2, "in", ["a text"] * 2),
        (b'\xef\xbb\xbf{"text": "a text"}\n' * 2, "in.jsonl", ["a text"] * 2),
        (b"first\r\nsecond\rstill\r\nlast", "in.txt", ["first", "second\rstill", "last"]),
        (b"", "in.txt", []),
    ],
)
def test_lines_end_as_on_any_system_and_a_byte_order_mark_is_no_text(answers, content, name, found):
    code, rows = answers(content, name)
    assert (code, [row["text"] for row in rows]) == (0, found)


def test_several_texts_for_one_stand_in_its_row(answers):
    several = "--num-beams", 3, "--num-return-sequences", 3
    code, rows = answers(b"a text\nanother", "in.txt", *several)
    assert (code, [len(row["sequences"]) for row in rows]) == (0, [3, 3])
    for row in rows:
        assert row["sequences"][0] == {
            name: row[name] for name in ("generated_text", "score", "token_ids")
        }


def test_a_printed_text_is_one_line(monkeypatch, generate, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("a text\nanother\n")
    made = GeneratedSequence.to_dict
    monkeypatch.setattr(
        GeneratedSequence, "to_dict", lambda one: {**made(one), "generated_text": "two\nlines"}
    )
    assert generate("--input", path).stdout == "two lines\ntwo lines\n"


def test_what_is_there_is_not_replaced_by_mistake(generate, refuse, tmp_path):
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"text": "a text"}\n')
    output.write_text("before\n")
    asked = ("--input", path, "--output", output)
    assert "add" not in refuse(*asked)
    assert output.read_text() == "before\n"
    for words, arguments in (
        ("out.csv", ("--input", path, "--output", tmp_path / "out.csv")),
        ("is also the input", ("--input", path, "--output", path, "--overwrite")),
        ("--overwrite needs an --output", ("--input", path, "--overwrite")),
        ("has no file of recipe 'int4'", (*asked, "--overwrite", "--recipe", "int4")),
        ("--max-length", (*asked, "--overwrite", "--max-length", "9999")),
        ("--num-beams must be", (*asked, "--overwrite", "--num-beams", "0")),
    ):
        assert words in refuse(*arguments)
        assert output.read_text() == "before\n"
    assert generate(*asked, "--overwrite").exit_code == 0
    assert "generated_text" in json.loads(output.read_text())
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    assert "is also the input" in refuse(*asked[:3], link, "--overwrite")
    (tmp_path / "empty.jsonl").touch()
    assert generate("--input", path, "--output", tmp_path / "empty.jsonl").exit_code == 0


def test_results_are_never_written_to_what_is_read(symmetric_artifact, tmp_path):
    path, content = tmp_path / "in.jsonl", b'{"text": "a text"}\n'
    path.write_bytes(content)
    for options, redirected in (
        ("--input - --output in.jsonl --overwrite", "< in.jsonl"),
        ("--input /dev/stdin --output in.jsonl --overwrite", "< in.jsonl"),
        ("--input in.jsonl --output -", ">> in.jsonl"),
        ("--input in.jsonl", ">> in.jsonl"),
        ("--input - --output -", "< in.jsonl >> in.jsonl"),
        ("--output in.jsonl --overwrite", "< in.jsonl"),
    ):
        shell = ["sh", "-c", f'exec "$@" {options} {redirected}', "sh", *COMMAND]
        command = [*shell, "generate", symmetric_artifact.directory, "--max-length", "6"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"is also the input" in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert path.read_bytes() == content


def test_rows_are_there_as_they_come_and_whole_after_ctrl_c(symmetric_artifact, tmp_path):
    output = tmp_path / "out.jsonl"
    arguments = ["generate", symmetric_artifact.directory, "--input", "-", "--output", output]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([*COMMAND, *arguments], **pipes) as process:
        process.stdin.write(b"first\n\nthird\n")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not output.exists() or output.read_bytes().count(b"\n") < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        shown, complaint = process.communicate(timeout=60)
    assert (process.returncode, shown) == (130, b"")
    assert complaint == b"Interrupted after 3 texts of -; their rows are complete.\n"
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["first", "", "third"]


@pytest.mark.parametrize("encoding", ["cp1252", "iso8859-2", "utf-8", None])
def test_no_encoding_of_standard_output_ends_the_run(mini_artifact, encoding):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    if encoding is not None:
        environment["PYTHONIOENCODING"] = encoding
    settings = "--num-beams 1 --do-sample --temperature 9 --top-k 0 --seed 1 --max-length 40"
    command = ["generate", str(mini_artifact.directory), "x", *settings.split()]
    done = subprocess.run([*COMMAND, *command], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    expected = printed(*command)
    assert not expected.isascii()
    kept = encoding or "utf-8"  # the default loses no character
    assert done.stdout.decode(kept).rstrip("\r\n") == (
        expected.rstrip("\n").encode(kept, "backslashreplace").decode(kept)
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(mini_artifact):
    for arguments in (["--help"], ["presets"], ["generate", mini_artifact.directory, "a text"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2
        assert done.stderr == b"Error: Standard output: No space left on device.\n"
    line = refusal("generate", mini_artifact.directory, "a text", "--output", "/dev/full")
    assert "Cannot write /dev/full: No space left on device." in line


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes streams")
def test_closed_streams_hide_no_result_and_take_no_file_s_place(mini_artifact):
    asked = ["generate", mini_artifact.directory, "a text"]

    def ended(closed, *arguments):
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, *arguments]
        done = subprocess.run(shell, capture_output=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    code, text, _ = ended("", *asked)
    assert code == 0
    assert ended("2>&-", *asked) == (0, text, b"")
    assert ended("<&-", *asked) == (0, text, b"")
    assert ended("<&-", "generate", mini_artifact.directory, "--input", "-") == (0, b"", b"")
    lost = (2, b"", b"Error: Standard output: Bad file descriptor.\n")
    assert ended(">&-", *asked) == ended(">&- <&-", "presets") == lost
    assert ended("<&- >&- 2>&-", *asked) == (2, b"", b"")


def test_a_path_that_is_not_ascii_is_readable_in_any_locale(tmp_path):
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    arguments = ["generate", tmp_path / "größe", "a text"]
    ended = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True)
    assert f"{tmp_path}/größe is not a directory" in ended.stderr.decode()


def test_a_path_that_no_runtime_can_be_given_is_one_line(symmetric_artifact, tmp_path):
    place = tmp_path / os.fsdecode(b"made\xff")
    try:
        shutil.copytree(symmetric_artifact.directory, place)
    except OSError:
        pytest.skip("this file system has names in Unicode only")
    export = ["--preset", "bart_mini_en", "--target", "tflite", "--output", str(place)]
    for arguments in (["generate", str(place), "a text"], export):
        assert "must be a UTF-8 path" in refusal(*arguments)


@pytest.mark.parametrize(
    ("message", "spelled"),
    [
        ("do_sample=True needs num_beams=1.", "--do-sample needs --num-beams 1."),
        ("received top_p=0.5 with do_sample=false.", "received --top-p 0.5 with --no-do-sample."),
        ("max_length must be at least 2.", "--max-length must be at least 2."),
        ("Shorten it, or use truncate.", "Shorten it, or use --truncate."),
        ("/data/seed/truncate.jsonl", "/data/seed/truncate.jsonl"),
        ("Lower min_length or max_length.", "Lower --min-length or --max-length."),
    ],
)
def test_errors_speak_of_flags(message, spelled):
    with click.Context(main.commands["generate"]):
        assert in_flags(message, *NAMES) == spelled
