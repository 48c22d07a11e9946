"""Artifacts behind fsspec URLs: what is fetched, the cache, and damaged downloads."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from support import made_up_artifacts
from support.command import printed, refusal
from support.hub_processes import open_artifact, outcomes_of, start
from support.made_up_artifacts import contents, flip, make_directory

from bart_export.artifact import remote, stamps
from bart_export.artifact.artifact import MANIFEST_LIMIT, Artifact
from bart_export.errors import ArtifactError, ConfigurationError, MissingExtra, NoArtifact
from bart_export.locations import last_name, redacted
from bart_export.runtime import Generator
from bart_export.server import models_config, versions

FILE, OTHER = "tflite/a.tflite", "tflite/b.tflite"
CONTENTS = {FILE: b"first" * 1000, OTHER: b"second" * 1000}


class Bucket:
    """A directory of the file system in memory."""

    def __init__(self, name):
        self.system, self.url = fsspec.filesystem("memory"), f"memory://{name}"
        self.root = f"/{name}"

    def write(self, name, content):
        self.system.pipe_file(f"{self.root}/{name}", content)

    def remove(self, name):
        self.system.rm(f"{self.root}/{name}")

    def put(self, directory):
        """Upload a directory."""
        for name, content in contents(directory).items():
            self.write(name, content)


@pytest.fixture
def bucket(request, monkeypatch, tmp_path):
    """An empty bucket; the user's cache is empty, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Bucket(f"{request.node.originalname}-{time.monotonic_ns()}")


@pytest.fixture
def remote_one(bucket, tmp_path):
    bucket.put(made_up_artifacts.write(tmp_path / "made", CONTENTS).directory)
    return bucket


def fetched(artifact):
    """Return the names of the files in the cache."""
    return set(contents(artifact.directory))


def test_a_file_is_fetched_when_it_is_asked_for(remote_one):
    artifact = Artifact.open(remote_one.url)
    assert artifact.location == remote_one.url
    assert fetched(artifact) == {"manifest.json"}
    assert artifact.path(FILE).read_bytes() == CONTENTS[FILE]
    assert fetched(artifact) == {"manifest.json", FILE}
    assert sorted(artifact.folder("tflite").iterdir()) == [
        artifact.path(FILE),
        artifact.path(OTHER),
    ]
    with pytest.raises(ArtifactError, match=rf"^{remote_one.url} has no file c\. It has: tflite/a"):
        artifact.path("c")


def test_what_is_in_the_cache_is_not_fetched_again(remote_one):
    path = Artifact.open(remote_one.url).path(FILE)
    remote_one.remove(FILE)
    assert Artifact.open(remote_one.url).path(FILE, rehash=True) == path
    with pytest.raises(ArtifactError, match=f"{remote_one.url} has no file {OTHER}, which its"):
        remote_one.remove(OTHER)
        Artifact.open(remote_one.url).path(OTHER)


def test_the_manifest_decides_whether_the_cache_is_current(remote_one, tmp_path):
    before = Artifact.open(remote_one.url)
    before.path(FILE)
    newer = {FILE: b"newer", OTHER: b"other"}
    remote_one.put(made_up_artifacts.write(tmp_path / "newer", newer).directory)
    after = Artifact.open(remote_one.url)
    assert after.path(FILE).read_bytes() == b"newer"
    assert before.path(FILE).read_bytes() == CONTENTS[FILE]
    with pytest.raises(ArtifactError, match="was damaged"):  # of the newer export
        before.path(OTHER)


LONGER, SHORTER = CONTENTS[FILE] + b"longer", CONTENTS[FILE][:-1]
DAMAGE = [
    (SHORTER, "it has 4999 bytes, not 5000"),
    (LONGER, "it has more than 5000 bytes"),
    (CONTENTS[FILE][::-1], "it has the right size, 5000 bytes, but different content"),
]


@pytest.mark.parametrize(("content", "said"), DAMAGE)
def test_a_damaged_download_is_deleted(remote_one, content, said):
    remote_one.write(FILE, content)
    artifact = Artifact.open(remote_one.url)
    line = f"{remote_one.url}/{FILE} was damaged .{said}. and is deleted. Run the same command"
    with pytest.raises(ArtifactError, match=line):
        artifact.path(FILE)
    assert fetched(artifact) == {"manifest.json"}
    remote_one.write(FILE, CONTENTS[FILE])
    assert artifact.path(FILE).read_bytes() == CONTENTS[FILE]


def make_loop(path):
    """Replace a file by a link to itself."""
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("damage", [flip, make_directory])
def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(remote_one, damage):
    artifact = Artifact.open(remote_one.url)
    damage(artifact.path(FILE))
    with pytest.raises(ArtifactError, match="was damaged .* and is deleted. Run the same command"):
        artifact.path(FILE)
    assert artifact.path(FILE).read_bytes() == CONTENTS[FILE]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"<html>Sign in at http://me:secret@host",
            '/manifest.json must be the JSON of a manifest, received "<html>Sign in at http://host"'
            r" \(Expecting value: .*\. Give the place of an artifact, or export it again\.",
        ),
        (b'{"error": "denied"}', r"/manifest.json must be .*denied.* \(it has no format_version\)"),
        (b" " * (MANIFEST_LIMIT + 1), "/manifest.json must have at most 4,194,304 bytes."),
        (b'{"format_version": 9}', "/manifest.json must have format_version 1, received 9"),
    ],
)
def test_a_manifest_that_is_none_is_not_kept(remote_one, content, said):
    remote_one.write("manifest.json", content)
    with pytest.raises(ArtifactError, match=f"^{remote_one.url}{said}"):
        Artifact.open(remote_one.url)
    assert not list(stamps.user_directory().rglob("*"))


def test_a_manifest_in_the_cache_is_that_of_the_location(remote_one, tmp_path):
    artifact = Artifact.open(remote_one.url)
    cached = artifact.directory / "manifest.json"
    for damage in (flip, make_directory, make_loop):
        damage(cached)
        assert Artifact.open(remote_one.url).manifest == artifact.manifest
        assert Artifact.open(artifact.directory).manifest == artifact.manifest
    other = made_up_artifacts.write(tmp_path / "other", {FILE: b"other"})
    cached.write_bytes((other.directory / "manifest.json").read_bytes())
    assert Artifact.open(remote_one.url).manifest == artifact.manifest


def test_a_file_url_is_the_local_directory(tmp_path, made):
    place = made.directory.rename(tmp_path / "with space")
    for url in (place.as_uri(), f"local://{place}", Path(f"file://{place}")):
        assert Artifact.open(url) == Artifact.open(place)
    assert last_name(place.as_uri()) == "with space"
    (served,) = models_config.served_models([place.as_uri()])
    assert (served.name, served.base_path) == ("with space", place)
    assert printed("inspect", place.as_uri()) == printed("inspect", place)
    (place / "manifest.json").unlink()
    os.mkfifo(place / "manifest.json")
    with pytest.raises(ArtifactError, match="cannot be read: it is not a regular file"):
        Artifact.open(place.as_uri())


@pytest.mark.parametrize(
    ("location", "error", "said"),
    [
        ("memory://nowhere", NoArtifact, "has no manifest.json, so it is not a finished artifact"),
        ("nosuch://bucket/bart", ArtifactError, "Protocol not known: nosuch"),
        ("ftp://user:secret@127.0.0.1:9/bart", ArtifactError, "^Cannot read ftp://127.0.0.1:9/bart"),
        ("kaggle://org/model/keras/x", NoArtifact, "is a preset. Export it to an artifact with"),
        ("hf://org", ArtifactError, 'Expected hf://org/name or .*, received "hf://org"'),
        ("hf://org/name/file", ArtifactError, "Expected hf://org/name or hf://org/name@revision"),
        ("hf://../name", ArtifactError, "Expected hf://org/name or hf://org/name@revision"),
    ],
)  # fmt: skip
def test_a_wrong_location_is_explained_in_one_line(bucket, location, error, said):
    with pytest.raises(error, match=said) as caught:
        Artifact.open(location)
    assert "secret" not in str(caught.value)


def test_a_revision_is_for_the_hub(remote_one, made):
    for location in (remote_one.url, made.directory):
        with pytest.raises(ConfigurationError, match=r'revision applies to hf://.*received "v1"'):
            Artifact.open(location, "v1")
    with pytest.raises(ArtifactError, match="Expected hf://org/name"):
        Artifact.open("hf://org/name@v1", "v2")


@pytest.mark.parametrize(
    ("package", "location"), [("fsspec", "memory://x"), ("huggingface_hub", "hf://org/x")]
)
def test_a_missing_package_is_named_with_its_extra(package, location, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"Opening {location}.* {package},.*\[hub\]"):
        Artifact.open(location)


def test_a_package_for_one_kind_of_url_is_named(bucket, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ArtifactError, match="Opening gs://bucket/x/.* needs a package: .*gcsfs"):
        Artifact.open("gs://bucket/x")


def test_without_a_cache_the_error_says_where_to_put_one(remote_one, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    with pytest.raises(ArtifactError, match="needs a cache that only this user can write. Set XDG"):
        Artifact.open(remote_one.url)


def test_a_read_may_return_less_than_was_asked_for(remote_one, monkeypatch):
    opened = remote.UrlStore.open

    class Slow:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def read(self, size):
            return self.file.read(min(size, 5))

    monkeypatch.setattr(remote.UrlStore, "open", lambda *arguments: Slow(opened(*arguments)))
    artifact = Artifact.open(remote_one.url)
    for name, content in CONTENTS.items():
        assert artifact.path(name).read_bytes() == content


def test_threads_fetch_a_file_once(remote_one, monkeypatch):
    """Each opens the directory to lock it, as processes do."""
    opened, begun = [], threading.Barrier(4)
    original = remote.UrlStore.open

    def counted(store, name):
        opened.append(name)
        time.sleep(0.1)
        return original(store, name)

    def work():
        artifact = Artifact.open(remote_one.url)
        begun.wait(30)
        artifact.path(FILE)

    monkeypatch.setattr(remote.UrlStore, "open", counted)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened.count(FILE) == 1


def test_a_killed_download_leaves_nothing_that_is_used(tmp_path):
    content = CONTENTS[FILE] * 1000
    made = made_up_artifacts.write(tmp_path / "made", {FILE: content})
    process = start(open_artifact, [[f"stalling://{made.directory}", [FILE]]], tmp_path)
    cache, parts = tmp_path / "cache/bart-export/artifacts", []
    while not any(path.stat().st_size for path in parts):
        assert process.poll() is None
        time.sleep(0.01)
        parts = list(cache.glob("*/.parts/*"))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    process.communicate()
    assert not list(cache.glob("*/tflite/*"))
    request = [f"simplecache::file://{made.directory}", [FILE]]  # the same manifest
    (outcome,) = outcomes_of(open_artifact, [request], tmp_path)
    assert Path(outcome["directory"], FILE).read_bytes() == content
    assert not parts[0].exists()


TEXT = "This library reads and writes spreadsheets."


@pytest.fixture
def model(bucket, mini_artifact):
    """A model on a bucket; its artifact has two recipes."""
    bucket.put(mini_artifact.directory)
    return bucket


def test_a_generator_fetches_the_files_that_it_needs(model, mini_artifact):
    with Generator.from_artifact(model.url) as generator:
        there = generator.generate(TEXT).token_ids
    with Generator.from_artifact(mini_artifact.directory) as generator:
        assert generator.generate(TEXT).token_ids == there
    needed = {"manifest.json", "tflite/dynamic_wi8_afp32.tflite"}
    tokenizer = mini_artifact.manifest.tokenizer
    assert fetched(Artifact.open(model.url)) == needed | {tokenizer.vocabulary, tokenizer.merges}


def test_commands_take_the_url_of_an_artifact(model, mini_artifact):
    local = printed("generate", mini_artifact.directory, TEXT)
    assert printed("generate", model.url, TEXT) == local
    facts = json.loads(printed("inspect", model.url, "--json"))
    assert facts == json.loads(printed("inspect", mini_artifact.directory, "--json"))
    assert "dynamic_wi8_afp32" in printed("inspect", model.url)
    assert f"{model.url} is complete: " in printed("verify", model.url)
    line = refusal("generate", model.url, TEXT, "--recipe", "float16")
    assert f"{model.url} has no file of recipe 'float16'" in line


def test_inspecting_fetches_only_the_manifest(model):
    printed("inspect", model.url)
    assert fetched(Artifact.open(model.url)) == {"manifest.json"}


@pytest.mark.slow
def test_a_remote_artifact_can_be_measured(model):
    report = json.loads(printed("bench", model.url, "--recipe", "float32", "--runs", "1", "--json"))
    assert [row["recipe"] for row in report["files"]] == ["float32"]


def test_a_server_fetches_what_its_engine_reads(model, mini_artifact):
    (served,) = models_config.served_models([model.url])
    assert served.name == last_name(model.url)
    assert list(versions.find_versions(served)) == [mini_artifact.manifest.exports]
    assert "tflite/float32.tflite" not in fetched(Artifact.open(model.url))
    with pytest.raises(ArtifactError, match=f"{model.url} has no files of the target saved_model"):
        models_config.served_models([model.url], "tensorflow")


def test_a_saved_model_is_served_from_the_cache(bucket, saved_model_artifact):
    bucket.put(saved_model_artifact.directory)
    (served,) = models_config.served_models([bucket.url])
    (path,) = versions.find_versions(served).values()
    assert (path / "saved_model.pb").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("--preset", "bart_mini_en", "--target", "tflite", "--output", "hf://org/name"),
        ("--preset", "bart_mini_en", "--target", "tflite", "--android", "s3://bucket/app"),
        ("tune", "bart_mini_en", "--budget", "top1=0.9", "--output", "gs://bucket/recipe.json"),
        ("generate", "nope", TEXT, "--output", "gs://me:secret@bucket/rows.jsonl"),
    ],
)
def test_nothing_is_written_to_a_url(words):
    line = refusal(*words)
    assert f"Expected a local file or directory, received {redacted(words[-1])}." in line
