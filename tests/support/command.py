"""Runs the command line, in this process or in a separate one."""

import subprocess
import sys

from click.testing import CliRunner

from bart_export.cli.main import main

PROGRAM = "from bart_export.cli.main import main; main()"
COMMAND = [sys.executable, "-c", PROGRAM]


def run(*arguments, input=None):
    """Run a command in this process; return its exit code, output and errors."""
    return CliRunner().invoke(main, list(map(str, arguments)), input=input)


def printed(*arguments):
    """Return the output of a command, which must succeed."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments, **given):
    """Return the error line of a command, which must exit with 2 and print nothing else."""
    result = run(*arguments, **given)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    *usage, line = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert not usage or usage[0].startswith("Usage: ")
    return line


def python(program, *arguments, **settings):
    """Run a program in a new interpreter; return its exit code, output and errors."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **settings)
