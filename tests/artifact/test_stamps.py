"""Stamps: a file is hashed once, and only this user's stamps are trusted."""

import json
import os
import subprocess
import sys

import pytest
from support.made_up_artifacts import flip

from bart_export.artifact import artifact, stamps
from bart_export.artifact.artifact import sha256
from bart_export.errors import ArtifactError


def test_a_file_altered_under_its_old_time_and_size_is_refused(made):
    path = made.path("tflite/a.tflite")
    status = path.stat()
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ArtifactError, match="altered"):
        made.path("tflite/a.tflite")


@pytest.fixture
def stamp_of(made):
    """Return the path of the stamp of an artifact's first file, after hashing it."""
    return stamps.stamp_path(made.path("tflite/a.tflite"))


def test_stamps_that_came_with_an_artifact_are_not_believed(made, stamp_of):
    path = made.directory / "tflite/a.tflite"
    flip(path)
    forged = stamps.stamp(path.stat(), made.manifest.files["tflite/a.tflite"].sha256)
    stamp_of.unlink()
    cache = made.directory / ".cache"
    for place in (cache / "hashed.json", cache / "stamps" / stamp_of.name):
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps({"tflite/a.tflite": vars(forged), **vars(forged)}))
    with pytest.raises(ArtifactError, match="altered"):
        made.path("tflite/a.tflite")


def writable_by_others(directory):
    directory.chmod(0o777)


def another_users(directory):
    if os.geteuid():
        pytest.skip("only root can give a directory away")
    os.chown(directory, 12345, -1)


@pytest.mark.parametrize("harm", [writable_by_others, another_users])
def test_stamps_that_others_could_write_are_not_believed(made, stamp_of, monkeypatch, harm):
    monkeypatch.setattr(artifact, "sha256", lambda path: pytest.fail("hashed again"))
    assert made.path("tflite/a.tflite")
    directory = stamp_of.parents[1]
    status = directory.stat()
    harm(directory)
    try:
        with pytest.raises(pytest.fail.Exception, match="hashed again"):
            made.path("tflite/a.tflite")
    finally:
        directory.chmod(status.st_mode & 0o777)
        if not os.geteuid():
            os.chown(directory, status.st_uid, -1)


def test_a_stamp_of_another_boot_is_not_believed(made, stamp_of, monkeypatch):
    monkeypatch.setattr(stamps, "boot", lambda: "another")
    monkeypatch.setattr(artifact, "sha256", lambda path: pytest.fail("hashed again"))
    with pytest.raises(pytest.fail.Exception, match="hashed again"):
        made.path("tflite/a.tflite")


def test_where_nobody_knows_the_users_home_files_are_hashed_again(made, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    hashed = []
    monkeypatch.setattr(artifact, "sha256", lambda path: hashed.append(path) or sha256(path))
    made.path("tflite/a.tflite")
    made.path("tflite/a.tflite")
    assert len(hashed) == 2


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"state": 3}', b"[" * 100_000])
def test_damaged_stamps_only_cost_time(made, stamp_of, content):
    whole = stamp_of.read_bytes()
    stamp_of.write_bytes(content)
    made.path("tflite/a.tflite")
    assert stamp_of.read_bytes() == whole


def test_a_file_is_hashed_once_for_each_path_to_it(made, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(artifact, "sha256", lambda path: hashed.append(path) or sha256(path))
    linked = tmp_path / "linked"
    (linked / "tflite").mkdir(parents=True)
    for name in ("manifest.json", "tflite/a.tflite"):
        os.link(made.directory / name, linked / name)
    for directory in (made.directory, linked, linked, made.directory):
        artifact.Artifact.open(directory).path("tflite/a.tflite")
    assert hashed == [made.directory / "tflite/a.tflite", linked / "tflite/a.tflite"]


def test_the_oldest_stamps_go(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stamps, "MOST", 8)
    given = stamps.stamp(os.stat(tmp_path), 64 * "0")
    for number in range(30):
        stamps.write(tmp_path / str(number), given)
        os.utime(stamps.stamp_path(tmp_path / str(number)), (number, number))
        assert len(os.listdir(tmp_path / "bart-export" / "stamps")) <= 8
    kept = [number for number in range(30) if stamps.read(tmp_path / str(number)) == given]
    assert kept == list(range(kept[0], 30)) and len(kept) >= 6


WRITING = """
import os, sys
from bart_export.artifact import stamps
stamps.MOST = 8
given = stamps.stamp(os.stat("/"), 64 * "0")
for number in range(300):
    stamps.write(f"/{sys.argv[1]}-{number}", given)
"""


def test_several_processes_may_drop_stamps_at_once(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITING, str(name)], env=environment, stderr=subprocess.PIPE
        )
        for name in range(4)
    ]
    assert [writer.communicate()[1] for writer in writers] == 4 * [b""]
    left = list((tmp_path / "bart-export" / "stamps").iterdir())
    assert 6 <= len(left) <= 8 + len(writers)
    assert all(path.suffix == ".json" for path in left)
