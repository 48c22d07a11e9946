"""`bart-export push` with huggingface_hub's real client, to a loopback hub and back."""

import dataclasses
import json
import re
import shlex
import shutil
import sys

import pytest
import yaml
from support import made_up_artifacts
from support.command import refusal
from support.hub_processes import outcomes_of, run_command, serving
from support.hub_server import READER, WRITER, Hub
from support.paths import GOLDEN

from bart_export.artifact.figures import FileVerification, RougeLoss, TextFile
from bart_export.artifact.manifest import SourceEntry
from bart_export.cli.main import main
from bart_export.report import card

TEXT = "This library reads and writes spreadsheets in Python."
NAME = "me/bart"
# In the directory, but not in the manifest.
PRIVATE = (".env", ".cache/weights.xnnpack", "notes.txt")


@pytest.fixture(scope="module")
def pushed(symmetric_artifact, tmp_path_factory):
    """What came of pushes and of reading them; `directory` is the pushed artifact."""
    place = tmp_path_factory.mktemp("pushed")
    directory = shutil.copytree(symmetric_artifact.directory, place / "bart")
    for name in PRIVATE:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("secret")
    damaged = shutil.copytree(symmetric_artifact.directory, place / "damaged")
    made_up_artifacts.flip(damaged / "REPORT.md")
    carded = made_up_artifacts.write(place / "carded", {"readme.md": b"#"}).directory
    hub = Hub(files={"other/strange": {}}, faults={"other/strange": "strange"})
    answer = ["--output", "-"]
    with serving(hub) as address:
        writer, reader = {"HF_TOKEN": WRITER}, {"HF_TOKEN": READER}
        local, remote = str(directory), f"hf://{NAME}"
        commands = {
            "push": (writer, ["push", local, NAME]),
            "generate": ({}, ["generate", remote, TEXT, *answer]),
            "local": ({}, ["generate", local, TEXT, *answer]),
            "verify": ({}, ["verify", remote]),
            "again": (writer, ["push", remote, "me/copy", "--private"]),
            "request": (writer, ["push", local, NAME, "--create-pr"]),
            "token": ({}, ["push", local, NAME]),
            "right": (reader, ["push", local, NAME]),
            "damaged": (writer, ["push", str(damaged), "me/damaged"]),
            "strange": (writer, ["push", local, "other/strange"]),
            "carded": (writer, ["push", str(carded), "me/carded"]),
            "name": (writer, ["push", local, "me/bart--large"]),
        }
        settings = {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
        found = outcomes_of(run_command, list(commands.values()), place, **settings)
    done = dict(zip(commands, found, strict=True))
    return {"done": done, "hub": hub, "directory": directory, "address": address}


def test_a_pushed_artifact_generates_the_same_tokens(pushed):
    done = pushed["done"]
    assert done["push"] == {"code": 0, "printed": f"{pushed['address']}/{NAME}\n", "said": ""}
    there, here = (json.loads(done[name]["printed"]) for name in ("generate", "local"))
    assert there == here
    assert there["token_ids"]
    assert f"hf://{NAME} is complete: " in done["verify"]["printed"]


def test_only_the_artifact_and_its_card_are_pushed(pushed, symmetric_artifact):
    (repository, names, query), *_ = pushed["hub"].pushes
    assert (repository, query) == (NAME, {})
    assert set(names) == {*symmetric_artifact.manifest.files, "manifest.json", "README.md"}
    files = pushed["hub"].files[NAME]
    for name in symmetric_artifact.manifest.files:
        assert files[name] == (symmetric_artifact.directory / name).read_bytes()
    assert symmetric_artifact.manifest.preset == "./bart_tiny_symmetric"
    private = (b"secret", str(GOLDEN).encode())  # the preset's path
    assert not any(word in data for data in files.values() for word in private)


def test_a_remote_artifact_can_be_pushed_to_a_private_repository(pushed):
    assert pushed["done"]["again"]["code"] == 0
    assert pushed["hub"].private == {"me/copy"}
    files, copy = (pushed["hub"].files[name] for name in (NAME, "me/copy"))
    assert {**files, "README.md": b""} == {**copy, "README.md": b""}


def test_a_pull_request_leaves_the_main_branch_as_it_is(pushed):
    url = f"{pushed['address']}/{NAME}/discussions/1"
    assert pushed["done"]["request"] == {"code": 0, "printed": f"{url}\n", "said": ""}
    assert [query for _, _, query in pushed["hub"].pushes] == [{}, {}, {"create_pr": ["1"]}]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("token", "Pushing to hf://me/bart needs a token that may write: sign in with `hf auth"),
        ("right", "The token may not write to hf://me/bart. Use one that may, or propose the"),
        ("damaged", "REPORT.md does not match its manifest"),
        ("strange", "Hugging Face sent an unexpected response for hf://other/strange ("),
        ("carded", 'a model card: "README.md" and "readme.md" name the same file'),
        ("name", "Cannot push to hf://me/bart--large: Cannot have -- or .. in repo_id"),
    ],
)
def test_a_refused_push_is_explained_in_one_line(pushed, name, said):
    outcome = pushed["done"][name]
    assert (outcome["code"], outcome["printed"]) == (2, "")
    (line,) = outcome["said"].splitlines()
    assert said in line
    assert {"me/damaged", "me/carded"}.isdisjoint(pushed["hub"].files)


@pytest.mark.parametrize(
    "settings", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}]
)
def test_a_hub_that_cannot_be_reached_is_one_line(symmetric_artifact, tmp_path, settings):
    words = ["push", str(symmetric_artifact.directory), NAME]
    commands = [[{"HF_TOKEN": WRITER}, words]]
    (outcome,) = outcomes_of(run_command, commands, tmp_path, **settings)
    assert outcome["code"] == 2
    (line,) = outcome["said"].splitlines()
    assert "Cannot push to hf://me/bart: " in line
    assert "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE." in line


@pytest.mark.parametrize("name", ["bart", "a/b/c", "../bart", "me/", "https://huggingface.co/me/x"])
def test_a_malformed_name_is_refused(made, name):
    assert f"Expected ORG/NAME, such as me/bart, received {name!r}" in refusal(
        "push", made.directory, name
    )


@pytest.mark.parametrize("package", ["huggingface_hub", "jinja2"])
def test_a_missing_package_is_named_before_anything_is_read(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    line = refusal("push", "nowhere", NAME)
    assert line.startswith(
        f"Error: Pushing an artifact needs the package {package.replace('_', '-')}"
    )


def front_matter(text):
    """Return the YAML of a card, and its text."""
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front), body


def test_the_card_has_the_fields_that_the_hub_shows(pushed):
    front, body = front_matter(pushed["hub"].files[NAME]["README.md"].decode())
    assert (front["library_name"], front["pipeline_tag"]) == ("litert", "summarization")
    assert front["license"] == "unknown" and {"bart", "tflite"} <= {*front["tags"]}
    (index,) = front["model-index"]
    (result,) = index["results"]
    kinds = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert kinds == {"accuracy": 1.0, "exact_match": 1.0}
    assert str(pushed["directory"].parent) not in body


def test_the_commands_of_the_card_parse(mini_artifact):
    _, body = front_matter(card.render(mini_artifact.manifest, NAME))
    commands = re.findall(r"^bart-export (.*)$", body, re.MULTILINE)
    assert [shlex.split(line)[0] for line in commands] == ["generate", "serve", "verify"]
    for line in commands:
        name, *words = shlex.split(line)
        assert f"hf://{NAME}" in words
        main.commands[name].make_context(name, words)


ROUGE = {"rouge_l": RougeLoss(30.0, 29.5, 0.5, 0.1, 0.9)}
MEASURED = FileVerification(
    "tflite/a.tflite", 0.1, 1.0, 0.1, 0.01, 0.987654, 0.5, 40, 9, {}, rouge=ROUGE,
    data=TextFile("ab" * 32, 100),
)  # fmt: skip


@pytest.mark.parametrize(
    ("handle", "base", "language"),
    [
        ("hf://facebook/bart-large-cnn", "facebook/bart-large-cnn", None),
        ("kaggle://keras/bart/keras/bart_large_en_cnn", "keras/bart_large_en_cnn", "en"),
        ("bart_mini_en", None, "en"),
        ("/home/me/secret/my_bart", None, None),
    ],
)
def test_the_card_names_what_the_manifest_knows(made, handle, base, language):
    source = SourceEntry(handle, None, "keras", "0" * 64)
    preset = f"{handle}/3" if handle.startswith("kaggle://") else handle
    manifest = dataclasses.replace(
        made.manifest, preset=preset, source=source, verification=(MEASURED,)
    )
    text = card.render(manifest, NAME)
    front, body = front_matter(text)
    assert (front.get("base_model"), front.get("language")) == (base, language)
    assert ("base_model_relation" in front) == (base is not None)
    assert f"\n# {handle.rpartition('/')[2]}\n" in body
    assert "secret" not in text
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {
        "name": "100 texts", "type": "texts", "args": {"sha256": "ab" * 32}
    }  # fmt: skip
    figures = [(metric["type"], metric["value"]) for metric in result["metrics"]]
    assert figures == [("accuracy", 0.9877), ("exact_match", 0.5), ("rouge", 29.5)]
    assert "100 texts of a file" in body.replace("\n", " ")


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ("my-licence-1.0", {"license": "other", "license_name": "my-licence-1.0"}),
        ("as the checkpoint's file LICENSE says", {"license": "other"}),
        (None, {"license": "unknown"}),
    ],
)
def test_the_licence_of_the_card_is_one_that_the_hub_knows(made, licence, fields):
    manifest = dataclasses.replace(made.manifest, licence=licence)
    front, body = front_matter(card.render(manifest, NAME))
    stated = {name: value for name, value in front.items() if name.startswith("license")}
    assert stated == fields
    assert (licence or "does not state its licence") in body.replace("\n", " ")
