"""A loopback server with the parts of Hugging Face's and Kaggle's protocols that clients use.

Hugging Face's client finds it by HF_ENDPOINT. Kaggle's client has fixed host names, so the server
is also its HTTP proxy. Repositories are dictionaries of files; `Hub.faults` has injected faults.
Only `WRITER` may write; with any other token, or none, a push is refused as on the real hub.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 50_000  # files from this size on are stored by their SHA-256
WRITER, READER = "hf_writer", "hf_reader"  # tokens

# A repository's fault → the status and error code of its requests.
REFUSALS = {
    "gated": (403, "GatedRepo"),
    "forbidden": (403, ""),
    "private": (401, "RepoNotFound"),
    "expired": (401, ""),  # the token
    "down": (503, ""),
}


@dataclass
class Hub:
    """The stored repositories, their faults, and the requests so far."""

    files: dict[str, dict[str, bytes]]
    faults: dict[str, str] = field(default_factory=dict)
    fetched: list[tuple[str, str]] = field(default_factory=list)
    visits: Counter = field(default_factory=Counter)
    # Commits of repositories that were written, and the files of their earlier commits.
    commits: dict[str, str] = field(default_factory=dict)
    past: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    # What each push sent: its repository, names and query.
    pushes: list[tuple[str, list[str], dict]] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    # The fault "stalls" sends half of a file, sets `stalled` and waits for `resume`.
    stalled: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)

    def commit(self, repository):
        """Return the commit of a repository's main branch."""
        return self.commits.get(repository, COMMIT)

    def write(self, repository, files):
        """Add a commit to a repository."""
        before = self.files.get(repository, {})
        self.past[repository, self.commit(repository)] = before
        self.files[repository] = {**before, **files}
        self.commits[repository] = hashlib.sha1(repr(len(self.past)).encode()).hexdigest()

    def at(self, repository, revision):
        """Return the files of a repository at a revision, or None."""
        if revision in ("main", "v1", self.commit(repository)):
            return self.files[repository]
        return self.past.get((repository, revision))


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

    def send_file(self, repository, name, data, **headers):
        """Send a file, subject to its repository's fault."""
        self.hub.fetched.append((repository, name))
        visit = 0
        if len(data) >= LARGE:
            self.hub.visits[repository] += 1
            visit = self.hub.visits[repository]
        fault = self.hub.faults.get(repository)
        if fault in ("breaks", "stalls") and visit == 1:
            self.send_response(200)
            for header, value in headers.items():
                self.send_header(header.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            if fault == "stalls":
                self.wfile.flush()
                self.hub.stalled.set()
                self.hub.resume.wait(60)
        elif fault == "long" and visit:
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError):  # the client has enough
                for _ in range(128):
                    self.wfile.write(bytes(1 << 20))
                    self.hub.visits["bytes"] += 1 << 20
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
        elif (files := self.hub.at(repository, revision)) is None:
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif request[:1] == ["tree"]:
            self.answer_json([tree_entry(*item) for item in files.items()])
        else:
            commit = self.hub.commit(repository)
            self.answer_json({"id": repository, "sha": commit, "siblings": []})

    def resolve(self, words):
        """/{repository}/resolve/{revision}/{file}."""
        repository, name = "/".join(words[:2]), "/".join(words[4:])
        if words[2:3] != ["resolve"] or self.refused(repository):
            return self.answer(404) if words[2:3] != ["resolve"] else None
        files = self.hub.at(repository, words[3])
        if files is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        commit = self.hub.commit(repository)
        commit = words[3] if (repository, words[3]) in self.hub.past else commit
        if name not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data = files[name]
        headers = {"ETag": f'"{etag(data)}"', "X_Repo_Commit": commit}
        if self.hub.faults.get(repository) == "outside":
            headers["ETag"] = '"../../../../outside"'
        elif len(data) >= LARGE:
            headers |= {"X_Linked_Size": str(len(data)), "X_Linked_ETag": f'"{etag(data)}"'}
        if self.command == "HEAD":
            return self.answer(200, data, **headers)
        return self.send_file(repository, name, data, **headers)

    # Hugging Face's pushes

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        words = urlsplit(self.path).path.split("/")[1:]
        if words == ["api", "validate-yaml"]:
            front = json.loads(body)["content"].split("---\n")[1]
            return self.answer_json({"errors": [], "warnings": [], "front": yaml.safe_load(front)})
        if words == ["api", "repos", "create"]:
            request = json.loads(body)
            return self.create(f"{request['organization']}/{request['name']}", request)
        if words[:2] == ["api", "models"] and words[4:5] == ["preupload"]:
            return self.choose_modes("/".join(words[2:4]), json.loads(body)["files"])
        if words[:2] == ["api", "models"] and words[4:5] == ["commit"]:
            return self.accept_commit("/".join(words[2:4]), body)
        if words[-3:] == ["lfs", "objects", "batch"]:
            return self.accept_batch(json.loads(body)["objects"])
        return self.kaggle(json.loads(body))

    def refused_to_write(self):
        """Respond with an error unless the token may write."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != WRITER:
            self.answer(403 if token == READER else 401)
        return token != WRITER

    def create(self, repository, request):
        if self.refused_to_write():
            return
        url = f"http://{self.headers['Host']}/{repository}"
        exists = repository in self.hub.files
        if not exists:
            self.hub.files[repository] = {}
            if request.get("visibility") == "private" or request.get("private"):
                self.hub.private.add(repository)
        self.answer(409 if exists else 200, json.dumps({"url": url}).encode())

    def choose_modes(self, repository, files):
        if self.refused_to_write() or self.refused(repository):
            return
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        strange = self.hub.faults.get(repository) == "strange"
        self.answer_json(["a", "b"] if strange else {"files": modes})

    def accept_batch(self, objects):
        address = f"http://{self.headers['Host']}/upload"
        self.answer_json({"objects": [
            {"oid": one["oid"], "size": one["size"],
             "actions": {"upload": {"href": f"{address}/{one['oid']}"}}}
            for one in objects
        ]})  # fmt: skip

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.uploads[self.path.rpartition("/")[2]] = data
        self.answer(200)

    def accept_commit(self, repository, body):
        if self.refused_to_write() or self.refused(repository):
            return
        files = {}
        for line in body.splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "lfsFile":
                data = self.hub.uploads[row["value"]["oid"]]
                assert hashlib.sha256(data).hexdigest() == row["value"]["oid"]
                files[row["value"]["path"]] = data
        query = parse_qs(urlsplit(self.path).query)
        self.hub.pushes.append((repository, sorted(files), query))
        place = f"http://{self.headers['Host']}/{repository}"
        if "create_pr" not in query:
            self.hub.write(repository, files)
        self.answer_json({
            "success": True,
            "commitUrl": f"{place}/commit/{self.hub.commit(repository)}",
            "commitOid": self.hub.commit(repository),
            "pullRequestUrl": f"{place}/discussions/1",
        })  # fmt: skip

    # Kaggle

    def kaggle(self, request):
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
        data = self.hub.files[repository][name]
        digest = hashlib.md5(data).digest()
        self.send_file(
            repository,
            name,
            data,
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
