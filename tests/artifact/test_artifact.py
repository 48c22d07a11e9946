"""The artifact directory: complete or absent, sealed, and careful with existing files."""

import dataclasses
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from support import made_up_artifacts
from support.made_up_artifacts import FILES, flip, names
from support.mounts import run_on_mount

from bart_export.artifact import drafts
from bart_export.artifact.artifact import Artifact
from bart_export.errors import ArtifactError


def test_a_committed_artifact_is_read_back_and_leaves_nothing_beside_it(made, tmp_path):
    assert names(tmp_path) == ["made"]
    assert made.config == made_up_artifacts.CONFIG
    for name, content in FILES.items():
        assert made.path(name).read_bytes() == content
    assert list(made.files("tflite")) == list(FILES)
    assert made.files("saved_model") == {}


EDITED = "edited or damaged after the export"
# What changes a manifest's text, without a new hash, and words of the error.
DAMAGE = {
    "a digit changed": (lambda text: text.replace(b'"bytes": 5000', b'"bytes": 5001'), EDITED),
    "a space added": (lambda text: text + b" ", EDITED),
    "the hash changed": (
        lambda text: re.sub(rb'(?<=sha256": ")[0-9a-f]{64}', b"f" * 64, text, count=1), EDITED,
    ),
    "the hash gone": (lambda text: re.sub(rb' "manifest_sha256": "\w+",\n', b"", text), EDITED),
    "cut in half": (lambda text: text[: len(text) // 2], "must be the JSON of a manifest"),
    "emptied": (lambda text: b"", 'received "" (Expecting value'),
    "not text": (lambda text: b"\xff\xfe" + text, "must be the JSON of a manifest"),
    "a list": (lambda text: b"[]", "it has no format_version"),
    "newer": (
        lambda text: text.replace(b'"format_version": 1', b'"format_version": 2'),
        "format_version 1, received 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_manifest_is_refused_by_name(made, change, words):
    path = made.directory / "manifest.json"
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    with pytest.raises(ArtifactError) as error:
        Artifact.open(made.directory)
    line = str(error.value)
    assert words in line and str(path) in line
    assert re.search("[Ee]xport (it|the artifact) again", line)


def test_places_without_artifact_are_told_apart(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        Artifact.open(tmp_path / "empty")
    with pytest.raises(ArtifactError, match="is not a directory"):
        Artifact.open(tmp_path / "nowhere")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_file_that_may_not_be_read_is_not_to_be_exported_again(made):
    path, root = made.directory / "tflite/a.tflite", os.geteuid() == 0
    path.chmod(0)
    if root:
        os.seteuid(65534)  # permissions do not apply to root
    try:
        with pytest.raises(ArtifactError) as error:
            made.path("tflite/a.tflite", rehash=True)
    finally:
        if root:
            os.seteuid(0)
    assert str(error.value).endswith("cannot be read: Permission denied. Check its permissions.")


def test_a_file_the_manifest_does_not_name_is_not_handed_out(made):
    (made.directory / "tflite/b.tflite").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"no file tflite/b\.tflite.*tflite/a\.tflite"):
        made.path("tflite/b.tflite")


HARMS = {
    "removed": (lambda path: path.unlink(), "No such file"),
    "shortened": (lambda path: path.write_bytes(b"short"), "it has 5 bytes, not 5000"),
    "flipped": (flip, "it has the right size, 5000 bytes, but different content"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "not a regular file"),
    "without its folder": (
        lambda path: (shutil.rmtree(path.parent), path.parent.write_bytes(b"")),
        "Not a directory",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("hashed", [False, True], ids=["never hashed", "hashed before"])
def test_a_harmed_file_is_refused_by_name(made, harm, hashed):
    if hashed:
        made.path("tflite/a.tflite")
    change, words = HARMS[harm]
    path = made.directory / "tflite/a.tflite"
    change(path)
    with pytest.raises(ArtifactError, match=f"^{re.escape(str(path))} .*{words}"):
        made.path("tflite/a.tflite")


def test_a_file_hashed_for_one_manifest_is_hashed_again_for_another(made):
    made.path("tflite/a.tflite")
    entry = dataclasses.replace(made.manifest.files["tflite/a.tflite"], sha256="0" * 64)
    manifest = dataclasses.replace(made.manifest, files={"tflite/a.tflite": entry})
    other = dataclasses.replace(made, manifest=manifest)
    with pytest.raises(ArtifactError, match="altered"):
        other.path("tflite/a.tflite")


EXCHANGES = {
    "by an exchange": drafts.EXCHANGES,
    "by two renames": {},
    # What an old file system refuses: a flag that it does not know.
    "by two renames after EINVAL": {sys.platform: (*drafts.EXCHANGES["linux"][:2], 1 << 20)},
}


@pytest.mark.parametrize("exchanges", EXCHANGES.values(), ids=EXCHANGES)
def test_an_artifact_takes_the_place_of_another_whole(made, tmp_path, monkeypatch, exchanges):
    monkeypatch.setattr(drafts, "EXCHANGES", exchanges)
    inode = made.directory.stat().st_ino
    made.path("tflite/a.tflite")
    new = made_up_artifacts.write(made.directory, {"tflite/b.tflite": b"second"})
    assert names(tmp_path) == ["made"]
    assert names(new.directory) == ["manifest.json", "tflite"]
    assert names(new.directory / "tflite") == ["b.tflite"]
    assert new.directory.stat().st_ino != inode


def test_a_draft_that_fails_leaves_the_artifact_and_nothing_else(made, tmp_path):
    before = (made.directory / "manifest.json").read_bytes()
    with pytest.raises(KeyError), drafts.draft(made.directory) as draft:
        (draft.directory / "half").write_bytes(b"half")
        raise KeyError
    assert names(tmp_path) == ["made"]
    assert (made.directory / "manifest.json").read_bytes() == before


def test_a_draft_is_never_taken_for_an_artifact(tmp_path):
    with drafts.draft(tmp_path / "made") as draft:
        (draft.directory / "a").write_bytes(b"a")
        entries = {"a": draft.entry("a")}
        for directory in (draft.directory, tmp_path / "made"):
            with pytest.raises(ArtifactError):
                Artifact.open(directory)
        draft.commit(made_up_artifacts.manifest(entries))
    assert Artifact.open(tmp_path / "made").path("a")


@pytest.mark.parametrize("links", [True, False])
def test_files_are_taken_over_by_hard_link_where_that_can_be(made, monkeypatch, links):
    def refuse(source, path):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    name = "tflite/a.tflite"
    inode = made.path(name).stat().st_ino
    with drafts.draft(made.directory) as draft:
        draft.take(made.path(name), name)
        assert draft.entry(name).sha256 == made.manifest.files[name].sha256
        draft.commit(made_up_artifacts.manifest({name: draft.entry(name)}))
    assert (Artifact.open(made.directory).path(name).stat().st_ino == inode) is links


def refused(target):
    """Return the error for a target that is refused before anything is written."""
    parent = target.parent if target.parent.exists() else None
    before = parent and names(parent)
    with pytest.raises(ArtifactError) as error, drafts.draft(target):
        pytest.fail("a draft was made")
    assert (parent and names(parent)) == before
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("", "mine", "place is a file"),
        ("letters", "mine", "is not empty and has no manifest.json"),
        # Of a web application or an extension.
        ("manifest.json", '{"manifest_version": 3}', "is not empty and has no manifest.json"),
    ],
)
def test_what_is_no_artifact_is_not_replaced(tmp_path, name, content, words):
    path = tmp_path / "place" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert words in refused(tmp_path / "place")
    assert path.read_text() == content


def test_the_current_directory_is_not_pulled_away(made, monkeypatch):
    for current, target in ((made.directory / "tflite", made.directory), (made.directory, ".")):
        monkeypatch.chdir(current)
        assert "current directory" in refused(Path(target))
    assert Artifact.open(made.directory)


def test_a_damaged_artifact_may_be_replaced(made):
    (made.directory / "manifest.json").write_bytes(b'{"manifest_sha256": ')
    (made.directory / "golden.json").unlink()
    new = made_up_artifacts.write(made.directory, FILES)
    assert new.path("golden.json")


@pytest.mark.parametrize("place", ["made", "a/b/made"])
def test_an_empty_directory_may_become_an_artifact_and_parents_are_made(tmp_path, place):
    (tmp_path / "made").mkdir()
    assert made_up_artifacts.write(tmp_path / place, FILES).path("golden.json")


@pytest.mark.parametrize("there", [True, False], ids=["to an artifact", "to nothing yet"])
def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path, there):
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.mkdir()
    if there:
        made_up_artifacts.write(disk / "made", FILES)
    link.symlink_to(disk / "made")
    made_up_artifacts.write(link, {"b": b"second"})
    assert link.is_symlink()
    assert names(disk) == ["made"]
    assert names(disk / "made") == ["b", "manifest.json"]
    assert names(tmp_path) == ["disk", "link"]


def test_a_place_that_cannot_be_written_is_named():
    nowhere = Path("/proc/self/fdinfo")  # nobody, root included, makes a file there
    if not nowhere.is_dir():
        pytest.skip("needs a /proc")
    line = refused(nowhere / "made")
    assert line.startswith("Cannot write /proc/")
    assert "--output" in line


WRITE = f"""
import pathlib, sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from support import made_up_artifacts
from bart_export.errors import ArtifactError
target = pathlib.Path(sys.argv[1])
written = made_up_artifacts.write(target, {{"a": b"small"}}) if sys.argv[2] == "first" else None
before = sorted(target.parent.iterdir())
try:
    made_up_artifacts.write(target, {{"a": b"large" * 100_000}})
except ArtifactError as error:
    print(error)
if written:
    written.path("a", rehash=True)
assert sorted(target.parent.iterdir()) == before
"""


@pytest.mark.parametrize(
    ("options", "first", "words"),
    [
        ("size=100k", "first", "No space left on device. Free some space, or choose another place"),
        ("ro", "no first", "Read-only file system. Name a writable place"),
    ],
)
def test_a_full_or_read_only_disk_is_named_and_loses_nothing(tmp_path, options, first, words):
    done = run_on_mount(tmp_path, options, [sys.executable, "-c", WRITE, tmp_path / "made", first])
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"Cannot write \S+: {re.escape(words)} .*--output\.\n", done.stdout)
