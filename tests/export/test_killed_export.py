"""An export that is killed, wherever it is, leaves a whole artifact and no half of another.

Killed means without a chance to clean up: `os._exit` at a chosen event, or SIGKILL at any time
(`killed_exports`).
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
from support.made_up_artifacts import check_neighbours, whole

from bart_export.artifact.artifact import Artifact
from bart_export.errors import ArtifactError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

TESTS = os.path.dirname(os.path.dirname(__file__))


# Replaces an artifact over and over in forks, and ends the n-th at its n-th access to files, until
# one gets through. An audit hook sees every open, rename, link, removal and call into libc.
KILL_AT_EVERY_EVENT = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[2])
from support import made_up_artifacts
from support.made_up_artifacts import check_neighbours, whole
from bart_export.artifact import artifact, directories

target = pathlib.Path(sys.argv[1])
two_renames = sys.argv[3] == "two renames"
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
    done = subprocess.run(
        [sys.executable, "-c", KILL_AT_EVERY_EVENT, str(tmp_path / "made"), TESTS, way],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30  # accesses of one export


# Exports over an artifact in forks, each of which ends where one stage begins.
KILL_AT_EVERY_STAGE = """
import json, os, pathlib, sys
from bart_export.export.pipeline import export
from bart_export.export.options import TfliteOptions
from bart_export.recipes.table import RECIPES

preset, output = sys.argv[1], pathlib.Path(sys.argv[2])
ended = []
for wanted in json.loads(sys.argv[3]):
    process = os.fork()
    if process == 0:
        def stage(name):
            if name == wanted:
                os._exit(9)
        export(preset, TfliteOptions((RECIPES["float32"],)), output, stage)
        os._exit(0)
    ended.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    ended.append(sorted(path.name for path in output.parent.iterdir()))
print(json.dumps(ended))
"""


def test_killed_at_a_stage_the_previous_artifact_stays(symmetric_artifact, tmp_path):
    target = tmp_path / "made"
    shutil.copytree(symmetric_artifact.directory, target)
    before = (target / "manifest.json").read_bytes()
    stages = ["convert the graph", "verify tflite/float32.tflite", "commit the artifact"]
    done = subprocess.run(
        [
            *(sys.executable, "-c", KILL_AT_EVERY_STAGE),
            *(symmetric_artifact.manifest.source.handle, str(target), json.dumps(stages)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)
    assert left[::2] == [9, 9, 9], done.stderr
    for names in left[1::2]:  # each export removes what the one before it left
        assert len(names) == 2
        assert names[0].startswith(".made.") and names[0].endswith(".draft")
        assert names[1] == "made"
    assert (target / "manifest.json").read_bytes() == before
    whole(target)
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        Artifact.open(tmp_path / names[0] / "artifact")


@pytest.mark.parametrize("kills", [16, pytest.param(96, marks=pytest.mark.slow)])
def test_killed_at_any_moment_of_any_stage_nothing_is_lost(symmetric_artifact, tmp_path, kills):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "support.killed_exports"),
            *(tmp_path, symmetric_artifact.directory, str(kills)),
        ],
        cwd=TESTS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    print(done.stdout)
    assert sum(stage.get("killed", 0) for stage in counts.values()) == kills
    assert sum(stage.get("left something", 0) for stage in counts.values()) > kills // 2
    assert counts["write a file"]["old"] and counts["remove what was replaced"]["new"]


EXPORT = "from bart_export.cli.main import main; main()"


def start_export(target, recipe):
    command = [sys.executable, "-c", EXPORT, "--preset", "bart_mini_en", "--target", "tflite"]
    return subprocess.Popen([*command, "--recipe", recipe, "--output", str(target)])


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_artifact_still_verifies(mini_artifact, tmp_path):
    target = tmp_path / "made"
    shutil.copytree(mini_artifact.directory, target)
    other = "dynamic_wi8_afp32_tensorwise"
    began = time.monotonic()
    assert start_export(tmp_path / "measured", other).wait() == 0
    duration = time.monotonic() - began
    shutil.rmtree(tmp_path / "measured")

    moments = random.Random(20)
    old = set(mini_artifact.files("tflite"))
    for number in range(10):
        process = start_export(target, other)
        if number < 7:
            time.sleep(moments.uniform(0.2, 1.0) * duration)
        else:  # around the commit, which takes milliseconds
            golden = ".made.*.draft/artifact/golden.json"
            while process.poll() is None and not any(tmp_path.glob(golden)):
                time.sleep(0.0005)
            time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.wait()
        files = set(whole(target).files("tflite"))
        assert files >= old
        assert files <= {*old, f"tflite/{other}.tflite"}
        check_neighbours(target)

    assert start_export(target, other).wait() == 0
    assert set(whole(target).files("tflite")) == {*old, f"tflite/{other}.tflite"}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
