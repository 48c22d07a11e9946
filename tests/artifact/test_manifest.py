"""A manifest's declarations read what exports write, and write what was read."""

import dataclasses
import json

import pytest
from support import made_up_artifacts
from support.made_up_artifacts import CONFIG
from support.paths import DATA

from bart_export.artifact.artifact import Artifact
from bart_export.artifact.manifest import (
    FileEntry,
    Manifest,
)
from bart_export.documents import parse_json
from bart_export.errors import ArtifactError

OLD = DATA / "artifacts/first/manifest.json"
DIGEST = "0" * 64
ARTIFACTS = ["symmetric_artifact", "static_artifact", "saved_model_artifact"]


def text(manifest):
    return json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False).encode() + b"\n"


def test_the_first_artifact_s_manifest_is_written_as_it_was():
    assert text(Manifest.from_dict(parse_json(OLD.read_bytes()))) == OLD.read_bytes()


@pytest.mark.parametrize("name", ARTIFACTS)
def test_what_an_export_writes_is_written_again_byte_for_byte(request, name):
    artifact = request.getfixturevalue(name)
    content = (artifact.directory / "manifest.json").read_bytes()
    assert text(Artifact.open(artifact.directory).manifest) == content


def test_what_nobody_declared_stays_where_it_was(symmetric_artifact):
    fields = symmetric_artifact.manifest.to_dict()
    name = "tflite/float32.tflite"
    fields = {"of_a_later_version": {"a": [1, None]}, **fields}
    fields["files"][name] = {"of_a_later_version": 3, **fields["files"][name]}
    fields["verification"][0]["of_a_later_version"] = "x"
    read = Manifest.from_dict(fields)
    assert json.dumps(read.to_dict()) == json.dumps(fields)
    changed = dataclasses.replace(read, exports=7).to_dict()
    assert changed == {**fields, "exports": 7}
    assert list(changed) == list(fields)


def made(**changes):
    """Return a made-up manifest's fields, some of them changed or, if `...`, removed."""
    fields = made_up_artifacts.manifest({"a": FileEntry(5, DIGEST)}).to_dict() | changes
    return {name: value for name, value in fields.items() if value is not ...}


TFLITE = {"bytes": 1, "sha256": DIGEST, **made_up_artifacts.EXPORTED, "layers": []}


def entry(**changes):
    return {"files": {"a": {**TFLITE, **changes}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameter_count": ...}, "lacks parameter_count"),
        ({"parameter_count": "1"}, "parameter_count must be a whole number from 1"),
        ({"generation": {"min_lengths": 1}}, "Unknown parameter"),
        ({"config": {**CONFIG.to_dict(), "num_heads": 3}}, "hidden_dim must be divisible"),
        ({"exports": 0}, "exports must be a whole number from 1 to 2^53, received 0"),
        ({"notes": None}, "notes must be a list, received null"),
        ({"source": {}}, "source lacks handle"),
        ({"tools": {"numpy": 2}}, 'tools."numpy" must be a string, received 2'),
        ({"files": {"a": []}}, 'files."a" must be an object, received []'),
        (entry(target=None), 'files."a".target must be a string, received null'),
        (entry(mode="x"), 'files."a".mode must be one of float, '),
        (entry(layers=[["a"]]), 'files."a".layers[0] must be a list of 2, received ["a"]'),
        (entry(runtimes={"x": ""}), 'files."a".runtimes."x" must be a version, received ""'),
        (entry(shapes={"source_lengths": []}), 'files."a".shapes lacks target_length'),
        (entry(calibration={}), 'files."a".calibration lacks texts'),
        ({"verification": [{"file": "a"}]}, "verification[0] lacks log_probabilities"),
        ({"verification": [{"file": "a", "top1": 2}]}, "verification[0] lacks logits"),
        ({"measurements": {}}, "measurements must be a list, received {}"),
        ({"encoder_sequence_length": 5000}, "must be at most max_sequence_length, 1024, received"),
        ({"tokenizer": {"vocabulary": "a", "merges": "b"}}, "names of files in the manifest, "),
    ],
)
def test_what_is_wrong_with_a_foreign_manifest_is_said_in_one_line(tmp_path, changes, words):
    made_up_artifacts.seal(tmp_path, made(**changes))
    with pytest.raises(ArtifactError) as error:
        Artifact.open(tmp_path)
    line = str(error.value)
    assert line.startswith(f"{tmp_path}/manifest.json is damaged: ") and line.endswith("again.")
    assert words in line


def test_a_record_is_a_frozen_dataclass():
    record = FileEntry(5, DIGEST)
    assert record == FileEntry(sha256=DIGEST, bytes=5) != dataclasses.replace(record, bytes=6)
    assert repr(record) == f"FileEntry(bytes=5, sha256='{DIGEST}', target=None)"
    assert {record: 1}[FileEntry(5, DIGEST)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.bytes = 6
    for values, named in [((5,), {}), ((5, DIGEST, None, None), {}), ((5, DIGEST), {"size": 6})]:
        with pytest.raises(TypeError, match="FileEntry takes found, bytes, sha256, target"):
            FileEntry(*values, **named)
