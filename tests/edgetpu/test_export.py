"""An export for the Edge TPU is checked and measured, and writes headlines without a device."""

import numpy as np
import pytest
from support.command import python
from support.compiler_logs import TWO_FILES, install

from bart_export.artifact.drafts import Draft
from bart_export.checkpoints import resolve
from bart_export.edgetpu import parts
from bart_export.edgetpu.compiler import check_file
from bart_export.edgetpu.rules import NEWEST_VERSIONS
from bart_export.errors import ArtifactError, VerificationFailed
from bart_export.export import edgetpu_target as edgetpu_exporter
from bart_export.export.edgetpu_target import ENCODER_TOLERANCE
from bart_export.model import BartBackbone
from bart_export.runtime import Generator
from bart_export.runtime.engine_choice import open_engine
from bart_export.verify.golden import Question, ask
from bart_export.verify.reference import KerasReference

TEXT = (
    "A library for reading and writing compressed archives. It streams, so that files larger than "
    "memory can be handled, checks every entry, and never writes outside the target directory."
)


@pytest.fixture(scope="module")
def keras():
    checkpoint = resolve.read(resolve.find("bart_mini_en").directory)
    return KerasReference(BartBackbone.from_checkpoint(checkpoint))


@pytest.fixture(scope="module")
def engine(edgetpu_artifact):
    return open_engine(edgetpu_artifact, parts.HOST, parts.TARGET)


def test_every_segment_is_there_and_passes_the_rules(edgetpu_artifact):
    segments = parts.segments(edgetpu_artifact.config)
    assert len(segments) == 9
    entries = edgetpu_artifact.files("edgetpu")
    assert set(entries) == {parts.HOST, parts.CONSTANTS, *(one.file for one in segments)}
    hidden, wide = edgetpu_artifact.config.hidden_dim, edgetpu_artifact.config.intermediate_dim
    weights = {
        parts.ATTENTION_INPUT: 3 * hidden * hidden,
        parts.ATTENTION_OUTPUT: hidden * hidden,
        parts.FEEDFORWARD: 2 * hidden * wide,
    }
    for segment in segments:
        assert check_file(edgetpu_artifact.path(segment.file)).passes
        entry = entries[segment.file]
        # Beside the weights there are biases of four bytes.
        assert weights[segment.kind] < entry.parameter_bytes < 1.05 * weights[segment.kind]
        assert entry.streamed_bytes == 0
        assert entry.rows == 32
        assert entry.calibration.texts >= 3


def test_what_was_measured_is_in_the_manifest(edgetpu_artifact):
    (row,) = edgetpu_artifact.manifest.verification
    assert row.file == parts.HOST
    assert 0 < row.encoder < row.encoder_tolerance == ENCODER_TOLERANCE
    assert row.activation == pytest.approx(0.0203, abs=1e-4)
    assert 0 < row.tokens <= 1
    assert row.top1 > 0.9


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_the_orchestrated_encoder_is_the_whole_encoder(length, engine, keras):
    ids = np.random.default_rng(length).integers(4, 8192, (1, length), np.int32)
    expected = np.asarray(keras.encode(ids))[0]
    received = engine.backend.encoder(ids)
    assert received.shape == expected.shape
    spread = (expected - expected.mean(axis=-1, keepdims=True)).std()
    assert np.sqrt(np.mean((received - expected) ** 2)) < ENCODER_TOLERANCE * spread


def test_rows_do_not_depend_on_where_a_piece_ends(engine, edgetpu_artifact):
    segment = parts.Segment(0, parts.FEEDFORWARD)
    draw = np.random.default_rng(3)
    rows = draw.normal(size=(70, edgetpu_artifact.config.hidden_dim)).astype(np.float32)
    run = engine.backend.encoder.runners[segment.name].run
    assert np.array_equal(run(rows)[20:40], run(rows[20:40]))


def test_generating_needs_neither_a_device_nor_tensorflow(edgetpu_artifact):
    program = (
        "import sys; from bart_export.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'tensorflow', 'keras'} & set(sys.modules)), file=sys.stderr)"
    )
    run = python(program, "generate", edgetpu_artifact.directory, TEXT, "--engine", "edgetpu")
    assert run.returncode == 0, run.stderr
    assert "compressed" in run.stdout
    assert run.stdout.count("\n") == 1
    assert run.stderr == (
        "The encoder's segments run on the CPU: the artifact was exported without "
        "edgetpu_compiler.\n[]\n"
    )


def test_both_engines_over_both_targets_choose_their_own_files(edgetpu_artifact, mini_artifact):
    with pytest.raises(ArtifactError, match="--target edgetpu"):
        Generator.from_artifact(mini_artifact.directory, engine="edgetpu")
    with pytest.raises(ArtifactError, match="--target tflite"):
        Generator.from_artifact(edgetpu_artifact.directory)


def test_golden_answers_are_given_again(edgetpu_artifact):
    generator = Generator.from_artifact(edgetpu_artifact.directory, engine="edgetpu")
    for case in edgetpu_artifact.golden().cases:
        question = Question(case.text, case.source_token_ids, case.setting, case.generation)
        answer = ask(generator.engine, generator.tokenizer, question)
        assert answer.token_ids == case.files[parts.HOST].token_ids


def test_a_segment_that_breaks_a_rule_ends_the_export(edgetpu_artifact, monkeypatch):
    monkeypatch.setitem(NEWEST_VERSIONS, "CONV_2D", 1)
    draft = Draft(edgetpu_artifact.directory, edgetpu_artifact.directory)
    with pytest.raises(VerificationFailed, match="Didn't find op for builtin opcode"):
        edgetpu_exporter.check_segment(draft, parts.Segment(0, parts.FEEDFORWARD))


def test_the_compiler_is_run_on_all_segments_where_it_is_installed(
    edgetpu_artifact, tmp_path, monkeypatch
):
    segments = [parts.Segment(0, parts.FEEDFORWARD), parts.Segment(1, parts.FEEDFORWARD)]
    log = TWO_FILES.replace("other", "layer_1_feedforward")
    (tmp_path / "bin").mkdir()
    install(tmp_path / "bin", monkeypatch, log)
    (tmp_path / parts.DIRECTORY).mkdir()
    for segment in segments:
        (tmp_path / segment.file).write_bytes(edgetpu_artifact.path(segment.file).read_bytes())
    compiled = edgetpu_exporter.compile_segments(Draft(tmp_path, tmp_path), segments)
    assert list(compiled) == [segment.compiled_file for segment in segments]
    assert all((tmp_path / name).is_file() for name in compiled)
    assert [entry.compiler["passes"] for entry in compiled.values()] == [True, False]
