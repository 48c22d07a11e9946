"""Drafts: their names are unpredictable, and only those of killed exports are removed.

What killed exports leave at any moment is tried in tests/export/test_killed_export.py.
"""

import json
import multiprocessing
import os

import pytest
from support import made_up_artifacts
from support.made_up_artifacts import FILES, names

from bart_export.artifact import drafts
from bart_export.artifact.artifact import Artifact
from bart_export.errors import ArtifactError

spawn = multiprocessing.get_context("spawn")


def begin_draft(target, pipe):
    with drafts.draft(target) as draft:
        (draft.directory / "half").write_bytes(b"half")
        pipe.send("begun")
        pipe.poll(60)


@pytest.fixture
def other_export(made):
    """Run an export to the target in another process until the test ends."""
    pipe, theirs = spawn.Pipe()
    other = spawn.Process(target=begin_draft, args=(made.directory, theirs))
    other.start()
    theirs.close()
    assert pipe.recv() == "begun"
    yield other
    pipe.close()
    other.join(60)


def test_a_second_export_to_the_same_place_is_refused(made, other_export, tmp_path):
    before = names(tmp_path)
    with (
        pytest.raises(ArtifactError, match="Another export is writing"),
        drafts.draft(made.directory),
    ):
        pytest.fail("two drafts at once")
    assert names(tmp_path) == before


def test_exports_to_neighbours_do_not_wait_for_each_other(made, other_export, tmp_path):
    assert made_up_artifacts.write(tmp_path / "made.2", FILES)
    assert made_up_artifacts.write(tmp_path / "mad", FILES)


def test_names_cannot_be_foreseen(made):
    seen = set()
    for _ in range(20):
        with drafts.draft(made.directory) as draft:
            seen.add(draft.directory.parent.name)
            assert draft.directory.parent.stat().st_mode & 0o777 == 0o700
    assert len(seen) == 20


# What lies beside the target, named as earlier versions' drafts were or as those of now are.
NAMES = (".made.draft", ".made.previous", ".made.abcdefgh.draft", ".made.0_123456.draft")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["a link", "a directory", "a file"])
def test_what_is_named_like_a_draft_and_not_marked_is_left_alone(tmp_path, name, kind):
    photos = tmp_path / "victim/photos"
    photos.mkdir(parents=True)
    (photos / "1.jpg").write_bytes(b"precious")
    if kind == "a link":
        (tmp_path / name).symlink_to(tmp_path / "victim")
    elif kind == "a directory":
        photos.parent.rename(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(b"precious")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    for content in (b"first", b"second"):
        made_up_artifacts.write(tmp_path / "made", {"a": content})
    after = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    assert sorted(path for path in after if path.parts[0] != "made") == before
    precious = [path for path in tmp_path.rglob("*") if path.suffix == ".jpg"]
    assert all(path.read_bytes() == b"precious" for path in precious)


@pytest.fixture
def place(tmp_path):
    """Make a place for drafts of `made` without a marker, like an export that is killed early."""
    (tmp_path / ".made.abcdefgh.draft").mkdir()
    return tmp_path / ".made.abcdefgh.draft"


MARK = {"target": "made", "pid": 1}


def write_mark(path):
    path.write_text(json.dumps(MARK))


MARKS = {
    "for another target": lambda path: path.write_text('{"target": "other"}'),
    "no mark of ours": lambda path: path.write_text("mine"),
    "a list": lambda path: path.write_text("[]"),
    "a pipe": os.mkfifo,
    "a directory": os.mkdir,
    "a link": lambda path: (write_mark(path.with_name("real")), path.symlink_to("real")),
}


@pytest.mark.parametrize("kind", MARKS)
def test_a_place_with_another_mark_is_left_alone(tmp_path, place, kind):
    (place / "artifact").mkdir()
    MARKS[kind](place / drafts.MARKER)
    before = names(place)
    made_up_artifacts.write(tmp_path / "made", FILES)
    assert names(place) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_the_place_of_another_user_is_left_alone(tmp_path, place):
    write_mark(place / drafts.MARKER)
    os.chown(place, 12345, 12345)
    made_up_artifacts.write(tmp_path / "made", FILES)
    assert names(tmp_path) == [place.name, "made"]
    assert names(place) == [drafts.MARKER]


def test_a_link_in_a_draft_that_is_removed_is_not_followed(made, tmp_path, place):
    (place / "scratch").mkdir()
    write_mark(place / drafts.MARKER)
    (place / "artifact").symlink_to(made.directory)
    (place / "scratch/link").symlink_to(made.directory)
    made_up_artifacts.write(tmp_path / "other", FILES)
    with drafts.draft(made.directory):
        assert not place.exists()
    assert Artifact.open(made.directory).path("tflite/a.tflite", rehash=True)


def test_an_artifact_is_not_put_back_over_another(made, tmp_path, place):
    made_up_artifacts.write(place / drafts.PREVIOUS, {"b": b"older"})
    write_mark(place / drafts.MARKER)
    with drafts.draft(made.directory):
        pass
    assert names(tmp_path) == ["made"]
    assert Artifact.open(made.directory).path("tflite/a.tflite", rehash=True)


def test_a_directory_that_somebody_locks_delays_an_export_and_no_more(made, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(drafts, "PATIENCE", 0.1)
    descriptor = os.open(made.directory.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        made_up_artifacts.write(made.directory, FILES)
    finally:
        os.close(descriptor)


def test_what_came_to_lie_at_the_target_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "made"
    with pytest.raises(ArtifactError, match="is not empty"), drafts.draft(target) as draft:
        target.mkdir()
        (target / "letter").write_text("Dear ...")
        (draft.directory / "a").write_bytes(b"a")
        draft.commit(made_up_artifacts.manifest({"a": draft.entry("a")}))
    assert names(tmp_path) == ["made"]
    assert (target / "letter").read_text() == "Dear ..."


def test_a_long_name_leaves_room_for_a_place(tmp_path):
    target = tmp_path / ("n" * 240)
    assert made_up_artifacts.write(target, FILES)
    assert made_up_artifacts.write(target, FILES)
    assert names(tmp_path) == [target.name]
