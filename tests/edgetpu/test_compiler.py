"""What Coral's compiler prints is read into values; the compiler itself is not to be had here."""

import pytest
from support.compiler_logs import REFUSED, TWO_FILES, install

from bart_export.edgetpu import compiler
from bart_export.edgetpu.compiler import LogRow
from bart_export.edgetpu.rules import DATA_TYPE, MAPPED, RANK
from bart_export.errors import EngineError


def test_a_log_of_two_files_is_read_file_by_file():
    log = compiler.parse(TWO_FILES)
    assert log.version == "16.0.384591198"
    assert log.errors == ()
    whole, parted = log.files
    assert whole.file == "here/layer_0_feedforward.tflite"
    assert whole.output == "there/layer_0_feedforward_edgetpu.tflite"
    assert whole.on_chip_bytes == 6.5 * 2**20
    assert whole.remaining_bytes == 1.25 * 2**10
    assert whole.streamed_bytes == 0
    assert whole.subgraphs == 1
    assert whole.rows == (
        LogRow("CONV_2D", 2, MAPPED),
        LogRow("LOGISTIC", 1, MAPPED),
        LogRow("MUL", 1, MAPPED),
    )
    assert whole.passes
    assert parted.streamed_bytes == 3.25 * 2**20
    assert parted.rows == (
        LogRow("QUANTIZE", 1, MAPPED),
        LogRow("TFLite_Detection_PostProcess", 1, DATA_TYPE),
        LogRow("RESHAPE", 1, RANK),
        LogRow("RESHAPE", 2, MAPPED),
    )
    assert not parted.passes


def test_a_log_of_a_refusal_has_its_errors_and_no_file():
    log = compiler.parse(REFUSED)
    assert log.files == ()
    assert log.errors[0].startswith("ERROR: Didn't find op for builtin opcode 'EXP' version '2'")
    assert log.errors[-1] == "Model could not be parsed"


def test_files_are_compiled_together_into_a_directory(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, TWO_FILES)
    (tmp_path / "out").mkdir()
    paths = [tmp_path / "one.tflite", tmp_path / "two.tflite"]
    for path in paths:
        path.write_bytes(path.name.encode())
    log = compiler.compile_files(paths, tmp_path / "out")
    assert len(log.files) == 2
    assert (tmp_path / "out" / "one_edgetpu.tflite").read_bytes() == b"one.tflite"
    assert (tmp_path / "out" / "two_edgetpu.tflite").read_bytes() == b"two.tflite"


@pytest.mark.parametrize("log", [REFUSED, "Internal compiler error. Aborting!\n"])
def test_what_the_compiler_complains_of_is_said_in_one_line(log, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, log, status=1)
    with pytest.raises(EngineError, match="'EXP' version '2'|Internal compiler error") as raised:
        compiler.compile_files([tmp_path / "log.txt"], tmp_path)
    assert "\n" not in str(raised.value)


def test_a_compiler_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler.program() is None
    with pytest.raises(EngineError, match="edgetpu_compiler is not on PATH"):
        compiler.compile_files([tmp_path / "file.tflite"], tmp_path)
