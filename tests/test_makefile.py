"""`make test` runs everything, and fails at the end if anything failed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("ruff", "mypy", "sphinx-build", "pytest", "python", "mvn")
LINT = ["ruff check", "ruff format", "mypy", "sphinx-build -qW"]
RUN = [*LINT, "pytest -q", "python tools/android_fixtures.py", "mvn"]

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


@pytest.fixture
def make(tmp_path):
    """Return a function that runs make with programs that log their calls; some of them fail."""
    log = tmp_path / "log"
    (tmp_path / "bin").mkdir()

    def run(target, *failing, maven="mvn"):
        for name in PROGRAMS:
            program = tmp_path / "bin" / name
            program.write_text(
                f'#!/bin/sh\necho "{name} $*" >> {log}\nexit {int(name in failing)}\n'
            )
            program.chmod(0o755)
        log.write_text("")
        (tmp_path / "installed-test").touch()  # newer than pyproject.toml
        result = subprocess.run(
            ["make", target, f"VENV={tmp_path}", f"MAVEN={maven}"],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        calls = [" ".join(call.split()[:2]) for call in log.read_text().splitlines()]
        return result, calls

    return run


@pytest.mark.parametrize(
    ("failing", "failed"),
    [
        ((), ""),
        (("pytest",), "Failed: test-python\n"),
        (("ruff", "mvn"), "Failed: lint test-android\n"),
        (("mypy", "pytest", "python"), "Failed: lint test-python test-android\n"),
    ],
    ids=["none", "pytest", "ruff and Maven", "mypy, pytest and fixtures"],
)
def test_one_failure_keeps_nothing_else_from_running(make, failing, failed):
    result, calls = make("test", *failing)
    assert (result.returncode != 0) is bool(failing)
    assert failed in result.stderr
    wanted = [call for call in RUN if call != "mvn" or "python" not in failing]
    assert [call[: len(want)] for call, want in zip(calls, wanted, strict=True)] == wanted


def test_every_linter_runs(make):
    result, calls = make("lint", "ruff")
    assert result.returncode != 0
    assert [call.strip() for call in calls] == LINT


def test_without_maven_the_rest_still_counts(make):
    result, calls = make("test", maven="no-such-program")
    assert result.returncode == 0
    assert "android/ was not tested" in result.stdout
    result, calls = make("test", "pytest", maven="no-such-program")
    assert result.returncode != 0
    assert "Failed: test-python" in result.stderr
