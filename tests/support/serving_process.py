"""A real `bart-export serve` in a process of its own: what it logs and what it holds."""

import contextlib
import pathlib
import re
import subprocess
import sys
import threading

import requests

from support.served_directories import wait_until

PROGRAM = pathlib.Path(sys.executable).with_name("bart-export")
LOOPBACK = "127.0.0.1"
# From a version's appearance to its answer, on a machine that has more to do.
SWITCH_SECONDS = 30


class ServingProcess:
    """The process, once it answers. `log` has the lines that it has written so far."""

    def __init__(self, *arguments):
        command = [PROGRAM, "serve", "--port", "0", "--rest-api-port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self.reader.start()
        lines = []
        while not (lines and lines[-1].startswith("Model ")):
            lines.append(self.process.stdout.readline())
            assert lines[-1], self.log
        self.port = int(re.search(r":(\d+)", lines[0])[1])
        self.rest_api_port = int(re.search(r":(\d+)/", lines[1])[1])

    def url(self, path):
        return f"http://{LOOPBACK}:{self.rest_api_port}{path}"

    def end(self):
        """End it as a system would, and hold it to an end without a word of trouble."""
        self.process.terminate()
        self.process.wait(60)
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        assert self.process.returncode == 0, self.log
        assert self.logged("Traceback") == 0, self.log

    def logged(self, text):
        """Return how many lines of the log have a text."""
        return sum(text in line for line in list(self.log))

    def states(self, model):
        """Return the state of each version of a model."""
        answer = requests.get(self.url(f"/v1/models/{model}"), timeout=20).json()
        return {int(one["version"]): one["state"] for one in answer["model_version_status"]}

    def wait_for(self, model, version):
        """Wait until a version is available."""
        wait_until(lambda: self.states(model).get(version) == "AVAILABLE", SWITCH_SECONDS)

    def threads(self):
        """Return how many threads there are."""
        return len(self._listing("task"))

    def files(self):
        """Return how many files and sockets are open."""
        return len(self._listing("fd"))

    def megabytes(self):
        """Return the memory that the process alone holds."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024

    def _listing(self, name):
        return list(pathlib.Path(f"/proc/{self.process.pid}/{name}").iterdir())


@contextlib.contextmanager
def serving_process(*arguments):
    """Run `bart-export serve` for the length of a block, on free ports."""
    running = ServingProcess(*arguments)
    try:
        yield running
    finally:
        running.end()
