"""Damaged, missing and full files and disks end in a line that names them, and nothing is lost.

Every row of a table damages a file and has words of the error. The artifact at the output is
compared byte for byte afterwards.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import made_up_artifacts
from support.command import COMMAND, printed, refusal, run
from support.edited_checkpoints import copy, edit_json, edit_tensors
from support.made_up_artifacts import contents
from support.mounts import run_on_mount

import bart_export

MINI = Path(bart_export.__file__).parent / "assets/bart_mini_en"


def one_line(text):
    assert text.startswith("Error: ")
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def empty(path):
    path.write_bytes(b"")


def flip(position):
    """Return a function that flips a bit; a negative position counts from the end."""

    def flip_bit(path):
        content = bytearray(path.read_bytes())
        content[position] ^= 0x40
        path.write_bytes(content)

    return flip_bit


def change_json(**changes):
    return lambda path: edit_json(path, **changes)


def narrow(path):
    name = "model.encoder.layers.0.fc1.weight"
    edit_tensors(path.parent, lambda tensors: {**tensors, name: tensors[name][:, :-1].copy()})


# A file of a checkpoint, the damage, and words of the error. tests/checkpoints has many more.
CHECKPOINTS = {
    "weights truncated": ("hugging_face/model.safetensors", truncate, ["model.safetensors"]),
    "weights of another shape": (
        "hugging_face/model.safetensors", narrow,
        ["model.safetensors", "encoder.layers.0.fc1.weight", "[128, 63]", "[128, 64]"],
    ),
    "vocabulary cut": ("hugging_face/vocab.json", truncate, ["vocab.json"]),
    "weights of a preset missing": ("keras/model.weights.h5", Path.unlink, ["model.weights.h5"]),
    "merges of a preset missing": (
        "keras/assets/tokenizer/merges.txt", Path.unlink, ["merges.txt"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("file", "harm", "words"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_damaged_checkpoint_is_named_and_nothing_is_exported(tmp_path, file, harm, words):
    preset, output = tmp_path / "preset", tmp_path / "made"
    source, _, file = file.partition("/")
    if source == "keras":
        shutil.copytree(MINI, preset)
    else:
        copy(preset)
    made_up_artifacts.write(output, {"a": b"before"})
    before = contents(output)
    harm(preset / file)
    line = refusal("--preset", preset, "--target", "tflite", "--output", output)
    assert [word for word in words if word not in line] == []
    assert contents(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "preset"]


@pytest.fixture
def artifact(symmetric_artifact, tmp_path):
    shutil.copytree(symmetric_artifact.directory, tmp_path / "made")
    return tmp_path / "made"


TFLITE, VOCABULARY = "tflite/float32.tflite", "tokenizer/vocabulary.json"
ARTIFACT = {
    "manifest edited": ("manifest.json", change_json(preset="mine"), "edited"),
    "manifest missing": ("manifest.json", Path.unlink, "not a finished artifact"),
    "model truncated": (TFLITE, truncate, "altered or damaged"),
    "a bit of the model flipped": (TFLITE, flip(-5000), "altered or damaged"),
    "vocabulary missing": (VOCABULARY, Path.unlink, "No such file"),
    "merges empty": ("tokenizer/merges.txt", empty, "altered or damaged"),
}


@pytest.mark.parametrize("name", ARTIFACT)
@pytest.mark.parametrize("command", [("generate", "A text."), ("verify",)], ids=lambda one: one[0])
def test_a_damaged_artifact_is_refused_by_name(artifact, name, command):
    file, harm, words = ARTIFACT[name]
    printed("generate", artifact, "A text.")
    harm(artifact / file)
    line = refusal(command[0], artifact, *command[1:])
    assert words in line
    assert Path(file).name in line
    assert "xport" in line and "again" in line


def test_verify_reads_every_byte_whatever_the_time_of_change_says(artifact):
    path = artifact / TFLITE
    printed("verify", artifact)
    status = path.stat()
    flip(-5000)(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "altered or damaged" in refusal("verify", artifact)


@pytest.mark.parametrize("harm", [flip(50), empty, Path.unlink])
def test_golden_answers_that_were_altered_are_not_replayed(artifact, harm):
    harm(artifact / "golden.json")
    assert "golden.json" in refusal("verify", artifact)
    printed("generate", artifact, "A text.")


def test_inputs_and_outputs_that_cannot_be_read_or_written(artifact, tmp_path):
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"text": "A text."}\n')
    result = tmp_path / "out.jsonl"

    def refuse(*arguments):
        return refusal("generate", artifact, *arguments)

    assert "nothing.txt" in refuse("--input", tmp_path / "nothing.txt", "--output", result)
    assert "Is a directory" in refuse("--input", tmp_path, "--output", result)
    assert "nowhere" in refuse("--input", rows, "--output", tmp_path / "nowhere/out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "made"]


def test_an_export_that_fails_its_verification_ends_with_exit_code_1(tmp_path, monkeypatch):
    from bart_export.graph import layers

    preset, output = copy(tmp_path / "preset"), tmp_path / "made"
    made_up_artifacts.write(output, {"a": b"before"})
    before = contents(output)
    monkeypatch.setattr(layers, "EPSILON", 1e-2)
    arguments = ["--preset", preset, "--target", "tflite", "--recipe", "float32"]
    result = run(*arguments, "--output", output)
    assert result.exit_code == 1
    line = one_line(result.stderr)
    assert "tflite/float32.tflite differs from the Keras model" in line
    assert contents(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "preset"]


def test_a_full_disk_in_the_middle_of_an_export(tmp_path):
    """The first export fits, a second one beside it does not."""
    preset = copy(tmp_path / "preset")
    mount = tmp_path / "mount"
    mount.mkdir()
    script = (
        "import pathlib, sys\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "from support import command, made_up_artifacts\n"
        "target = pathlib.Path(sys.argv[1]) / 'made'\n"
        "made = made_up_artifacts.write(target, {'a': b'before' * 50_000})\n"
        "done = command.python(command.PROGRAM, '--preset', sys.argv[2], '--target', 'tflite',\n"
        "    '--recipe', 'float32', '--output', target)\n"
        "assert [path.name for path in target.parent.iterdir()] == ['made']\n"
        "made.path('a', rehash=True)\n"
        "print(done.returncode, done.stdout)\n"
        "print(done.stderr, end='', file=sys.stderr)\n"
    )
    arguments = [mount, preset, os.path.dirname(__file__)]
    done = run_on_mount(mount, "size=800k", [sys.executable, "-c", script, *arguments])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 \n"
    line = one_line(done.stderr)
    assert "No space left on device. Free some space" in line
    assert str(mount) in line


def test_a_disk_too_full_for_the_converter(tmp_path):
    """The converter writes its input to a file beside the draft."""
    preset = copy(tmp_path / "preset")
    mount = tmp_path / "mount"
    mount.mkdir()
    export = ["--preset", preset, "--target", "tflite", "--output", mount / "made"]
    done = run_on_mount(mount, "size=60k", [*COMMAND, *export])
    assert done.returncode == 2, done.stderr
    line = one_line(done.stderr)
    assert str(mount) in line
    assert "No space left on device. Free some space" in line


def test_a_whole_journey_leaves_no_word_on_standard_error(tmp_path):
    """Export, generate, verify: each in a separate process, until it ends."""
    preset, output = copy(tmp_path / "preset"), tmp_path / "made"
    for arguments in (
        ["--preset", preset, "--target", "tflite", "--recipe", "float32", "--output", output],
        ["generate", output, "A text."],
        ["generate", output, "A text.", "--stream"],
        ["verify", output],
        ["inspect", output],
    ):
        environment = {**os.environ}
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
        done = subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, env=environment
        )
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert done.stdout
