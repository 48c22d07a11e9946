"""What an export keeps of an artifact that it replaces, and what it refuses to replace."""

import dataclasses
import os
import re

import pytest
from support import made_up_artifacts
from support.made_up_artifacts import EMPTY, FILES, with_files

from bart_export.artifact import drafts
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.manifest import SourceEntry
from bart_export.errors import ArtifactError
from bart_export.export import export_manifest

ANOTHER = SourceEntry("another", None, "keras", "0")


def keep_of(draft, made, written=()):
    described = dataclasses.replace(made.manifest, source=ANOTHER, files={})
    return export_manifest.carry_over(draft, described, written)[0]


def write_golden(directory):
    """Write a valid golden.json into an artifact, and return its entry."""
    (directory / "golden.json").write_text('{"cases": []}')
    return drafts.Draft(directory, directory).entry("golden.json").to_dict()


VERSION = {"target": "saved_model", "version": 1, "dtype": "float32"}


def test_nothing_outside_is_deleted_by_an_export_over_a_foreign_artifact(made, tmp_path):
    victims = [tmp_path / "victim.txt", tmp_path / "made2.txt"]
    for victim in victims:
        victim.write_text("precious")
    names = ["../victim.txt", str(victims[1]), "saved_model/../../victim.txt"]
    for name in names:
        with_files(made, **{name: {**EMPTY, **VERSION}})
        with drafts.draft(made.directory) as draft:
            assert keep_of(draft, made).files == {}
        assert [victim.read_text() for victim in victims] == 2 * ["precious"]


def test_a_foreign_file_takes_no_place_of_what_an_export_wrote(made):
    golden = write_golden(made.directory)
    for name in ("tokenizer/vocabulary.json", "saved_model/1/SAVED_model.pb", "saved_model/2/x"):
        (made.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (made.directory / name).write_bytes(b"")
    with_files(
        made,
        **{"golden.json": golden, "tokenizer/vocabulary.json": {**EMPTY, **VERSION}},
        **{"saved_model/1/SAVED_model.pb": {**EMPTY, **VERSION}},
        **{"saved_model/2/x": {**EMPTY, **VERSION}},
    )
    made = Artifact.open(made.directory)
    with drafts.draft(made.directory) as draft:
        for name in ("tokenizer/vocabulary.json", "saved_model/1/Saved_Model.pb"):
            (draft.directory / name).parent.mkdir(parents=True)
            (draft.directory / name).write_bytes(b"ours")
        assert list(keep_of(draft, made, ["saved_model/1/Saved_Model.pb"]).files) == [
            "saved_model/2/x"
        ]
        assert (draft.directory / "tokenizer/vocabulary.json").read_bytes() == b"ours"
        assert (draft.directory / "saved_model/1/Saved_Model.pb").read_bytes() == b"ours"


def test_what_people_edit_is_taken_over_and_links_in_it_are_not_followed(made, tmp_path):
    serving = made.directory / "serving"
    (serving / "deep").mkdir(parents=True)
    (serving / "deep/compose.yaml").write_text("mine")
    (serving / "zero").symlink_to("/dev/zero")
    (serving / "up").symlink_to("..")
    os.mkfifo(serving / "pipe")
    (made.directory / "golden.json").write_bytes(b"damaged")  # what is edited stays even so
    with drafts.draft(made.directory) as draft:
        keep_of(draft, made)
        ours = draft.directory / "serving"
        assert sorted(path.name for path in ours.iterdir()) == ["deep", "up", "zero"]
        assert os.readlink(ours / "zero") == "/dev/zero"
        assert (ours / "deep/compose.yaml").read_text() == "mine"


def test_a_folder_of_a_deployment_that_is_a_link_stays_one(made, tmp_path):
    (tmp_path / "mine").mkdir()
    (made.directory / "serving").symlink_to(tmp_path / "mine")
    with drafts.draft(made.directory) as draft:
        keep_of(draft, made)
        assert os.readlink(draft.directory / "serving") == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("name", "manifest", "said"),
    [
        ("notes.md", "whole", "notes.md"),
        ("tflite/mine.tflite", "whole", "tflite/mine.tflite"),
        (".git/config", "whole", ".git/config"),
        # A damaged manifest does not say what belongs into a folder.
        ("notes.md", "damaged", "notes.md"),
        (".git/config", "damaged", ".git"),
    ],
)
def test_an_artifact_with_something_else_in_it_is_not_replaced(made, name, manifest, said):
    (made.directory / name).parent.mkdir(exist_ok=True)
    (made.directory / name).write_text("precious")
    if manifest == "damaged":
        (made.directory / "manifest.json").write_text('"manifest_sha256"')
    with pytest.raises(ArtifactError, match=f'contains "{re.escape(said)}", which does not'):
        made_up_artifacts.write(made.directory, FILES)
    assert (made.directory / name).read_text() == "precious"


def test_what_systems_and_readers_leave_is_in_nobodys_way(made):
    made.path("tflite/a.tflite")
    for name in (".DS_Store", "tflite/Thumbs.db", ".cache/x.xnnpack", "serving/mine.yaml"):
        (made.directory / name).parent.mkdir(exist_ok=True)
        (made.directory / name).write_text("")
    assert made_up_artifacts.write(made.directory, FILES)
