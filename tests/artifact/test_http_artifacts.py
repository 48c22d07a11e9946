"""Artifacts behind a plain HTTP server: fsspec's client against a loopback server."""

import traceback

import pytest
from support import made_up_artifacts
from support.http_files import Files, serving

from bart_export.artifact.artifact import Artifact
from bart_export.errors import ArtifactError, NoArtifact

FILE, OTHER = "tflite/a.tflite", "tflite/b.tflite"


@pytest.fixture
def http(tmp_path, monkeypatch):
    """A server without range requests that wants credentials, with an artifact in two blocks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = made_up_artifacts.write(tmp_path / "made", {FILE: bytes(6 << 20), OTHER: b"other"})
    with serving(Files(made.directory, "me", "secret")) as files:
        yield files


def test_a_server_without_range_requests_is_enough(http):
    for url in (http.url("me:secret@"), http.url(query="?token=secret")):
        artifact = Artifact.open(url)
        assert artifact.path(FILE).stat().st_size == 6 << 20
        assert artifact.path(OTHER).read_bytes() == b"other"
        assert artifact.location == http.url()
    assert http.sent.count(f"/{FILE}") == 1


@pytest.mark.parametrize(
    "credentials", [{}, {"user": "me:hidden@"}, {"query": "?token=hidden"}], ids=str
)
def test_a_server_that_refuses_access_is_not_said_to_lack_a_file(http, credentials):
    line = rf"^Access to {http.url()}/manifest.json was refused \(401, .*Check the credentials"
    with pytest.raises(ArtifactError, match=line) as caught:
        Artifact.open(http.url(**credentials))
    assert "hidden" not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_lacks_a_file_is_told_apart(http):
    http.missing = FILE
    with pytest.raises(ArtifactError, match=f"has no file {FILE}, which its manifest lists"):
        Artifact.open(http.url("me:secret@")).path(FILE)
    http.missing = "manifest.json"
    with pytest.raises(NoArtifact, match="has no manifest.json"):
        Artifact.open(http.url("me:secret@"))


def test_a_redirection_in_a_circle_is_named(http):
    http.circular = "manifest.json"
    with pytest.raises(ArtifactError, match="manifest.json is redirected again and again. Check"):
        Artifact.open(http.url("me:secret@"))


def test_no_more_is_read_than_the_manifest_says(http):
    http.long = OTHER
    artifact = Artifact.open(http.url("me:secret@"))
    with pytest.raises(ArtifactError, match="it has more than 5 bytes"):
        artifact.path(OTHER)
    assert f"/{OTHER}" not in http.sent
