"""Processes that use the clients of hubs and other stores, which read their settings when imported.

    python -m support.hub_processes TASK REQUESTS

calls a task with the arguments of each request, a JSON list, and prints the outcomes as JSON Lines.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time

import fsspec
from fsspec.implementations.local import LocalFileSystem

from support.hub_server import Hub, serve
from support.paths import ROOT, TESTS


def environment(home, **settings):
    """Return the environment of a process with a home directory and no other settings of hubs."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith(("HF_", "KAGGLE"))
    }
    return kept | {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "KAGGLEHUB_CACHE": str(home / "kaggle"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS))),
        "PYTHONWARNINGS": "ignore",
        **settings,
    }


@contextlib.contextmanager
def serving(hub: Hub):
    """Serve a hub while a block runs; yield its address."""
    server, address = serve(hub)
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()


def start(task, requests, home, **settings):
    """Start a task of this program."""
    command = [sys.executable, "-m", "support.hub_processes", task.__name__, json.dumps(requests)]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=environment(home, **settings), text=True, **pipes)


def outcomes(process):
    """Wait for a task, which may print nothing else; return its outcomes."""
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return [json.loads(line) for line in output.splitlines()]


def outcomes_of(task, requests, home, **settings):
    """Run a task in one process; return the outcome of each request."""
    found = outcomes(start(task, requests, home, **settings))
    assert len(found) == len(requests)
    return found


def open_artifact(location, names):
    """Open an artifact and files of it."""
    from bart_export.artifact.artifact import Artifact

    artifact = Artifact.open(location)
    paths = {name: artifact.path(name) for name in names}
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    return {"directory": str(artifact.directory), "files": files}


def resolve_preset(preset):
    from bart_export.checkpoints import resolve

    source = resolve.find(preset)
    return {
        "handle": source.handle,
        "revision": source.revision,
        "generation": source.generation and source.generation.to_dict(),
        "directory": str(source.directory),
    }


def run_command(settings, words):
    """Run a command of bart-export in an environment."""
    from click.testing import CliRunner

    from bart_export.cli.main import main

    result = CliRunner().invoke(main, words, env=settings)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return {"code": result.exit_code, "printed": result.stdout, "said": result.stderr}


class StallingFileSystem(LocalFileSystem):
    """Local files, of which reading waits after the first mebibyte."""

    protocol = "stalling"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("stalling://"))

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        read = file.f.read

        def stalling(size=-1):
            if file.f.tell() >= 1 << 20:
                time.sleep(60)
            return read(size)

        file.read = stalling
        return file


if __name__ == "__main__":
    from bart_export.errors import BartExportError

    fsspec.register_implementation("stalling", StallingFileSystem)
    task, requests = globals()[sys.argv[1]], json.loads(sys.argv[2])
    for request in requests:
        try:
            outcome = task(*request)
        except BartExportError as error:
            outcome = {"error": type(error).__name__, "line": str(error)}
        print(json.dumps(outcome), flush=True)
