"""Hostile artifacts with a valid seal get an error line, and touch no files outside.

Nothing here may take long, and a pipe may be waited for without end: each test has seconds.
"""

import contextlib
import copy
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal

import pytest
from support import made_up_artifacts
from support.command import refusal
from support.made_up_artifacts import EMPTY, FILES, with_files

from bart_export.artifact import artifact, bundle, drafts
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.manifest import SourceEntry
from bart_export.cli import inspect
from bart_export.errors import ArtifactError, BartExportError
from bart_export.export import export_manifest
from bart_export.report import report
from bart_export.report.facts import reported_files
from bart_export.runtime.engine_choice import choose_file, engine_for, files_for
from bart_export.server import versions
from bart_export.server.models_config import choose_engine
from bart_export.verify.checks import artifact_files


@pytest.fixture(autouse=True)
def seconds():
    """Interrupt a test that hangs."""

    def interrupt(number, frame):
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(60)
    yield
    signal.alarm(0)


READERS = [("generate", "A text."), ("verify",), ("inspect",), ("bench",), ("serve",)]
readers = pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])

NAMES = (
    "/etc/passwd", "../victim.txt", "tflite/../../victim.txt", "tflite/./a", "tflite//a", "", "/",
    "tflite/", "tflite/a\x00b", "tflite\\..\\..\\victim.txt", "C:victim.txt", "C:/victim.txt",
    "manifest.json", "MANIFEST.json", ".cache/a", ".scratch/a", ".git/config", "tflite/.a",
    "TFLITE/a.tflite", "tflite/A.tflite", "tflite/a.tflite/b", "tflite", "tflite/a.", "tflite/a ",
    "tflite/\N{KELVIN SIGN}\n", "tflite/" + "a" * 2000, "a/" * 100 + "a", "a:b", "a\x1b[2J",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_none_for_a_file_inside_is_refused(made, name):
    with_files(made, **{name: EMPTY})
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged: .*again"):
        Artifact.open(made.directory)


@pytest.mark.parametrize("two", [("Kelvin", "\N{KELVIN SIGN}elvin"), ("\u00e9", "e\u0301")])
def test_names_that_some_file_system_takes_for_one_are_refused(made, two):
    with_files(made, **{f"tflite/{name}": EMPTY for name in two})
    with pytest.raises(ArtifactError, match="name the same file"):
        Artifact.open(made.directory)


@readers
def test_a_file_outside_is_not_read(made, command):
    passwd = pathlib.Path("/etc/passwd")
    entry = {"bytes": passwd.stat().st_size, "sha256": artifact.sha256(passwd)}
    with_files(made, **{"/etc/passwd": entry})
    assert "/etc/passwd" in refusal(command[0], made.directory, *command[1:])


@pytest.mark.parametrize("target", ["../victim", "/etc/passwd", "loop"])
def test_a_link_that_leads_out_is_refused_and_so_is_a_folder(made, tmp_path, target):
    (tmp_path / "victim").write_bytes(FILES["tflite/a.tflite"])
    path = made.directory / "tflite/a.tflite"
    path.unlink()
    path.symlink_to(tmp_path / "victim" if target == "../victim" else target)
    with pytest.raises(ArtifactError, match=r"leads out of the artifact|cannot be read"):
        made.path("tflite/a.tflite")
    (made.directory / "tflite").rename(tmp_path / "elsewhere")
    (made.directory / "tflite").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="leads out of the artifact"):
        made.path("tflite/a.tflite")


def test_links_within_an_artifact_and_to_it_are_followed(made, tmp_path):
    path = made.directory / "tflite/a.tflite"
    path.rename(made.directory / "tflite/real")
    path.symlink_to("real")
    (tmp_path / "link").symlink_to(made.directory)
    assert Artifact.open(tmp_path / "link").path("tflite/a.tflite", rehash=True)
    with drafts.draft(tmp_path / "other") as draft:
        draft.take(made.path("tflite/a.tflite", rehash=True), "tflite/a.tflite")
        carried = draft.directory / "tflite/a.tflite"
        assert not carried.is_symlink()
        assert carried.read_bytes() == FILES["tflite/a.tflite"]


# What may lie where a file should, and words of the line that says so.
SPECIAL = {
    "a pipe": (os.mkfifo, "not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "/dev/zero|not a regular file"),
    "a directory": (os.mkdir, "not a regular file"),
    "enormous": (
        lambda path: (path.touch(), os.truncate(path, 1 << 40)),
        "has 1099511627776 bytes|has more than",
    ),
}
special = pytest.mark.parametrize("kind", SPECIAL)


@special
@pytest.mark.parametrize("rehash", [False, True])
def test_what_is_no_file_is_refused_before_it_is_read(made, kind, rehash):
    path = made.directory / "tflite/a.tflite"
    path.unlink()
    put, words = SPECIAL[kind]
    put(path)
    with pytest.raises(ArtifactError, match=words):
        made.path("tflite/a.tflite", rehash=rehash)


@special
def test_a_manifest_that_is_no_file_is_refused(tmp_path, kind):
    put, words = SPECIAL[kind]
    put(tmp_path / "manifest.json")
    with pytest.raises(ArtifactError, match=words):
        Artifact.open(tmp_path)
    with pytest.raises(ArtifactError, match="is not empty"), drafts.draft(tmp_path):
        pytest.fail("a draft was made")


JUNK = {
    "nested lists": b"[" * 100_000, "nested objects": b'{"a":' * 100_000,
    "many lists": b"[" + b"[]," * 600_000 + b"[]]", "null": b"null", "zeros": bytes(1000),
    "a long number": b'{"format_version": ' + b"9" * 1_000_000,
    "a number twice": b'{"format_version": 1, "format_version": 1}',
    "NaN": b'{"format_version": NaN}', "beyond a float": b'{"format_version": 1e999}',
    "half a pair": b'{"format_version": "\\ud800"}',
    "too long": b" " * (artifact.MANIFEST_LIMIT + 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", JUNK)
def test_a_manifest_of_junk_gets_one_line(tmp_path, kind):
    (tmp_path / "manifest.json").write_bytes(JUNK[kind])
    assert "manifest.json" in refusal("inspect", tmp_path)


@pytest.mark.parametrize("name", ["o" * 5000, "a/" * 3000, "o/../zz/../yy"])
@readers
def test_a_place_that_cannot_be_gets_one_line(command, name):
    refusal(command[0], name, *command[1:])


# --- Types: whatever a manifest has where, nothing that reads it raises anything but our errors.

VALUES = (None, True, -1, 0, 1, 1.5, 2**53 + 1, 1e300, "", "x", "../x", [], [None], {}, {"x": 1})


def nodes(value, place=()):
    """Yield the path of every value in a manifest, but only the first two of each list."""
    yield place
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from nodes(inner, (*place, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:2]):
            yield from nodes(inner, (*place, number))


def changed(fields, place, value):
    """Return a manifest with another value at a path, or without the value if it is `...`."""
    fields = copy.deepcopy(fields)
    inner = fields
    for name in place[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return fields


def read_everything(directory, draft):
    """Open an artifact and use its manifest like all commands, without running its files."""
    opened = Artifact.open(directory)
    for row in opened.manifest.verification:
        inspect.summary(opened, row)
    another = dataclasses.replace(opened.manifest, source=ANOTHER)
    export_manifest.carry_over(draft, another, [])
    report.render(another, reported_files(another), ())
    for one in reported_files(opened.manifest):
        _ = one.label, one.kind, one.megabytes, one.rouge_loss
    choose_engine(directory)
    for engine in (versions.LITERT, versions.TENSORFLOW):
        versions.served_files(opened, engine)
    bundle.warning(bundle.size(opened))
    for read in (
        lambda: list(inspect.lines(inspect.artifact_facts(directory))),
        lambda: inspect.to_json(inspect.artifact_facts(directory)),
        lambda: artifact_files(opened, {}),
        lambda: bundle.static_file(opened, "float32"),
    ):
        with contextlib.suppress(BartExportError):
            read()
    files = files_for(opened, None)
    for name in files:
        engine_for(None, name, files, {"ai-edge-litert": "2.3.0"})
    choose_file(opened, "float32", None)


ANOTHER = SourceEntry("another", None, "keras", "0")


@pytest.fixture
def whole(static_artifact, tmp_path):
    """Return a copy of an artifact with dynamic and static files, and a SavedModel's entries."""
    directory = pathlib.Path(shutil.copytree(static_artifact.directory, tmp_path / "whole"))
    fields = json.loads((directory / "manifest.json").read_bytes())
    version = directory / "saved_model/1/saved_model.pb"
    version.parent.mkdir(parents=True)
    version.write_bytes(b"")
    memory = {"loaded": 1, "peak": 2, "measured": True}
    details = {"target": "saved_model", "version": 1, "dtype": "float32", "memory": memory}
    fields["files"]["saved_model/1/saved_model.pb"] = {**EMPTY, **details}
    figures = dict.fromkeys(("log_probabilities", "hidden", "tokens", "texts"), 0.5)
    row = {"file": "saved_model/1", **figures, "steps": 1, "questions": 1}
    fields["verification"].append(row)
    fields["sensitivity"] = [
        {"layer": "a", "parameters": 1, "storage": "int8", "kl": 0.1, "relative": 0.1}
    ]
    made_up_artifacts.seal(directory, fields)
    read_all(directory)
    return directory, fields


def read_all(directory):
    with drafts.draft(directory) as draft:
        read_everything(directory, draft)


def try_changes(directory, fields, changes):
    """Return the numbers of changed manifests that were refused and accepted."""
    counts = {"refused": 0, "taken": 0}
    for place, value in changes:
        made_up_artifacts.seal(directory, changed(fields, place, value))
        try:
            read_all(directory)
            counts["taken"] += 1
        except BartExportError:
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{place} = {value!r}: {error!r}") from error
    return counts


@pytest.mark.parametrize("count", [80, pytest.param(600, marks=pytest.mark.slow)])
def test_every_value_of_a_manifest_may_be_of_any_type(whole, count):
    signal.alarm(count)
    directory, fields = whole
    places = [place for place in nodes(fields) if place and place[0] != "signatures"]
    changes = [(place, value) for place in places for value in (..., *VALUES)]
    counts = try_changes(directory, fields, random.Random(11).sample(changes, count))
    assert counts["refused"] > count // 2
    assert counts["taken"] > 0


# --- Other files that commands read beside an artifact.


BESIDE = {
    "a recipe": lambda path, made: refusal(
        *("--preset", "bart_mini_en", "--target", "tflite", "--recipe", path)
    ),
    "a report": lambda path, made: refusal("bench", made.directory, "--compare", path),
    "a model to check": lambda path, made: refusal("edgetpu", "check", path),
    "a configuration": lambda path, made: refusal("serve", "--model-config-file", path),
}
CONTENTS = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: path.touch(),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "nested objects": lambda path: path.write_bytes(b'{"schema_version":' * 100_000),
    "rows of another type": lambda path: path.write_text(
        '{"schema_version": 2, "files": [3], "openings": {}, "memory": [], "generation": []}'
    ),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("kind", BESIDE)
def test_a_file_beside_an_artifact_gets_one_line(made, tmp_path, kind, content):
    path = tmp_path / "given.json"
    CONTENTS[content](path)
    assert "given.json" in BESIDE[kind](path, made)
