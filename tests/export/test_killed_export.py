"""An export that is killed, wherever it is, leaves a whole artifact and no half of another.

Killed means without a chance to clean up: `os._exit` at a chosen event, or SIGKILL at any time
(`killed_exports`).
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
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


# Replaces an artifact over and over in forks, and ends the n-th at its n-th access to files, until
# one gets through. An audit hook sees every open, rename, link, removal and call into libc.
KILL_AT_EVERY_EVENT = """
import os, pathlib, sys
from support import made_up_artifacts
from support.made_up_artifacts import check_neighbours, whole
from bart_export.artifact import artifact, directories

target = pathlib.Path(sys.argv[1])
two_renames = sys.argv[2] == "two renames"
if two_renames:
    directories.EXCHANGES.clear()
VERSIONS = [{"a": b"old" * 999, "t/b": b"old"}, {"a": b"new" * 777, "t/c": b"new"}]
EVENTS = ("open", "os.", "shutil.", "ctypes.call_function")
left = -1

def count(event, arguments):
    global left
    if event.startswith(EVENTS):
        left -= 1
        if left == 0:
            os._exit(9)

sys.addaudithook(count)
for limit in range(1, 1000):
    made_up_artifacts.write(target, VERSIONS[0])
    process = os.fork()
    if process == 0:
        left = limit
        made_up_artifacts.write(target, VERSIONS[1])
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if two_renames and not target.exists():
        with artifact.draft(target):  # the next export puts it back
            assert target.exists()
    found = whole(target)
    contents = {name: found.path(name).read_bytes() for name in found.manifest.files}
    assert contents in VERSIONS, limit
    check_neighbours(target)
    if killed == 0:
        break
made_up_artifacts.write(target, VERSIONS[0])
assert [path.name for path in target.parent.iterdir()] == [target.name]
print(limit)
"""


@pytest.mark.parametrize("way", ["one exchange", "two renames"])
def test_killed_at_any_access_to_files_an_artifact_is_whole(tmp_path, way):
    accesses = run("-c", KILL_AT_EVERY_EVENT, tmp_path / "made", way)
    assert int(accesses) > 30  # of one export


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
    preset = symmetric_artifact.manifest.source.handle
    draft = run("-c", KILL_AT_EVERY_STAGE, preset, target, json.dumps(stages)).strip()
    assert (target / "manifest.json").read_bytes() == before
    whole(target)
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        Artifact.open(tmp_path / draft / "artifact")


@pytest.mark.parametrize("kills", [16, pytest.param(96, marks=pytest.mark.slow)])
def test_killed_at_any_moment_of_any_stage_nothing_is_lost(symmetric_artifact, tmp_path, kills):
    printed = run("-m", "support.killed_exports", tmp_path, symmetric_artifact.directory, kills)
    counts = json.loads(printed)
    assert sum(stage.get("killed", 0) for stage in counts.values()) == kills
    assert sum(stage.get("left something", 0) for stage in counts.values()) > kills // 2
    assert counts["write a file"]["old"] and counts["remove what was replaced"]["new"]
