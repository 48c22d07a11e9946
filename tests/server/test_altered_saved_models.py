"""A SavedModel of an artifact is loaded only while it is what the manifest says."""

import pathlib
import shutil

import pytest

from bart_export.errors import ArtifactError
from bart_export.server import opening, tensorflow_engine
from bart_export.server.metrics import Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.sources import TENSORFLOW, ServedModel

OPTIONS = ServeOptions(warmup=False, workers=1)


@pytest.fixture
def directory(saved_model_artifact, tmp_path):
    """Return a copy of an artifact with a SavedModel."""
    return shutil.copytree(saved_model_artifact.directory, tmp_path / "made")


def serve(version):
    """Open a version directory as the server does, and close it again."""
    served = ServedModel(name="m", base_path=version.parent, engine=TENSORFLOW)
    opening.opener(OPTIONS, Metrics())(served, int(version.name), version).close()


def alter(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"comple", b"HACKED") if b"comple" in content else
                     content[:-1] + bytes([content[-1] ^ 1]))  # fmt: skip


FILES = (
    "saved_model.pb",
    "fingerprint.pb",
    "batching_params.pbtxt",
    "assets.extra/tf_serving_warmup_requests",
    "variables/variables.index",
    "variables/variables.data-00000-of-00001",
)


def test_these_are_all_files_of_a_version(directory):
    version = directory / "saved_model/1"
    there = {path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file()}
    assert there == set(FILES)


def test_one_that_is_whole_is_served(directory):
    serve(directory / "saved_model/1")


@pytest.mark.parametrize("file", FILES)
def test_an_altered_file_is_refused_by_name(directory, file):
    alter(directory / "saved_model/1" / file)
    with pytest.raises(ArtifactError, match=f"{file} is not the file its manifest names"):
        serve(directory / "saved_model/1")


def test_a_link_to_the_versions_does_not_lead_past_the_manifest(directory, tmp_path):
    (tmp_path / "models").symlink_to(directory / "saved_model")
    serve(tmp_path / "models/1")
    alter(directory / "saved_model/1/saved_model.pb")
    with pytest.raises(ArtifactError, match="altered or damaged"):
        serve(tmp_path / "models/1")


@pytest.mark.parametrize(
    "file", ["saved_model.cpb", "saved_model.pbtxt", "assets/words.txt", ".hidden"]
)
def test_a_file_that_no_manifest_names_is_not_loaded(directory, file):
    path = directory / "saved_model/1" / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match=f"{file} is in no manifest"):
        serve(directory / "saved_model/1")


def test_a_folder_behind_a_link_is_not_loaded(directory, tmp_path):
    (directory / "saved_model/1/assets").rmdir()
    (directory / "saved_model/1/assets").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="assets is in no manifest"):
        serve(directory / "saved_model/1")


def test_a_version_that_no_manifest_names_is_not_loaded(directory):
    shutil.copytree(directory / "saved_model/1", directory / "saved_model/2")
    with pytest.raises(ArtifactError, match="2/.* is in no manifest"):
        serve(directory / "saved_model/2")


def test_what_was_altered_between_hash_and_loading_is_not_served(directory, monkeypatch):
    closed = []

    def load_late(path: pathlib.Path, options):
        servable = open_saved_model(path, options)
        alter(path / "variables/variables.data-00000-of-00001")
        monkeypatch.setattr(servable, "close", lambda: closed.append(servable))
        return servable

    open_saved_model = tensorflow_engine.open_saved_model
    monkeypatch.setattr(tensorflow_engine, "open_saved_model", load_late)
    with pytest.raises(ArtifactError, match="altered or damaged"):
        serve(directory / "saved_model/1")
    assert len(closed) == 1


@pytest.mark.parametrize("neighbour", [None, b'{"name": "of another program"}'])
def test_a_saved_model_from_elsewhere_needs_no_manifest(directory, neighbour):
    (directory / "manifest.json").unlink()
    if neighbour:
        (directory / "manifest.json").write_bytes(neighbour)
    alter(directory / "saved_model/1/fingerprint.pb")
    serve(directory / "saved_model/1")
