"""Which engine serves what lies at a place, and which complete versions are found there."""

import dataclasses
import shutil

import pytest
from support import made_up_artifacts
from support.served_directories import add_version, served

from bart_export.artifact.manifest import FileEntry
from bart_export.errors import ArtifactError
from bart_export.server.sources import LITERT, TENSORFLOW, ServedModel, choose_engine, find_versions

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
def test_directories_named_by_a_number_are_versions(base_path, names, versions):
    for name in names:
        add_version(base_path, name)
    found = find_versions(served(base_path))
    assert found == {number: base_path / name for number, name in versions.items()}


def test_a_link_to_a_directory_is_a_version(base_path, tmp_path):
    (base_path / "3").symlink_to(add_version(tmp_path / "elsewhere", 1))
    assert find_versions(served(base_path)) == {3: base_path / "3"}


def test_a_directory_without_a_graph_is_no_version_yet(base_path):
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


def test_an_artifact_is_its_one_version_and_another_when_it_is_exported_again(
    tmp_path, monkeypatch
):
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
    (lambda directory: (directory / FILE).unlink(), "a.tflite cannot be read"),
    (lambda directory: (directory / FILE).write_bytes(b"1"), "a.tflite has 1 of 2 bytes"),
    (lambda directory: (directory / "manifest.json").unlink(), "has no manifest.json"),
    (edit_manifest, "edited or damaged"),
    (shutil.rmtree, "is not a directory"),
]


@pytest.mark.parametrize(("harm", "words"), HARM)
def test_an_artifact_that_is_not_complete_is_no_version(tmp_path, harm, words):
    made_up_artifacts.write(tmp_path / "a", {FILE: b"12"})
    harm(tmp_path / "a")
    with pytest.raises(ArtifactError) as error:
        find_versions(artifact_model(tmp_path / "a"))
    assert words in str(error.value)


def test_a_saved_model_of_an_artifact_is_as_complete_as_its_manifest_says(tmp_path):
    files = {"saved_model/1/saved_model.pb": b"12", FILE: b"12"}
    made_up_artifacts.write(tmp_path / "a", files)
    model = served(tmp_path / "a/saved_model")
    (tmp_path / "a/tflite/a.tflite").unlink()
    assert find_versions(model) == {1: tmp_path / "a/saved_model/1"}
    (tmp_path / "a/saved_model/1/saved_model.pb").write_bytes(b"1")
    with pytest.raises(ArtifactError, match=r"saved_model\.pb has 1 of 2 bytes"):
        find_versions(model)


@pytest.fixture
def make_artifact(tmp_path, monkeypatch):
    """Return a function that makes an artifact with a file for each of some targets."""
    fields = made_up_artifacts.manifest

    def with_targets(files, *rest):
        named = {
            name: FileEntry(entry.bytes, entry.sha256, name.split("/")[0])
            if not name.startswith("tflite")
            else entry
            for name, entry in files.items()
        }
        return fields(named, *rest)

    monkeypatch.setattr(made_up_artifacts, "manifest", with_targets)

    def make(*targets):
        contents = {f"{target}/1/file": b"" for target in targets}
        made_up_artifacts.write(tmp_path / "a", contents)
        return tmp_path / "a"

    return make


# The targets of an artifact, the engine requested, and the engine and subdirectory chosen.
ENGINES = [
    (["saved_model", "tflite"], None, (LITERT, ".")),
    (["tflite", "saved_model"], TENSORFLOW, (TENSORFLOW, "saved_model")),
    (["edgetpu", "saved_model"], None, (TENSORFLOW, "saved_model")),
]


@pytest.mark.parametrize(("targets", "requested", "chosen"), ENGINES)
def test_an_artifact_is_served_by_the_fastest_engine(make_artifact, targets, requested, chosen):
    directory = make_artifact(*targets)
    engine, subdirectory = chosen
    assert choose_engine(directory, requested) == (engine, directory / subdirectory)


@pytest.mark.parametrize("requested", [None, TENSORFLOW])
@pytest.mark.parametrize("exists", [True, False])
def test_anything_else_is_a_saved_model(tmp_path, requested, exists):
    if exists:
        add_version(tmp_path / "model", 1)
    assert choose_engine(tmp_path / "model", requested) == (TENSORFLOW, tmp_path / "model")


# The targets of an artifact, the engine requested, and words of the refusal.
WITHOUT_FILES = [
    (
        ["tflite"],
        TENSORFLOW,
        "for the engine tensorflow. Export it again with --target saved_model, or use the engine "
        "litert.",
    ),
    (["saved_model"], LITERT, "no files of the target tflite for the engine litert"),
    (
        ["edgetpu"],
        None,
        "no files of the target tflite or saved_model. Export it again with --target tflite.",
    ),
]


@pytest.mark.parametrize(("targets", "requested", "words"), WITHOUT_FILES)
def test_an_engine_without_files_is_refused(make_artifact, targets, requested, words):
    with pytest.raises(ArtifactError) as error:
        choose_engine(make_artifact(*targets), requested)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_litert_serves_artifacts_alone(tmp_path):
    add_version(tmp_path, 1)
    with pytest.raises(ArtifactError, match=r"engine litert serves artifacts, but .* no manifest"):
        choose_engine(tmp_path, LITERT)


def test_a_version_directory_is_no_base_path(tmp_path):
    with pytest.raises(ArtifactError, match="one version of a SavedModel") as error:
        choose_engine(add_version(tmp_path / "model", 1))
    assert f"accepted would be {tmp_path / 'model'}." in str(error.value)
