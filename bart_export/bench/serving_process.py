"""`bart-export serve` in a process of its own, for as long as it is measured.

An artifact, an engine and the options of a server go in; its ports come out, and how much memory it
takes at any moment. Whoever measures shares neither threads nor memory with it. What it is asked,
nothing here knows.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping

from bart_export.errors import EngineError, last_words
from bart_export.server.metrics import MICROSECONDS, RUNTIME_LATENCY
from bart_export.server.options import ServeOptions
from bart_export.server.rest import METRICS_PATH

PROGRAM = "from bart_export.cli.main import main; main()"
PORTS = {"gRPC: ": "grpc", "REST: ": "rest"}
READY = "Model "  # begins the last of the lines that say that a server answers
ENDING_SECONDS = 60.0
# Options of a server that may be measured, and their flags.
FLAGS = {"workers": "--workers", "num_threads": "--threads", "queue_size": "--queue-size"}


@dataclasses.dataclass(frozen=True)
class ServerProcess:
    """A server that answers: its process, the name of its model, and ports by front."""

    pid: int
    model: str
    ports: Mapping[str, int]

    def resident_bytes(self) -> int | None:
        """Return how much memory it has in use, None where the system does not say."""
        try:
            pages = pathlib.Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        except OSError:
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def engine_seconds(self) -> float:
        """Return how long all calls together have waited for the engine, as the server counts."""
        address = f"http://127.0.0.1:{self.ports['rest']}{METRICS_PATH}"
        with urllib.request.urlopen(address) as response:
            text = response.read().decode()
        sums = re.findall(rf"^{RUNTIME_LATENCY.name}_sum\{{.*\}} (\S+)$", text, re.MULTILINE)
        return sum(map(float, sums)) / MICROSECONDS


@contextlib.contextmanager
def server_process(
    directory: pathlib.Path, engine: str, options: ServeOptions
) -> Iterator[ServerProcess]:
    """Serve an artifact on free ports for the length of a block.

    Args:
        directory: the artifact.
        engine: what computes.
        options: of these, `FLAGS` are passed on, as far as they are not the server's defaults.

    Raises:
        EngineError: if the server ends before it answers, with what it said last.
    """
    directory = directory.resolve()
    command = [sys.executable, "-c", PROGRAM, "serve", str(directory), "--engine", engine]
    command += ["--port", "0", "--rest-api-port", "0"]
    for name, flag in FLAGS.items():
        if getattr(options, name) != getattr(ServeOptions(), name):
            command += [flag, str(getattr(options, name))]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        with process:
            try:
                ports = read_ports(process)
                if ports is None:
                    process.wait()
                    log.seek(0)
                    said = last_words(log.read(), process.returncode)
                    raise EngineError(f"Serving {directory} with {engine} failed: {said}")
                yield ServerProcess(process.pid, directory.name, ports)
            finally:
                end(process)


def read_ports(process: "subprocess.Popen[str]") -> dict[str, int] | None:
    """Wait until a server answers; return its ports by front, None if it ends instead."""
    ports = {}
    assert process.stdout is not None
    for line in process.stdout:
        for words, front in PORTS.items():
            if line.startswith(words):
                address = line.removeprefix(words).removeprefix("http://").split("/")[0]
                ports[front] = int(address.split()[0].rpartition(":")[2])
        if line.startswith(READY):
            return ports
    return None


def end(process: "subprocess.Popen[str]") -> None:
    """Have a server end; one that does not is killed."""
    process.terminate()
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
