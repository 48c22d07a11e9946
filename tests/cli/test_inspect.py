"""`bart-export inspect`, and the summary of an export."""

import dataclasses
import json
import re
import shutil

import pytest
from support import made_up_artifacts
from support.command import printed, refusal
from support.paths import SYMMETRIC

from bart_export.artifact.figures import FileVerification
from bart_export.cli import inspect as inspection
from bart_export.contract import saved_model_signatures
from bart_export.progress import WIDE, console, plural, text_table


def inspect(*arguments):
    return printed("inspect", *arguments)


def test_signatures_are_those_that_the_files_have(static_artifact, saved_model_artifact):
    static = json.loads(inspect(static_artifact.directory, "--json"))["signatures"]
    files = [name for name in static_artifact.manifest.files if ".static." in name]
    assert list(static) == ["tflite", *files]
    assert list(static["tflite"]) == ["encode", "decode", "decode_single", "decode_draft"]
    assert all("encode_160" in static[name] for name in files)
    served = json.loads(inspect(saved_model_artifact.directory, "--json"))["signatures"]
    assert set(served) == {"saved_model"}
    assert set(served["saved_model"]) == {one.name for one in saved_model_signatures()}


@pytest.mark.parametrize("name", ["symmetric_artifact", "static_artifact", "saved_model_artifact"])
def test_lines_can_be_read(request, name):
    artifact = request.getfixturevalue(name)
    text = inspect(artifact.directory)
    assert max(map(len, text.splitlines())) <= inspection.WIDTH
    assert not re.search(r"[{}]|\['|None|True|False", text)
    for row in artifact.manifest.verification:
        assert f"of {row.questions} golden texts equal" in " ".join(text.split())
    assert artifact.manifest.files["golden.json"].sha256[:16] in text


def test_tensors_that_differ_in_a_number_alone_share_a_line(symmetric_artifact):
    config = symmetric_artifact.config
    (line,) = re.findall("output  (cross_key.*)", inspect(symmetric_artifact.directory))
    shape = f"[1, {config.decoder_heads}, {config.decoder_head_size}, source]"
    assert line == f"cross_key_0 … {config.decoder_layers - 1}  float32 {shape}"


def test_versions_are_those_that_are_served(symmetric_artifact, saved_model_artifact):
    for artifact, versions in (
        (symmetric_artifact, {"litert": [1]}),
        (saved_model_artifact, {"tensorflow": [1]}),
    ):
        assert inspection.facts(str(artifact.directory))["served_versions"] == versions


def test_what_is_neither_an_artifact_nor_a_preset_is_told_both(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "made").mkdir()
    (tmp_path / "made/manifest.json").write_text('{"manifest_sha256": ""}')
    for given, words in (
        (tmp_path / "mde", f"Did you mean {tmp_path / 'made'}?"),
        ("bart_bse_en", "Did you mean bart_base_en?"),
        (tmp_path / "nothing", "neither an artifact's directory nor a preset"),
        (tmp_path / "file", "is not a directory"),
    ):
        assert words in refusal("inspect", given)


ROW = FileVerification(
    file="f", logits=0.2, spread=1.0, relative=0.1, kl=0.01, top1=41 / 42, steps=42, tokens=6 / 9,
    questions=9, signatures={},
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {},
            "the same most likely token in 41 of 42 steps, logits within 0.2, 6 of 9 golden texts",
        ),
        ({"tokens": None, "questions": 0}, "logits within 0.2, no golden text fits"),
    ],
)
def test_a_file_is_compared_in_numbers_of_things(changed, words):
    assert words in inspection.comparison(dataclasses.replace(ROW, **changed))


def test_a_table_that_no_terminal_shows_breaks_no_name(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == WIDE
    monkeypatch.setenv("COLUMNS", "60")
    assert console().width == 60


def foreign_artifact(tmp_path, **fields):
    """Return an artifact with a foreign manifest, which has these fields."""
    made = made_up_artifacts.write(tmp_path / "made", {"golden.json": b"{}"})
    made_up_artifacts.edit_manifest(made.directory, lambda stated: stated.update(fields))
    return made.directory


LONG = 5000 * "x"


@pytest.mark.parametrize("text", ["a\x1b[2J", "a\x9b2J", "a\nb", "a\u2028b", "a\u202eb", LONG])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: {"preset": text},
        lambda text: {"notes": ["fine", text]},
        lambda text: {"source": {text: None}},
        lambda text: {"tools": {"numpy": text}},
        lambda text: {"signatures": {"tflite": {text: {"inputs": {}, "outputs": {}}}}},
        lambda text: {"verification": [{"file": "f", "steps": {text: 1}}]},
    ],
)
def test_a_foreign_text_that_no_terminal_should_get_is_refused(tmp_path, change, text):
    line = refusal("inspect", foreign_artifact(tmp_path, **change(text)))
    assert "without control characters, received" in line
    assert len(line) < 1000 and line.isprintable()


@pytest.mark.parametrize("layers", [[["(a*)*b", "int8"]], 513 * [[".*", "int8"]]])
def test_foreign_expressions_that_take_long_are_refused(tmp_path, layers):
    entry = made_up_artifacts.entry(layers=layers).to_dict()
    line = refusal("inspect", foreign_artifact(tmp_path, files={"golden.json": entry}))
    assert "layers" in line and "at most" in line


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_names_of_a_foreign_preset_do_not_steer_a_terminal(tmp_path, options):
    directory = tmp_path / "tiny\x1b[2J\x9b2J"
    shutil.copytree(SYMMETRIC, directory)
    text = inspect(directory, *options)
    assert r"tiny\u001b[2J\u009b2J" in text
    assert all(map(str.isprintable, text.split("\n")))


def test_a_section_has_an_end():
    lines = list(inspection.lines({"notes": 3000 * ["word"]}))
    assert len(lines) == 1 + inspection.MOST_LINES + 1
    assert lines[-1] == "  … and 2000 more lines, which --json shows"


def test_a_table_has_no_markup_and_nothing_that_steers_a_terminal(capsys):
    made = text_table("[/red]", ("[bold]a",), [("[/x] \x1b[2J\nb",)])
    console().print(made, ":smile:")
    text = capsys.readouterr().out
    assert r"[/x] \u001b[2J" in text and "[bold]a" in text and ":smile:" in text
    assert all(map(str.isprintable, text.split("\n")))


def test_one_thing_is_not_several():
    assert [plural(number, "beam") for number in (0, 1, 4)] == ["0 beams", "1 beam", "4 beams"]
