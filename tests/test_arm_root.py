"""tools/arm_root.py says in one line why it cannot emulate ARM; `make test-arm` runs the rest."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "arm_root.py"
QEMU = ("qemu-aarch64-static", "qemu-arm-static")


@pytest.fixture
def refusal(tmp_path):
    """Return a function that runs the tool with these programs only, and returns its error."""

    def run(*programs, apt="exit 0"):
        for name in programs:
            program = tmp_path / name
            program.write_text(f"#!/bin/sh\n{apt if name == 'apt-get' else 'exit 0'}\n")
            program.chmod(0o755)
        output = tmp_path / "build" / "arm"
        command = [sys.executable, TOOL, "--output", output]
        done = subprocess.run(command, env={"PATH": tmp_path}, capture_output=True, text=True)
        assert done.returncode == 1
        assert not output.exists()
        return done.stderr

    return run


def test_a_missing_program_is_named_with_its_package(refusal):
    start = "Emulating ARM needs "
    package = "from Debian's package qemu-user-static.\n"
    assert refusal() == f"{start}qemu-aarch64-static, {package}"
    assert refusal(QEMU[0]) == f"{start}qemu-arm-static, {package}"
    assert refusal(*QEMU) == f"{start}apt-get, from Debian's package apt.\n"


def test_a_package_that_cannot_be_had_is_named(refusal):
    apt = "echo Reading package lists...; echo 'E: Unable to locate package python3.11'; exit 100"
    assert refusal(*QEMU, "apt-get", "dpkg", apt=apt) == (
        "Emulating ARM failed: cannot fetch python3.11 for arm64: "
        "E: Unable to locate package python3.11\n"
    )
