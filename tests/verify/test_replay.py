"""Replaying golden.json finds files whose answers have changed."""

import dataclasses
import json

import pytest
from support.command import run
from support.made_up_artifacts import variant

from bart_export.artifact import artifact
from bart_export.artifact.figures import Golden
from bart_export.errors import ArtifactError, VerificationFailed
from bart_export.recipes.table import ROUNDING
from bart_export.runtime.generator import Generator
from bart_export.verify import golden
from bart_export.verify.checks import ReplayResult, replay

FLOAT_FILE, INT8_FILE = "tflite/float32.tflite", "tflite/dynamic_wi8_afp32.tflite"


def with_golden(artifact, target, change):
    """Return a copy of an artifact with a changed golden.json."""

    def write(draft):
        content = json.loads((draft.directory / "golden.json").read_bytes())
        change(content)
        (draft.directory / "golden.json").write_text(json.dumps(content))
        return {"golden.json": draft.entry("golden.json")}

    return variant(artifact, target, write)


def test_an_artifact_repeats_its_answers(mini_artifact):
    assert replay(mini_artifact) == [ReplayResult(FLOAT_FILE, 9, 9), ReplayResult(INT8_FILE, 9, 9)]


def forget(file, count):
    """Return a change that replaces a file's answers in some cases."""

    def change(content):
        for case in content["cases"][:count]:
            case["files"][file]["token_ids"] = [2, 2]

    return change


def test_unreadable_golden_answers_are_not_written(mini_artifact, tmp_path):
    path, content = tmp_path / "golden.json", mini_artifact.golden()
    artifact.write_golden(path, content)
    assert Golden.from_dict(json.loads(path.read_bytes())) == content
    with pytest.raises(ArtifactError, match=r"golden\.json could not be read back: cases must be"):
        artifact.write_golden(path, Golden(112 * content.cases))


def test_a_float_file_must_repeat_all_answers_and_a_rounded_one_most(mini_artifact, tmp_path):
    made = with_golden(mini_artifact, tmp_path / "float", forget(FLOAT_FILE, 1))
    result = run("verify", made.directory)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert f"{FLOAT_FILE} repeated 8 of its 9" in result.stderr
    some = with_golden(mini_artifact, tmp_path / "some", forget(INT8_FILE, 4))
    assert replay(some)[1] == ReplayResult(INT8_FILE, 5, 9)
    most = with_golden(mini_artifact, tmp_path / "most", forget(INT8_FILE, 5))
    with pytest.raises(VerificationFailed, match="4 of its 9"):
        replay(most)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("cases"),
        lambda content: content["cases"][0].pop("source_token_ids"),
        lambda content: [case["files"].pop(FLOAT_FILE) for case in content["cases"]],
        lambda content: content["cases"][0].pop("files"),
        lambda content: content["cases"][0]["generation"].update(num_beams=0),
        lambda content: content.update(cases=[3]),
        lambda content: content.update(cases=112 * content["cases"]),
        lambda content: content["cases"][0]["generation"].update(num_beams=9000, max_length=60),
        lambda content: content["cases"][0].update(source_token_ids=(1 << 18) * [5]),
    ],
)
def test_incomplete_or_too_large_golden_answers_are_refused(symmetric_artifact, tmp_path, change):
    made = with_golden(symmetric_artifact, tmp_path / "made", change)
    with pytest.raises(ArtifactError, match=r"golden\.json.*Export the artifact again"):
        replay(made)


def test_a_question_uses_the_settings_of_its_case(symmetric_artifact, tmp_path):
    def shorten(content):
        for case in content["cases"]:
            case["generation"].update(max_length=2, min_length=0)

    made = with_golden(symmetric_artifact, tmp_path / "made", shorten)
    with pytest.raises(VerificationFailed):
        replay(made)


def test_a_near_tie_may_change_an_answer(mini_artifact, tmp_path):
    """Another processor may add in a different order and break a near-tie differently."""
    generator = Generator.from_artifact(mini_artifact.directory, recipe="float32", num_threads=1)
    noise = 0.5

    def exchange(content):
        for case, recorded in zip(content["cases"], mini_artifact.golden().cases, strict=True):
            asked = (recorded.text, recorded.source_token_ids, recorded.setting)
            question = golden.Question(*asked, recorded.generation)
            perturbed = golden.PerturbedModel(generator.engine, noise, seed=1)
            answer = golden.ask(perturbed, generator.tokenizer, question)
            case["files"][FLOAT_FILE]["token_ids"] = list(answer.token_ids)

    made = with_golden(mini_artifact, tmp_path / "made", exchange)
    with pytest.raises(VerificationFailed, match="of its 9"):
        replay(made)
    rows = [
        dataclasses.replace(row, float32=noise / ROUNDING) if row.file == FLOAT_FILE else row
        for row in made.manifest.verification
    ]
    manifest = dataclasses.replace(made.manifest, verification=tuple(rows))
    assert replay(dataclasses.replace(made, manifest=manifest))[0] == ReplayResult(FLOAT_FILE, 9, 9)
