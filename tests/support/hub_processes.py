"""Processes that use the hubs' real clients against a loopback server."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from support.hub_server import Hub, serve

SUPPORT = Path(__file__).parent


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
        "PYTHONPATH": str(SUPPORT.parents[1]),
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


def start(script, *arguments, home, **settings):
    """Start a script of this directory."""
    command = [sys.executable, str(SUPPORT / script), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment(home, **settings), stdout=pipe, stderr=pipe, text=True
    )


def outcomes(process):
    """Wait for a script; return the outcomes that it printed, and its standard error."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()], errors
