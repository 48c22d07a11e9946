"""Settings of a checkpoint, from an export to a call: each front end follows them alike."""

import shutil

import numpy as np
import pytest
from support.command import printed, refusal
from support.edited_checkpoints import edit_json
from support.paths import CASES

from bart_export.artifact.artifact import REPORT, Artifact
from bart_export.errors import InputError
from bart_export.runtime import Generator
from bart_export.server.litert_engine import ArtifactServable
from bart_export.server.messages import object_array
from bart_export.server.metrics import GenerationMetrics, Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.rest import text_and_parameters
from bart_export.server.servable import Call, Limits

CASE = CASES / "max-length-beyond-positions"
NOTE = (
    "max_length=41 from generation_config.json exceeds the model's 32 positions; it is lowered to "
    "32."
)


def output_of(*arguments):
    return " ".join(printed(*arguments).split())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return the artifact of a checkpoint that asks for more than its positions."""
    output = tmp_path_factory.mktemp("artifacts") / "case"
    said = output_of(
        "--preset", CASE, "--target", "tflite", "--recipe", "float32", "--output", output
    )
    assert NOTE in said
    return output


def test_rows_without_a_token_are_not_in_the_files(tmp_path):
    """The model likes row 280 of 288; the tokenizer has 267 tokens."""
    padded = CASE.parent / "padded-rows-generated"
    target = ("--target", "tflite", "--recipe", "float32", "--output", tmp_path / "padded")
    assert "the last 21 are left out" in output_of("--preset", padded, *target)
    artifact = Artifact.open(tmp_path / "padded")
    assert artifact.manifest.rows_without_token == 21
    assert artifact.config.vocabulary_size == 267
    result = Generator.from_artifact(artifact.directory).generate("the an in", num_beams=4)
    assert all(token < 267 for token in result.token_ids)


def test_a_bound_on_rouge_needs_references(tmp_path):
    bound = "--target", "tflite", "--tolerance", "rouge_l=1", "--output", tmp_path / "made"
    assert "needs texts with references" in refusal("--preset", CASE, *bound)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_says_whose_its_settings_are(exported):
    assert Artifact.open(exported).generation.max_length == 32
    for inspected in (exported, CASE):
        assert NOTE in output_of("inspect", inspected)
    assert NOTE in " ".join((exported / REPORT).read_text(encoding="utf-8").split())


def test_what_is_asked_by_default_can_be_answered(exported):
    output_of("generate", exported, "the an in")
    assert len(Generator.from_artifact(exported).generate("the an in").token_ids) <= 32


def test_every_front_end_lowers_a_shortest_length_that_a_call_leaves_alone(tmp_path):
    preset = shutil.copytree(CASE, tmp_path / "preset")
    settings = {"max_new_tokens": ..., "max_length": 24, "min_length": 12, "num_beams": 4}
    edit_json(preset / "generation_config.json", **settings)
    exported = tmp_path / "exported"
    target = "--target", "tflite", "--recipe", "float32", "--output", exported
    output_of("--preset", preset, *target)
    generator = Generator.from_artifact(exported)
    text = "the an in"
    expected = generator.generate(text, max_length=8, min_length=8)
    assert generator.generate(text, max_length=8).token_ids == expected.token_ids
    assert generator.generate(text, max_new_tokens=7).token_ids == expected.token_ids
    assert len(generator.generate(text).token_ids) >= 12

    metrics = GenerationMetrics(Metrics(), "case")
    servable = ArtifactServable(exported, 1, ServeOptions(), metrics)
    inputs = {"text": object_array([text.encode()]), "max_length": np.array([8], np.int32)}
    call = Call(signature="generate_text", inputs=inputs, outputs=("generated_text",))
    (served,) = servable.submit(call).result(60)["generated_text"]
    assert served[0].decode() == expected.text

    streamed_text, parameters = text_and_parameters({"text": text, "max_new_tokens": 7})
    pieces = []
    servable.stream(
        streamed_text, parameters, lambda piece, tokens: pieces.append(piece), Limits()
    ).result(60)
    assert "".join(pieces) == expected.text
    servable.close()


def test_new_tokens_are_a_flag(exported):
    output_of("generate", exported, "the an in", "--max-new-tokens", 7)
    with pytest.raises(InputError, match="32 positions, received 33"):
        Generator.from_artifact(exported).generate("the", max_new_tokens=32)
    both = "--max-new-tokens", 7, "--max-length", 8
    assert "set the same length" in refusal("generate", exported, "the", *both)
