"""Artifacts behind HTTP as `python -m http.server` serves it: fsspec's client on a loopback."""

import contextlib
import http.server as http_server
import threading
import traceback
from base64 import b64encode
from urllib.parse import urlsplit

import pytest
from support import made_up_artifacts

from bart_export.artifact.artifact import Artifact
from bart_export.errors import ArtifactError, NoArtifact

FILE, OTHER = "tflite/a.tflite", "tflite/b.tflite"


class Files:
    """The files of a directory, for a user with a password or for its bearer in `?token=`."""

    def __init__(self, directory, user, password):
        self.directory = directory
        self.basic = f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
        self.query = f"token={password}"
        self.address = ""
        # Names of files; a long one has 64 MiB more, and a circular one is redirected to itself.
        self.missing = self.long = self.circular = ""
        self.sent = []  # paths of files that were sent completely

    def url(self, user="", query=""):
        """Return the URL of the directory."""
        return f"http://{user}{self.address}{query}"


class Handler(http_server.SimpleHTTPRequestHandler):
    files: Files

    def log_message(self, *unused):
        pass

    def do_HEAD(self):
        self.answer(super().do_HEAD)

    def do_GET(self):
        self.answer(super().do_GET)

    def answer(self, send):
        parts, files = urlsplit(self.path), self.files
        if self.headers.get("Authorization") != files.basic and parts.query != files.query:
            self.send_error(401)
        elif parts.path == f"/{files.missing}":
            self.send_error(404)
        elif parts.path == f"/{files.circular}":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
        elif parts.path == f"/{files.long}":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has enough
                for _ in range(64):
                    self.wfile.write(bytes(1 << 20))
                files.sent.append(parts.path)
        else:
            files.sent.append(parts.path)
            send()


@pytest.fixture
def http(tmp_path, monkeypatch):
    """A server without range requests that wants credentials, with an artifact in two blocks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = made_up_artifacts.write(tmp_path / "made", {FILE: bytes(6 << 20), OTHER: b"other"})
    files = Files(made.directory, "me", "secret")

    def handler(*arguments):
        kind = type("FilesHandler", (Handler,), {"files": files})
        return kind(*arguments, directory=files.directory)

    with http_server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        files.address = f"127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield files
        server.shutdown()


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
