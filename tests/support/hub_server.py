"""A loopback server with the parts of Hugging Face's and Kaggle's protocols that clients use.

Hugging Face's client finds it by HF_ENDPOINT. Kaggle's client has fixed host names, so the server
is also its HTTP proxy. Repositories are dictionaries of files; `Hub.faults` has injected faults.
"""

import base64
import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 50_000  # files from this size on are stored by their SHA-256

# A repository's fault → the status and error code of its requests.
REFUSALS = {
    "gated": (403, "GatedRepo"),
    "forbidden": (403, ""),
    "private": (401, "RepoNotFound"),
    "down": (503, ""),
}


@dataclass
class Hub:
    """The stored repositories, their faults, and the requests so far."""

    files: dict[str, dict[str, bytes]]
    faults: dict[str, str] = field(default_factory=dict)
    fetched: list[tuple[str, str]] = field(default_factory=list)
    visits: Counter = field(default_factory=Counter)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *unused):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value):
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def refused(self, repository):
        """Respond with an error for a missing or restricted repository."""
        status, code = REFUSALS.get(self.hub.faults.get(repository, ""), (None, ""))
        if status is None and repository not in self.hub.files:
            status, code = 404, "RepoNotFound"
        if status is not None:
            self.answer(status, X_Error_Code=code)
        return status is not None

    def send_file(self, repository, name, **headers):
        """Send a file, subject to its repository's fault."""
        data = self.hub.files[repository][name]
        self.hub.fetched.append((repository, name))
        visit = 0
        if len(data) >= LARGE:
            self.hub.visits[repository] += 1
            visit = self.hub.visits[repository]
        fault = self.hub.faults.get(repository)
        if fault == "breaks" and visit == 1:
            self.send_response(200)
            for header, value in headers.items():
                self.send_header(header.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "breaks" and visit == 2 and "ETag" in headers:
            self.answer(500)  # the client's attempt to resume
        elif fault == "damaged" and visit == 1:
            self.answer(200, data[:-1] + bytes([data[-1] ^ 1]), **headers)
        elif begin := self.headers.get("Range", "").removeprefix("bytes=").rstrip("-"):
            self.answer(206, data[int(begin) :], **headers)
        else:
            self.answer(200, data, **headers)

    # Hugging Face

    def do_HEAD(self):
        self.resolve(urlsplit(self.path).path.split("/")[1:])

    def do_GET(self):
        words = urlsplit(self.path).path.split("/")[1:]
        if words[:2] == ["api", "models"] and len(words) > 3:
            self.describe("/".join(words[2:4]), words[4:])
        elif words[0] == "storage":
            self.send_stored(words[1:])
        else:
            self.resolve(words)

    def describe(self, repository, request):
        """/api/models/{repository}[/revision/{revision}] and …/tree/{revision}."""
        if self.refused(repository):
            return
        revision = request[1] if len(request) > 1 else "main"
        if self.hub.faults.get(repository) == "strange":
            self.answer_json(["a", "b"])
        elif revision not in ("main", "v1", COMMIT):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif request[:1] == ["tree"]:
            self.answer_json([tree_entry(*item) for item in self.hub.files[repository].items()])
        else:
            self.answer_json({"id": repository, "sha": COMMIT, "siblings": []})

    def resolve(self, words):
        """/{repository}/resolve/{revision}/{file}."""
        repository, name = "/".join(words[:2]), "/".join(words[4:])
        if words[2:3] != ["resolve"] or self.refused(repository):
            return self.answer(404) if words[2:3] != ["resolve"] else None
        if name not in self.hub.files[repository]:
            return self.answer(404, X_Error_Code="EntryNotFound")
        data = self.hub.files[repository][name]
        headers = {"ETag": f'"{etag(data)}"', "X_Repo_Commit": COMMIT}
        if self.hub.faults.get(repository) == "outside":
            headers["ETag"] = '"../../../../outside"'
        elif len(data) >= LARGE:
            headers |= {"X_Linked_Size": str(len(data)), "X_Linked_ETag": f'"{etag(data)}"'}
        if self.command == "HEAD":
            return self.answer(200, data, **headers)
        return self.send_file(repository, name, **headers)

    # Kaggle

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        repository = "/".join(
            [request["ownerSlug"], request["modelSlug"], "keras", request["instanceSlug"]]
        )
        if self.refused(repository):
            return None
        if self.hub.faults.get(repository) == "strange":
            return self.answer_json(["a", "b"])
        version = request.get("versionNumber", 2)
        if version not in (1, 2, 3):
            return self.answer(404)
        files = self.hub.files[repository]
        call = urlsplit(self.path).path.rpartition("/")[2]
        if call == "GetModelInstance":
            return self.answer_json({"versionNumber": 2, "framework": "MODEL_FRAMEWORK_KERAS"})
        if call == "ListModelInstanceVersionFiles":
            listed = [{"name": name, "size": len(data)} for name, data in files.items()]
            return self.answer_json({"files": listed, "nextPageToken": ""})
        location = f"http://localhost/storage/{repository}/{request['path']}"
        return self.answer(302, Location=location)

    def send_stored(self, words):
        """The address to which Kaggle redirects downloads."""
        repository, name = "/".join(words[:4]), "/".join(words[4:])
        digest = hashlib.md5(self.hub.files[repository][name]).digest()
        self.send_file(
            repository,
            name,
            Accept_Ranges="bytes",
            X_Goog_Hash=f"crc32c=AAAAAA==,md5={base64.b64encode(digest).decode()}",
            Content_Type="application/octet-stream",
        )


def tree_entry(name, data):
    entry = {"type": "file", "path": name, "size": len(data), "oid": etag(data)[:40]}
    if len(data) >= LARGE:
        entry["lfs"] = {"oid": etag(data), "size": len(data), "pointerSize": 130}
    return entry


def etag(data):
    """Return the ETag: SHA-256 for large files, and a shorter hash for others."""
    hashed = hashlib.sha256(data).hexdigest()
    return hashed if len(data) >= LARGE else hashed[:40]


def serve(hub):
    """Start a server; return it and its address."""
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"
