"""`bart-export` whose TensorFlow engine is an Arithmetic: run as a program, or in tests.

A version directory with a file `slow` takes its seconds to load, one with `broken` fails.
"""

import atexit
import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import grpc
import httpx
import numpy as np

from bart_export.server import messages, open_version
from bart_export.server.tensors import to_proto
from support.arithmetic import Arithmetic

LOOPBACK = "127.0.0.1"
TESTS, PATHS = str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH")


def rest(port, signature="serving_default", timeout=20, **inputs):
    """Ask over REST, on a connection of its own."""
    body = {"signature_name": signature, "inputs": inputs}
    url = f"http://{LOOPBACK}:{port}/v1/models/m:predict"
    return httpx.post(url, json=body, timeout=timeout)


def over_grpc(port, signature="serving_default", timeout=20, **inputs):
    """Ask over gRPC, on a connection of its own; return the response."""
    request = messages.PredictRequest(
        model_spec={"name": "m", "signature_name": signature},
        inputs={name: to_proto(np.array(value, np.float32)) for name, value in inputs.items()},
    )
    own = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"{LOOPBACK}:{port}", own) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        answer = call(request.SerializeToString(), timeout=timeout)
    return messages.PredictResponse.FromString(answer)


def connects(port):
    """Return whether something accepts connections on a port."""
    try:
        socket.create_connection((LOOPBACK, port), 1).close()
        return True
    except ConnectionRefusedError:
        return False


def open_arithmetic(engine, path, options):
    """Stand in for the TensorFlow engine."""
    if (path / "broken").exists():
        raise RuntimeError("it is broken")
    if (path / "slow").exists():
        time.sleep(float((path / "slow").read_text()))
    return Arithmetic(queue_size=options.queue_size)


class Process:
    """A `bart-export serve` in a process of its own."""

    def __init__(self, arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", __name__, "serve", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (TESTS, PATHS)))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        self.port = self.rest_api_port = None

    def wait_until_ready(self):
        """Read what it prints until it says which models it serves."""
        while not (self.lines and self.lines[-1].startswith("Model ")):
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.lines.append(line.rstrip("\n"))
        self.port = int(re.search(r":(\d+)", self.lines[0])[1])
        self.rest_api_port = int(re.search(r":(\d+)/", self.lines[1])[1])

    def signal(self, number=signal.SIGTERM):
        """Send it a signal."""
        self.process.send_signal(number)

    def ended(self, seconds=10):
        """Wait for its end; return its exit code and what it wrote to standard error."""
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, errors


@contextlib.contextmanager
def process(*arguments, ready=True):
    """Run `bart-export serve` for a block, on free ports."""
    served = Process(["--port", 0, "--rest-api-port", 0, *arguments])
    try:
        if ready:
            served.wait_until_ready()
        yield served
    finally:
        served.process.kill()
        served.process.communicate()


if __name__ == "__main__":
    from bart_export.cli.main import main

    open_version.open_servable = open_arithmetic
    # What native libraries do now and then while the interpreter takes them apart.
    if "ABORT_AT_EXIT" in os.environ:
        atexit.register(os.abort)
    main()
