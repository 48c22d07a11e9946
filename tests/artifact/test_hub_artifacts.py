"""Artifacts on the Hugging Face Hub: the real client against a loopback server."""

import functools
import hashlib
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
from support import made_up_artifacts
from support.hub_processes import open_artifact, outcomes, outcomes_of, serving, start
from support.hub_server import COMMIT, LARGE, Hub
from support.made_up_artifacts import contents, flip, make_directory

from bart_export.artifact import artifact as artifacts
from bart_export.artifact import hub_client

FILE, OTHER = "tflite/a.tflite", "tflite/b.tflite"
CONTENT = bytes(range(256)) * (LARGE // 128)
FAULTS = ("breaks", "damaged", "gated", "forbidden", "private", "expired", "outside", "long")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of an artifact."""
    place = tmp_path_factory.mktemp("made") / "artifact"
    made_up_artifacts.write(place, {FILE: CONTENT, OTHER: b"other"})
    return contents(place)


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """The files of the same artifact after another export."""
    place = tmp_path_factory.mktemp("made") / "artifact"
    made_up_artifacts.write(place, {FILE: CONTENT[::-1], OTHER: b"another"})
    return contents(place)


opened = functools.partial(outcomes_of, open_artifact)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    """What came of opening each of these repositories twice."""
    manifest = files["manifest.json"]
    hub = Hub(
        files={
            "org/whole": files | {"README.md": b"#"},
            "org/checkpoint": {"config.json": b"{}"},
            "org/other": {"README.md": b"#"},
            "org/partial": {name: data for name, data in files.items() if name != FILE},
            "org/edited": files | {"manifest.json": manifest.replace(b"made up", b"made it")},
            "org/huge": files | {"manifest.json": b" " * (artifacts.MANIFEST_LIMIT + 1)},
            "org/longer": files | {FILE: CONTENT + b"x"},
            "org/altered": files | {FILE: CONTENT[::-1]},
            **{f"org/{fault}": files for fault in FAULTS},
        },
        faults={f"org/{fault}": fault for fault in FAULTS},
    )
    home = tmp_path_factory.mktemp("home")
    names = [f"hf://{name}" for name in hub.files] + ["hf://org/nothing", "hf://org/whole@v9"]
    with serving(hub) as address:
        requests = [[name, [FILE]] for name in names for _ in range(2)]
        found = opened(requests, home, HF_ENDPOINT=address)
    pairs = zip(names, found[::2], found[1::2], strict=True)
    return {"outcomes": {name: pair for name, *pair in pairs}, "hub": hub, "home": home}


def test_only_the_needed_files_are_downloaded_once(done, files):
    first, second = done["outcomes"]["hf://org/whole"]
    assert first == second
    assert first["files"] == {FILE: sha256(CONTENT)}
    assert Path(first["directory"]).name == COMMIT
    fetched = [name for repository, name in done["hub"].fetched if repository == "org/whole"]
    assert sorted(fetched) == ["manifest.json", FILE]


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("checkpoint", "hf://org/checkpoint is a preset. Export it to an artifact with: bart-exp"),
        ("other", "hf://org/other has no manifest.json, so it is not a finished artifact."),
        ("nothing", "hf://org/nothing does not exist on Hugging Face, or is private"),
        ("private", "hf://org/private does not exist on Hugging Face, or is private"),
        ("gated", "Accept the model's terms on its page"),
        ("forbidden", "denies access to hf://org/forbidden"),
        ("expired", "Hugging Face refuses the token for hf://org/expired. Set HF_TOKEN"),
        ("whole@v9", "hf://org/whole@v9 names an unknown revision"),
        ("partial", f"hf://org/partial has no file {FILE}, which its manifest lists"),
        ("edited", "hf://org/edited/manifest.json was edited or damaged"),
        ("huge", "org/huge/manifest.json must have at most 4,194,304 bytes, received 4,194,305"),
        ("longer", f"hf://org/longer/{FILE} must have at most {len(CONTENT):,} bytes"),
        ("long", f"hf://org/long/{FILE} must have at most {len(CONTENT):,} bytes"),
        ("altered", f"hf://org/altered/{FILE} was damaged (it has the right size"),
        ("outside", " outside the cache, at "),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_is_explained_in_one_line(done, repository, said):
    for outcome in done["outcomes"][f"hf://{'' if '/' in repository else 'org/'}{repository}"]:
        assert said in outcome["line"]
    absent = repository in ("checkpoint", "other")
    assert outcome["error"] == ("NoArtifact" if absent else "ArtifactError")


@pytest.mark.parametrize(
    ("fault", "said"), [("breaks", "was interrupted"), ("damaged", "it has the right size")]
)
def test_broken_downloads_are_discarded(done, fault, said):
    first, second = done["outcomes"][f"hf://org/{fault}"]
    assert said in first["line"]
    assert "Run the same command again" in first["line"]
    assert second["files"] == {FILE: sha256(CONTENT)}


def test_a_download_ends_at_the_size_in_the_manifest(done):
    assert done["hub"].visits["bytes"] < 64 << 20  # the client reads in pieces of 10 MB


def test_a_warm_cache_works_offline(done, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(done["home"], home, symlinks=True)
    request = ["hf://org/whole", [FILE]]
    (known,) = opened([request], home, HF_ENDPOINT="http://127.0.0.1:9")
    assert known["files"] == {FILE: sha256(CONTENT)}
    requests = [request, ["hf://org/whole", [OTHER]], ["hf://org/new", []]]
    known, *unknown = opened(requests, home, HF_HUB_OFFLINE="1")
    assert known["files"] == {FILE: sha256(CONTENT)}
    for outcome in unknown:
        assert "Cannot reach Hugging Face for hf://org/" in outcome["line"]
        assert "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE." in outcome["line"]


@pytest.mark.parametrize(
    ("damage", "name", "said"),
    [
        (lambda path: flip(path.resolve()), FILE, "different content"),
        (make_directory, FILE, "it is not a regular file"),
        (lambda path: make_directory(path.resolve()), FILE, "it is not a regular file"),
        (make_directory, "manifest.json", "it is not a regular file"),
    ],
)
def test_a_cache_that_was_damaged_is_repaired(done, files, tmp_path, damage, name, said):
    home = tmp_path / "home"
    shutil.copytree(done["home"], home, symlinks=True)
    snapshot = next((home / "hf/hub/models--org--whole/snapshots").iterdir())
    damage(snapshot / name)
    request = ["hf://org/whole", [FILE]]
    with serving(Hub(files={"org/whole": files})) as address:
        bad, good = opened([request, request], home, HF_ENDPOINT=address)
    assert f"hf://org/whole/{name} " in bad["line"] and said in bad["line"]
    assert good["files"] == {FILE: sha256(CONTENT)}


def test_a_push_in_between_does_not_mix_two_artifacts(files, newer, tmp_path):
    hub = Hub(files={"org/moving": dict(files)})
    with serving(hub) as address:
        settings = {"home": tmp_path, "HF_ENDPOINT": address}
        (before,) = opened([["hf://org/moving", []]], **settings)
        hub.write("org/moving", newer)
        pinned, after = opened(
            [[f"hf://org/moving@{COMMIT}", [FILE]], ["hf://org/moving", [FILE, OTHER]]], **settings
        )
    assert pinned["directory"] == before["directory"] != after["directory"]
    assert pinned["files"] == {FILE: sha256(CONTENT)}
    assert after["files"] == {FILE: sha256(CONTENT[::-1]), OTHER: sha256(b"another")}


def test_files_are_those_of_the_commit_of_the_manifest(files, newer, tmp_path):
    """A push between the manifest and the files, both fetched by one process."""
    hub = Hub(files={"org/moving": dict(files)}, faults={"org/moving": "stalls"})
    with serving(hub) as address:
        request = ["hf://org/moving", [FILE, OTHER]]
        process = start(open_artifact, [request], tmp_path, HF_ENDPOINT=address)
        assert hub.stalled.wait(60)
        hub.write("org/moving", newer)
        hub.resume.set()
        (outcome,) = outcomes(process)
    assert outcome["files"] == {FILE: sha256(CONTENT), OTHER: sha256(b"other")}


def test_two_processes_download_a_file_once(files, tmp_path):
    hub = Hub(files={"org/shared": files})
    request = ["hf://org/shared", [FILE]]
    with serving(hub) as address:
        both = [start(open_artifact, [request], tmp_path, HF_ENDPOINT=address) for _ in range(2)]
        first, second = map(outcomes, both)
    assert first == second
    assert first[0]["files"] == {FILE: sha256(CONTENT)}
    assert hub.fetched.count(("org/shared", FILE)) == 1


def test_a_killed_download_leaves_nothing_that_is_used(files, tmp_path):
    hub = Hub(files={"org/killed": files}, faults={"org/killed": "stalls"})
    requests = [["hf://org/killed", [FILE]]]
    with serving(hub) as address:
        settings = {"home": tmp_path, "HF_ENDPOINT": address}
        process = start(open_artifact, requests, **settings)
        assert hub.stalled.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        process.communicate()
        hub.resume.set()
        snapshot = tmp_path / "hf/hub/models--org--killed/snapshots" / COMMIT
        assert not (snapshot / FILE).exists()
        (outcome,) = opened(requests, **settings)
    assert outcome["files"] == {FILE: sha256(CONTENT)}


def test_a_snapshot_is_an_artifact_by_its_path(done):
    (first, _) = done["outcomes"]["hf://org/whole"]
    opened = artifacts.Artifact.open(Path(first["directory"]))
    assert opened.path(FILE).read_bytes() == CONTENT


def test_links_of_a_snapshot_may_not_lead_elsewhere(done, tmp_path):
    (first, _) = done["outcomes"]["hf://org/whole"]
    snapshot = tmp_path / "models--org--whole/snapshots" / COMMIT
    shutil.copytree(first["directory"], snapshot)
    (snapshot / FILE).rename(tmp_path / "outside")
    (snapshot / FILE).symlink_to(tmp_path / "outside")
    with pytest.raises(artifacts.ArtifactError, match="leads out of the artifact"):
        artifacts.Artifact.open(snapshot).path(FILE)


def test_threads_give_back_the_standard_streams():
    """A second thread may begin to download before the first has ended."""
    before, both, first_left = (sys.stdout, sys.stderr), threading.Event(), threading.Event()

    def first():
        with hub_client.quiet("huggingface_hub"):
            begun.set()
            both.wait(0.3)
        first_left.set()

    def second():
        with hub_client.quiet("huggingface_hub"):
            both.set()
            first_left.wait(30)

    begun = threading.Event()
    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    begun.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert (sys.stdout, sys.stderr) == before
