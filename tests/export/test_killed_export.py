"""An export that is killed, wherever it is, leaves a whole artifact and no half of another.

Killed means without a chance to clean up, at a chosen access to files.
"""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

TESTS = os.path.dirname(os.path.dirname(__file__))


def run(*arguments):
    """Run Python beside the tests' support and return what it prints."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_any_access_to_files_an_artifact_is_whole(tmp_path):
    assert int(run("-m", "support.killed_exports", tmp_path)) > 30


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_on_its_journey_an_export_loses_nothing(symmetric_artifact, tmp_path, step):
    directory = symmetric_artifact.directory
    assert int(run("-m", "support.killed_exports", tmp_path, directory, step)) > 150
