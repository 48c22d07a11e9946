"""An export leaves a whole, described artifact and keeps what one of the same source left."""

import dataclasses
import hashlib
import json
import shutil

import pytest
from safetensors.numpy import load_file
from support import edited_checkpoints, made_up_artifacts
from support.edited_checkpoints import edit_json
from support.golden_cases import preset_of
from support.made_up_artifacts import contents, flip
from support.paths import DISTILLED

from bart_export import documents
from bart_export.artifact import drafts
from bart_export.artifact.artifact import Artifact, sha256
from bart_export.artifact.figures import Golden
from bart_export.contract import StaticShapes
from bart_export.errors import ArtifactError
from bart_export.export.export_manifest import SAME, carry_over
from bart_export.export.options import TfliteOptions
from bart_export.export.pipeline import export
from bart_export.recipes.table import RECIPES, ROUNDING

# Random weights lose more to rounding than trained ones: what is tried here is not quality.
INT8 = dataclasses.replace(RECIPES["dynamic_wi8_afp32"], tolerance={"relative": 1.0, "top1": 0.0})
FLOAT32 = RECIPES["float32"]
FLOAT_FILE, INT8_FILE = "tflite/float32.tflite", "tflite/dynamic_wi8_afp32.tflite"


@pytest.fixture
def earlier(symmetric_artifact, tmp_path):
    """Return an artifact that a test may export over."""
    shutil.copytree(symmetric_artifact.directory, tmp_path / "made")
    return Artifact.open(tmp_path / "made")


def test_the_settings_of_a_preset_give_a_static_build_drafts(tmp_path):
    preset = edited_checkpoints.copy(tmp_path / "preset")
    edit_json(preset / "generation_config.json", prompt_lookup_num_tokens=6)
    shapes = StaticShapes((64,), 24, (1,))
    made = export(str(preset), TfliteOptions((FLOAT32,), shapes), tmp_path / "made")
    entry = made.manifest.files["tflite/float32.static.tflite"]
    assert entry.shapes == dataclasses.replace(shapes, draft_length=7)
    assert entry.signatures["decode_draft_64"].sizes == {"source": 64, "draft": 7, "capacity": 24}
    (row,) = made.manifest.verification
    assert set(row.signatures) == set(entry.signatures)


def test_every_file_is_in_the_manifest_with_its_size_and_hash(mini_artifact):
    files = contents(mini_artifact.directory)
    assert set(files) == {*mini_artifact.manifest.files, "manifest.json"}
    for name, entry in mini_artifact.manifest.files.items():
        assert entry.bytes == len(files[name])
        assert entry.sha256 == hashlib.sha256(files[name]).hexdigest()


def test_exported_files_name_their_recipe_and_runtimes(mini_artifact):
    entries = mini_artifact.manifest.tflite()
    assert [entry.recipe for entry in entries.values()] == ["float32", "dynamic_wi8_afp32"]
    assert set(entries[FLOAT_FILE].runtimes) == {"ai-edge-litert", "tflite-runtime"}
    assert set(entries[INT8_FILE].runtimes) == {"ai-edge-litert"}
    assert "wrong results" in entries[INT8_FILE].refusals["tflite-runtime"]


def test_the_manifest_describes_the_checkpoint(distilled_artifact):
    manifest, directory = distilled_artifact.manifest, DISTILLED
    weights = load_file(directory / "model.safetensors")
    # Hugging Face's position tables have two rows that no position uses.
    unused = sum(2 * array.shape[1] for name, array in weights.items() if "embed_positions" in name)
    assert manifest.parameter_count == sum(array.size for array in weights.values()) - unused
    assert manifest.source.weights_sha256 == sha256(directory / "model.safetensors")
    assert manifest.source.format == "hugging_face"
    assert (manifest.config.num_layers, manifest.config.decoder_layers) == (3, 1)
    stated, vocabulary = (
        json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("generation_config", "vocab")
    )
    stated.pop("transformers_version")
    assert stated.items() <= manifest.generation.to_dict().items()
    assert manifest.special_token_ids == {
        "start_token_id": 0,
        "pad_token_id": 1,
        "end_token_id": 2,
        "unknown_token_id": 3,
        "mask_token_id": vocabulary["<mask>"],
    }
    assert set(manifest.tools) >= {"bart-export", "tensorflow", "keras", "ai-edge-litert"}


def test_verification_rows_name_every_file(mini_artifact):
    rows = {row.file: row for row in mini_artifact.manifest.verification}
    assert list(rows) == list(mini_artifact.files("tflite"))
    assert 0 < rows[FLOAT_FILE].rounding < ROUNDING
    assert rows[FLOAT_FILE].tokens == 1.0
    assert 0 < rows[INT8_FILE].relative < 0.05


def test_golden_answers_hold_text_and_ids_that_agree(mini_artifact):
    from bart_export.runtime.generator import Generator

    tokenizer = Generator.from_artifact(mini_artifact.directory).tokenizer
    cases = json.loads(mini_artifact.path("golden.json").read_bytes())["cases"]
    assert len({(case["text"], case["setting"]) for case in cases}) == len(cases) == 9
    for case in cases:
        assert case["source_token_ids"] == tokenizer.encode(case["text"], 160, truncate=True)
        assert list(case["files"]) == [FLOAT_FILE, INT8_FILE]
        for answer in (case["reference"], *case["files"].values()):
            assert tokenizer.detokenize(answer["token_ids"]) == answer["text"]
        assert case["files"][FLOAT_FILE]["token_ids"] == case["reference"]["token_ids"]
    assert any("🐈" in case["text"] for case in cases)
    # Not nine times the same.
    assert len({tuple(case["reference"]["token_ids"]) for case in cases}) > 4


def test_another_recipe_joins_what_the_same_source_left(earlier):
    inode = earlier.path(FLOAT_FILE).stat().st_ino
    new = export(preset_of(earlier), TfliteOptions((INT8,)), earlier.directory)
    assert set(new.files("tflite")) == {FLOAT_FILE, INT8_FILE}
    assert new.path(FLOAT_FILE, rehash=True).stat().st_ino == inode
    rows = {row.file: row for row in new.manifest.verification}
    assert set(rows) == {FLOAT_FILE, INT8_FILE}
    assert rows[FLOAT_FILE] == earlier.manifest.verification[0]
    for case in json.loads(new.path("golden.json").read_bytes())["cases"]:
        assert set(case["files"]) == {FLOAT_FILE, INT8_FILE}


def test_an_artifact_of_another_source_is_replaced_whole(earlier, distilled_artifact):
    new = export(preset_of(distilled_artifact), TfliteOptions((INT8,)), earlier.directory)
    assert set(new.files("tflite")) == {INT8_FILE}
    assert not (new.directory / FLOAT_FILE).exists()
    assert new.config == distilled_artifact.config


@pytest.fixture
def small(tmp_path):
    files = {"tflite/a": b"a", "tflite/b": b"b", "golden.json": b'{"cases": []}'}
    return made_up_artifacts.write(tmp_path / "small", files)


def carried(artifact, **changes):
    """Return the files, rows and golden answers that a draft takes over from an artifact."""
    described = dataclasses.replace(artifact.manifest, files={}, verification=(), **changes)
    with drafts.draft(artifact.directory) as draft:
        kept, golden = carry_over(draft, described, ())
        names = {f"tflite/{path.name}" for path in draft.directory.glob("tflite/*")}
    assert set(kept.files) == names
    return names, kept.verification, golden


@pytest.mark.parametrize("name", ["tflite/b", "golden.json", "manifest.json"])
def test_nothing_of_a_damaged_artifact_is_kept(small, name):
    assert carried(small)[0] == {"tflite/a", "tflite/b"}
    flip(small.directory / name)
    assert carried(small) == (set(), (), Golden(()))


@pytest.mark.parametrize("field", SAME)
def test_nothing_is_kept_of_an_artifact_that_differs(small, field):
    name, _, inner = field.partition(".")
    value = getattr(small.manifest, name)
    changed = dataclasses.replace(value, **{inner: "1" * 64}) if inner else "another"
    assert carried(small, **{name: changed})[0] == set()


def test_the_place_of_the_weights_makes_no_difference(small):
    moved = dataclasses.replace(small.manifest.source, handle="./moved")
    assert carried(small, source=moved)[0] == {"tflite/a", "tflite/b"}


def test_a_file_that_is_written_anew_is_not_carried_over(earlier):
    with drafts.draft(earlier.directory) as draft:
        (draft.directory / "tflite").mkdir()
        (draft.directory / FLOAT_FILE).write_bytes(b"new")
        kept, _ = carry_over(draft, earlier.manifest, {FLOAT_FILE})
        assert kept.verification == ()
        assert (draft.directory / FLOAT_FILE).read_bytes() == b"new"


def test_a_failure_after_the_files_are_written_leaves_the_previous_artifact(earlier, monkeypatch):
    def fail(path):
        if path.name == "golden.json":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(documents, "synchronize", fail)
    before = contents(earlier.directory)
    with pytest.raises(ArtifactError, match="No space left"):
        export(preset_of(earlier), TfliteOptions((FLOAT32,)), earlier.directory)
    assert contents(earlier.directory) == before
    assert list(earlier.directory.parent.iterdir()) == [earlier.directory]
