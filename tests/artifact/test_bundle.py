"""The bundle for Android: an artifact with one file, written atomically."""

import dataclasses
import hashlib
import json
import shutil

import pytest
from support import made_up_artifacts
from support.command import printed, run
from support.made_up_artifacts import contents
from support.paths import SYMMETRIC

from bart_export.artifact import bundle
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.figures import Answer, Golden, GoldenCase
from bart_export.cli import export as export_command
from bart_export.config import GenerationConfig
from bart_export.errors import ArtifactError
from bart_export.runtime.generator import Generator

FILE = "tflite/float32.static.tflite"
TEXT = "A river rose."
MEGABYTE = 1_000_000


def export(output, target, *arguments):
    sizes = ("--source-lengths", "64,512", "--target-length", "24", "--num-beams", "4")
    return run(
        *("--preset", SYMMETRIC, "--target", "tflite", "--recipe", "float32", *sizes),
        *("--output", output, "--android", target, *arguments),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory, symmetric_artifact):
    """Return what an export beside a dynamic build printed, its artifact, and its bundle."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(symmetric_artifact.directory, folder / "made")
    result = export(folder / "made", folder / "bart")
    assert result.exit_code == 0, result.output
    return result.output, Artifact.open(folder / "made"), Artifact.open(folder / "bart")


@pytest.fixture
def earlier(exported, tmp_path):
    """Return a bundle that a test may replace."""
    shutil.copytree(exported[2].directory, tmp_path / "bart")
    return tmp_path / "bart"


def test_a_bundle_has_what_an_app_needs_and_nothing_else(exported):
    _, made, bundled = exported
    tokenizer = ["tokenizer/vocabulary.json", "tokenizer/merges.txt"]
    assert set(contents(bundled.directory)) == {FILE, *tokenizer, "golden.json", "manifest.json"}
    assert set(bundled.manifest.files) == {FILE, *tokenizer, "golden.json"}
    for name in (FILE, *tokenizer):
        assert bundled.manifest.files[name] == made.manifest.files[name]
    for name, entry in bundled.manifest.files.items():
        content = bundled.path(name, rehash=True).read_bytes()
        assert entry.sha256 == hashlib.sha256(content).hexdigest()


def test_no_bucket_is_longer_than_what_the_preset_reads(exported):
    _, _, bundled = exported
    assert bundled.manifest.encoder_sequence_length == 64
    assert bundled.manifest.files[FILE].shapes.source_lengths == (64,)


def test_its_manifest_says_of_the_file_what_the_artifact_says(exported):
    _, made, bundled = exported
    whole, part = made.manifest.to_dict(), bundled.manifest.to_dict()
    changed = {name for name in whole if whole[name] != part[name]}
    assert changed == {"manifest_sha256", "files", "verification", "measurements"}
    assert set(part) == set(whole)
    for field in ("verification", "measurements"):
        rows = [row for row in whole[field] if row["file"] == FILE]
        assert part[field] == rows
        assert len(rows) == 1 < len(whole[field])


def test_its_golden_answers_are_the_files_own(exported):
    _, made, bundled = exported
    cases, mine = (
        json.loads(one.path("golden.json").read_bytes())["cases"] for one in (made, bundled)
    )
    assert [{**case, "files": {FILE: case["files"][FILE]}} for case in cases] == mine
    assert len(mine) == 9
    assert any(len(case["files"]) > 1 for case in cases)


def test_a_case_that_the_file_did_not_answer_is_left_out():
    answer = Answer((2,), "", 0.0)
    case = GoldenCase(
        "a", (0, 2), "greedy", GenerationConfig(), answer, {"b": answer, FILE: answer}
    )
    other = dataclasses.replace(case, text="c", files={"b": answer})
    kept = bundle.answers_of(FILE, Golden((case, other)))
    assert kept.cases == (dataclasses.replace(case, files={FILE: answer}),)


def test_commands_take_a_bundle_and_it_says_what_the_artifact_says(exported):
    _, made, bundled = exported
    told = run("generate", bundled.directory, TEXT)
    expected = Generator.from_artifact(made.directory, shapes="static").generate(TEXT)
    assert (told.exit_code, told.output) == (0, f"{expected.text}\n")
    assert expected.token_ids == Generator.from_artifact(bundled.directory).generate(TEXT).token_ids
    verified = run("verify", bundled.directory)
    assert verified.exit_code == 0, verified.output
    assert f"{FILE}: 9 of 9 golden answers" in verified.output
    assert FILE in printed("inspect", bundled.directory)


def test_the_export_says_where_the_bundle_is_and_what_it_takes(exported):
    output, _, bundled = exported
    size = sum(len(content) for content in contents(bundled.directory).values())
    assert bundle.size(bundled) == size
    (line,) = (line for line in output.splitlines() if "Android:" in line)
    assert line.startswith(f"Bundle for Android: {bundled.directory}, {size / 1e6:.1f} MB")
    assert output.endswith(f"{line}\n")
    assert "Open android/" not in output


def test_an_earlier_bundle_is_replaced_whole(exported, earlier):
    (earlier / "left").write_text("by hand")
    with pytest.raises(ArtifactError, match='"left", which does not belong to the artifact'):
        bundle.write(exported[1], "float32", earlier)
    assert (earlier / "left").read_text() == "by hand"
    (earlier / "left").unlink()
    new = bundle.write(exported[1], "float32", earlier)
    assert contents(earlier) == contents(exported[2].directory)
    assert new.manifest == exported[2].manifest
    assert [path.name for path in earlier.parent.iterdir()] == ["bart"]


def test_an_export_that_fails_verification_leaves_no_bundle(tmp_path):
    failed = export(tmp_path / "made", tmp_path / "bart", "--tolerance", "logits=1e-9")
    assert failed.exit_code == 1
    assert "differs from" in failed.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("", "mine", "is a file"),
        ("notes.txt", "mine", "is not empty and has no manifest.json"),
        ("manifest.json", '{"name": "mine"}', "is not empty and has no manifest.json"),
        ("manifest.json", None, "is a full artifact, not a bundle"),
    ],
)
def test_a_place_that_is_taken_is_refused_before_anything_is_done(
    symmetric_artifact, exported, tmp_path, name, content, words
):
    place = tmp_path / "taken"
    if content is None:
        shutil.copytree(symmetric_artifact.directory, place)
    else:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(content)
    before = contents(place)
    refused = export(tmp_path / "made", place)
    assert refused.exit_code == 2
    assert words in refused.output
    assert len(refused.output.splitlines()) == 1
    with pytest.raises(ArtifactError, match=words):
        bundle.write(exported[1], "float32", place)
    assert contents(place) == before
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_link_to_the_artifact_is_the_artifact(exported, tmp_path):
    (tmp_path / "bart").symlink_to(exported[1].directory)
    with pytest.raises(ArtifactError, match="must be outside the artifact"):
        bundle.write(exported[1], "float32", tmp_path / "bart")


def test_an_artifact_without_the_static_build_is_refused(symmetric_artifact, tmp_path):
    with pytest.raises(ArtifactError, match="no static build of float32"):
        bundle.write(symmetric_artifact, "float32", tmp_path / "bart")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (1, None),
        (200 * MEGABYTE, None),
        (200 * MEGABYTE + 1, ("200.0 MB for an app's base module", "Play Asset Delivery")),
        (1500 * MEGABYTE, ("200.0 MB for an app's base module", "a bundle of 1.5 GB")),
        (1500 * MEGABYTE + 1, ("1.5 GB for an asset pack", "download it after")),
        (4001 * MEGABYTE, ("4.0 GB for the total delivered", "download it after")),
    ],
)
def test_what_google_play_takes(size, words):
    line = bundle.warning(size)
    if words is None:
        assert line is None
        return
    assert "\n" not in line
    for word in (*words, "smaller recipe"):
        assert word in line


def test_a_bundle_beyond_a_limit_is_warned_of_on_a_line_of_its_own(tmp_path, monkeypatch):
    small = made_up_artifacts.write(tmp_path / "bart", {"a": b"a" * 1000})
    assert len(list(export_command.bundle_lines(small))) == 1
    limit = bundle.Limit(1000, "a test", "Wait")
    monkeypatch.setattr(bundle, "LIMITS", (limit,))
    first, second = export_command.bundle_lines(small)
    assert first.startswith("Bundle for Android")
    assert "for a test" in second
    assert "Wait, or export a smaller recipe." in second
