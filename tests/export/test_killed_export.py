"""An export that is killed, wherever it is, leaves a whole artifact and no half of another.

Killed means without a chance to clean up, at a chosen access to files or at a stage.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from support.golden_cases import preset_of
from support.made_up_artifacts import whole

from bart_export.artifact.artifact import Artifact
from bart_export.errors import ArtifactError

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


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_anywhere_on_its_journey_an_export_loses_nothing(symmetric_artifact, tmp_path, step):
    directory = symmetric_artifact.directory
    assert int(run("-m", "support.killed_exports", tmp_path, directory, step)) > 150


# Exports over an artifact in forks, each of which ends where one stage begins.
KILL_AT_EVERY_STAGE = """
import json, os, pathlib, sys
from bart_export.export.pipeline import export
from bart_export.export.options import TfliteOptions
from bart_export.recipes.table import RECIPES

preset, output = sys.argv[1], pathlib.Path(sys.argv[2])
for wanted in json.loads(sys.argv[3]):
    process = os.fork()
    if process == 0:
        def stage(name):
            if name == wanted:
                os._exit(9)
        export(preset, TfliteOptions((RECIPES["float32"],)), output, stage)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    draft, made = sorted(path.name for path in output.parent.iterdir())
    assert (made, draft[:6], draft[-6:]) == ("made", ".made.", ".draft"), (draft, made)
print(draft)
"""


def test_killed_at_a_stage_the_previous_artifact_stays(symmetric_artifact, tmp_path):
    target = tmp_path / "made"
    shutil.copytree(symmetric_artifact.directory, target)
    before = (target / "manifest.json").read_bytes()
    stages = ["convert the graph", "verify tflite/float32.tflite", "commit the artifact"]
    preset = preset_of(symmetric_artifact)
    draft = run("-c", KILL_AT_EVERY_STAGE, preset, target, json.dumps(stages)).strip()
    assert (target / "manifest.json").read_bytes() == before
    whole(target)
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        Artifact.open(tmp_path / draft / "artifact")
