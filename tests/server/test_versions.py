"""The complete versions of a model, and the directories that hold them."""

import dataclasses
import shutil

import pytest
from support import made_up_artifacts
from support.served_directories import add_version, served

from bart_export.errors import ArtifactError
from bart_export.server.versions import LITERT, ServedModel, find_versions

# Names of directories, and the versions that they are.
NAMES = [
    (["1", "2", "10"], {1: "1", 2: "2", 10: "10"}),
    (["00000123"], {123: "00000123"}),
    (["01", "1", "001"], {1: "1"}),
    (["0"], {0: "0"}),
    (["a", "1a", "v1", "-1", "+1", " 1", "1.0", ".1", "1~", "temp-2", "Ⅳ", "٣"], {}),
    (["9223372036854775807", "9223372036854775808"], {2**63 - 1: "9223372036854775807"}),
]


@pytest.fixture
def base_path(tmp_path):
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.mark.parametrize(("names", "versions"), NAMES)
def test_numbered_directories_are_versions(base_path, names, versions):
    for name in names:
        add_version(base_path, name)
    found = find_versions(served(base_path))
    assert found == {number: base_path / name for number, name in versions.items()}


def test_a_link_to_a_directory_is_a_version(base_path, tmp_path):
    (base_path / "3").symlink_to(add_version(tmp_path / "elsewhere", 1))
    assert find_versions(served(base_path)) == {3: base_path / "3"}


def test_a_directory_without_a_graph_is_not_a_version(base_path):
    (add_version(base_path, 1) / "saved_model.pb").rename(base_path / "graph")
    assert find_versions(served(base_path)) == {}


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_bytes(b"")])
def test_a_base_path_that_cannot_be_listed_is_an_error(tmp_path, make):
    make(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"model cannot be listed: .* directory"):
        find_versions(served(tmp_path / "model"))


def artifact_model(directory):
    return ServedModel(name="a", base_path=directory, engine=LITERT)


FILE = "tflite/a.tflite"


def test_an_artifact_is_one_version_numbered_by_its_exports(tmp_path, monkeypatch):
    fields = made_up_artifacts.manifest
    for exports in (1, 2, 7):
        monkeypatch.setattr(
            made_up_artifacts,
            "manifest",
            lambda *arguments, exports=exports: dataclasses.replace(
                fields(*arguments), exports=exports
            ),
        )
        made_up_artifacts.write(tmp_path / "a", {FILE: b"12"})
        assert find_versions(artifact_model(tmp_path / "a")) == {exports: tmp_path / "a"}


def edit_manifest(directory):
    path = directory / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")


# What happens to an artifact, and words of the line that says so.
HARM = [
    (lambda directory: (directory / "manifest.json").unlink(), "has no manifest.json"),
    (edit_manifest, "edited or damaged"),
    (shutil.rmtree, "is not a directory"),
]


@pytest.mark.parametrize(("harm", "words"), HARM)
def test_an_artifact_without_a_valid_manifest_is_an_error(tmp_path, harm, words):
    made_up_artifacts.write(tmp_path / "a", {FILE: b"12"})
    harm(tmp_path / "a")
    with pytest.raises(ArtifactError) as error:
        find_versions(artifact_model(tmp_path / "a"))
    assert words in str(error.value)
