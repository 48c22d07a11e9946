"""`bart-export edgetpu check`: its output in the compiler's words, and its exit codes."""

import json

import pytest
from support.command import refusal, run
from support.compiler_logs import TWO_FILES, install
from support.single_operations import OPERATIONS, content

from bart_export.edgetpu import rules

ONE_FILE = TWO_FILES.partition("Input model: here/other.tflite")[0]


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return a function that writes a file with these operations; no compiler is on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(*nodes):
        (tmp_path / "file.tflite").write_bytes(content(nodes))
        return str(tmp_path / "file.tflite")

    return write


def check(*arguments):
    return run("edgetpu", "check", *arguments)


def test_a_file_that_maps_is_shown_and_exits_with_0(file):
    result = check(file(OPERATIONS["CONV_2D"]))
    assert result.exit_code == 0
    assert "CONV_2D 1 Mapped to Edge TPU" in " ".join(result.output.split())
    assert "1 of 1 operations would run on the Edge TPU" in result.output
    assert "edgetpu_compiler itself was not run" in result.output


def test_a_file_that_is_refused_says_why_and_exits_with_1(file):
    result = check(file(OPERATIONS["CONV_2D"].change(version=6), OPERATIONS["ADD"]))
    assert result.exit_code == 1
    assert "would reject this file: Didn't find op for builtin opcode" in result.output
    assert "'CONV_2D' version '6'" in result.output


def test_json_has_a_row_for_each_operation(file):
    node = OPERATIONS["SOFTMAX"].change_input(0, shape=(8, 16))
    result = check(file(OPERATIONS["ADD"], node, node), "--json")
    assert result.exit_code == 1
    report = json.loads(result.output)
    found = [(row["operator"], row["status"]) for row in report["rows"]]
    assert found == [("ADD", rules.MAPPED)] + [("SOFTMAX", rules.NOT_MAPPED)] * 2
    assert (report["passes"], report["compiler"]) == (False, None)


@pytest.mark.parametrize(
    ("log", "code"), [(ONE_FILE, 0), (ONE_FILE.replace("Mapped to", "Not on"), 1)]
)
def test_the_compiler_is_heard_where_it_is_installed(log, code, file, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    install(tmp_path, monkeypatch, log)
    result = check(file(OPERATIONS["CONV_2D"]))
    assert result.exit_code == code, result.output
    assert "edgetpu_compiler reports:" in result.output
    assert "parameters: 6.50 MiB kept on the Edge TPU" in result.output


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "file.tflite").write_bytes(b"nothing of the kind")
    assert "file.tflite" in refusal("edgetpu", "check", tmp_path / "file.tflite")
    assert refusal("edgetpu") == "Error: Missing command."
