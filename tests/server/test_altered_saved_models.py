"""An artifact's SavedModel is loaded only if its files match the manifest."""

import shutil

import pytest

from bart_export.errors import ArtifactError
from bart_export.server import open_version
from bart_export.server.metrics import Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.versions import TENSORFLOW, ServedModel, list_files

OPTIONS = ServeOptions(warmup=False, workers=1)


@pytest.fixture
def directory(saved_model_artifact, tmp_path):
    """Return a copy of an artifact with a SavedModel."""
    return shutil.copytree(saved_model_artifact.directory, tmp_path / "made")


def serve(version):
    """Open a version directory as the server does, and close it again."""
    served = ServedModel(name="m", base_path=version.parent, engine=TENSORFLOW)
    open_version.opener(OPTIONS, Metrics())(served, int(version.name), version).close()


def alter(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"comple", b"HACKED") if b"comple" in content else
                     content[:-1] + bytes([content[-1] ^ 1]))  # fmt: skip


def add(path):
    path.parent.mkdir(exist_ok=True)
    path.touch()


def link_folder(path):
    path.rmdir()
    path.symlink_to(path.parents[3])


FILES = (
    "saved_model.pb",
    "fingerprint.pb",
    "batching_params.pbtxt",
    "assets.extra/tf_serving_warmup_requests",
    "variables/variables.index",
    "variables/variables.data-00000-of-00001",
)
UNNAMED = ("saved_model.cpb", "saved_model.pbtxt", "assets/words.txt", ".hidden")
# What is done to which file of a version, and the reason of the refusal.
HARM = [
    *[(alter, file, f"{file} does not match its manifest") for file in FILES],
    *[(add, file, f"{file} is not in the manifest") for file in UNNAMED],
    (link_folder, "assets", "assets is not in the manifest"),
]


def test_a_version_with_its_manifest_files_is_served(directory):
    version = directory / "saved_model/1"
    there = {path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file()}
    assert there == set(FILES)
    serve(version)


@pytest.mark.parametrize(("harm", "file", "reason"), HARM)
def test_an_altered_version_is_refused_by_name(directory, harm, file, reason):
    harm(directory / "saved_model/1" / file)
    with pytest.raises(ArtifactError, match=reason):
        serve(directory / "saved_model/1")


def test_the_manifest_is_found_behind_a_link(directory, tmp_path):
    (tmp_path / "models").symlink_to(directory / "saved_model")
    alter(directory / "saved_model/1/saved_model.pb")
    with pytest.raises(ArtifactError, match="altered or damaged"):
        serve(tmp_path / "models/1")
    before = list_files(tmp_path / "models/1")
    (directory / "manifest.json").touch()
    assert list_files(tmp_path / "models/1") != before


def test_a_version_missing_from_the_manifest_is_refused(directory):
    shutil.copytree(directory / "saved_model/1", directory / "saved_model/2")
    before = list_files(directory / "saved_model/2")
    with pytest.raises(ArtifactError, match="2/.* is not in the manifest"):
        serve(directory / "saved_model/2")
    # Loaded again once the manifest has been copied, too.
    (directory / "manifest.json").touch()
    assert list_files(directory / "saved_model/2") != before


@pytest.mark.parametrize("neighbour", [None, b'{"name": "of another program"}'])
def test_a_foreign_saved_model_needs_no_manifest(directory, neighbour):
    (directory / "manifest.json").unlink()
    if neighbour:
        (directory / "manifest.json").write_bytes(neighbour)
    alter(directory / "saved_model/1/fingerprint.pb")
    serve(directory / "saved_model/1")
