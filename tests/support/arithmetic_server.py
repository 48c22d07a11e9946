"""`bart-export` with an Arithmetic in place of the TensorFlow engine, in tests or as a program.

A version directory with a file `slow` takes its seconds to load, one with `broken` fails.
"""

import atexit
import contextlib
import os
import pathlib
import socket
import sys
import time

import grpc
import httpx
import numpy as np

from bart_export.server import messages, open_version
from bart_export.server.messages import tensor_proto
from support.arithmetic import Arithmetic
from support.serving_process import LOOPBACK, ServingProcess

TESTS, PATHS = str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH")


def rest(port, signature="serving_default", timeout=20, **inputs):
    """Send a REST request on a new connection."""
    body = {"signature_name": signature, "inputs": inputs}
    url = f"http://{LOOPBACK}:{port}/v1/models/m:predict"
    return httpx.post(url, json=body, timeout=timeout)


def over_grpc(port, signature="serving_default", timeout=20, **inputs):
    """Send a gRPC request on a new connection; return the response."""
    request = messages.PredictRequest(
        model_spec={"name": "m", "signature_name": signature},
        inputs={name: tensor_proto(np.array(value, np.float32)) for name, value in inputs.items()},
    )
    own = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"{LOOPBACK}:{port}", own) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        answer = call(request.SerializeToString(), timeout=timeout)
    return messages.PredictResponse.FromString(answer)


def connects(port):
    """Return whether something accepts connections on a port."""
    try:
        socket.create_connection((LOOPBACK, port), 20).close()
        return True
    except ConnectionError:  # refused, or reset while the port closes
        return False


def open_arithmetic(served, number, path, options, metrics):
    """Replace the TensorFlow engine."""
    if (path / "broken").exists():
        raise RuntimeError("it is broken")
    if (path / "slow").exists():
        time.sleep(float((path / "slow").read_text()))
    return Arithmetic(queue_size=options.queue_size)


@contextlib.contextmanager
def process(*arguments, ready=True):
    """Run this program's `serve` on free ports during a block."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (TESTS, PATHS)))}
    command = (sys.executable, "-W", "error", "-m", __name__)
    running = ServingProcess(*arguments, command=command, env=env)
    try:
        if ready:
            running.wait_until_ready()
        yield running
    finally:
        running.process.kill()
        running.ended()


if __name__ == "__main__":
    from bart_export.cli.main import main

    open_version.open_servable = open_arithmetic
    # As native libraries sometimes do while the interpreter exits.
    if "ABORT_AT_EXIT" in os.environ:
        atexit.register(os.abort)
    main()
