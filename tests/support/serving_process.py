"""`bart-export serve` in another process: its log and its memory, threads and files."""

import contextlib
import pathlib
import re
import signal
import subprocess
import sys
import threading

import requests

from support.served_directories import wait_until

PROGRAM = pathlib.Path(sys.executable).with_name("bart-export")
LOOPBACK = "127.0.0.1"


class ServingProcess:
    """The process. `lines` are those of its standard output, `log` those of its standard error."""

    def __init__(self, *arguments, command=(PROGRAM,), env=None):
        options = ("serve", "--port", "0", "--rest-api-port", "0", *map(str, arguments))
        self.process = subprocess.Popen(
            [*command, *options], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines, self.log = [], []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self.reader.start()

    def wait_until_ready(self):
        """Read standard output up to the names of the models."""
        while not (self.lines and self.lines[-1].startswith("Model ")):
            line = self.process.stdout.readline()
            assert line, self.log
            self.lines.append(line.rstrip("\n"))
        self.port = int(re.search(r":(\d+)", self.lines[0])[1])
        self.rest_api_port = int(re.search(r":(\d+)/", self.lines[1])[1])

    def url(self, path):
        return f"http://{LOOPBACK}:{self.rest_api_port}{path}"

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def ended(self, seconds=60):
        """Wait for the end; return the exit code and the log."""
        self.process.wait(seconds)
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.returncode, "".join(self.log)

    def stop(self, seconds=60):
        """Send SIGTERM and wait for the end."""
        self.signal()
        return self.ended(seconds)

    def logged(self, text):
        """Return the number of lines in the log with a text."""
        return sum(text in line for line in list(self.log))

    def states(self, model):
        """Return the state of each version of a model."""
        answer = requests.get(self.url(f"/v1/models/{model}"), timeout=60).json()
        return {int(one["version"]): one["state"] for one in answer["model_version_status"]}

    def wait_for(self, model, version):
        """Wait until a version is available."""
        wait_until(lambda: self.states(model).get(version) == "AVAILABLE")

    def threads(self):
        """Return the number of threads."""
        return len(self._listing("task"))

    def files(self):
        """Return the number of open files and sockets."""
        return len(self._listing("fd"))

    def megabytes(self):
        """Return the private memory of the process."""
        return self._status("RssAnon")

    def peak_megabytes(self):
        """Return the most resident memory since `reset_peak`, of which files are a part."""
        return self._status("VmHWM")

    def reset_peak(self):
        """Forget the most resident memory."""
        (self._directory() / "clear_refs").write_text("5")

    def _status(self, name):
        status = (self._directory() / "status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024

    def _directory(self):
        return pathlib.Path(f"/proc/{self.process.pid}")

    def _listing(self, name):
        return list((self._directory() / name).iterdir())


@contextlib.contextmanager
def serving_process(*arguments):
    """Run `bart-export serve` on free ports during a block; it must end without an error."""
    running = ServingProcess(*arguments)
    try:
        running.wait_until_ready()
        yield running
    finally:
        code, log = running.stop()
        assert code == 0, log
        assert "Traceback" not in log, log
