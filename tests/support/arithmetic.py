"""A servable without a model: sums, texts and pauses, with worker threads and a bounded queue."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from bart_export.server import messages
from bart_export.server.status import Code, StatusError

PREDICT = "tensorflow/serving/predict"
STEP_SECONDS = 0.01


def info(name, dtype, *shape):
    """Return the TensorInfo of a tensor."""
    dims = [messages.TensorShapeProto.Dim(size=size) for size in shape]
    return messages.TensorInfo(
        name=f"{name}:0",
        dtype=messages.DataType.Value(dtype),
        tensor_shape=messages.TensorShapeProto(dim=dims),
    )


def signature(method, inputs, outputs, **defaults):
    """Return a SignatureDef with tensors of shape [B]; tensor names map to dtypes."""
    return messages.SignatureDef(
        inputs={name: info(name, dtype, -1) for name, dtype in inputs.items()},
        outputs={name: info(name, dtype, -1) for name, dtype in outputs.items()},
        method_name=method,
        defaults={name: messages.tensor_proto(value) for name, value in defaults.items()},
    )


FLOAT, STRING = "DT_FLOAT", "DT_STRING"
SIGNATURES = {
    "serving_default": signature(PREDICT, {"x": FLOAT}, {"y": FLOAT}),
    "sums": signature(
        PREDICT,
        {"a": FLOAT, "b": FLOAT},
        {"difference": FLOAT, "sum": FLOAT},
        b=np.array([1], np.float32),
    ),
    "upper": signature(PREDICT, {"text": STRING}, {"upper": STRING}),
    "wait": signature(PREDICT, {"seconds": FLOAT}, {"seconds": FLOAT}),
    "deaf": signature(PREDICT, {"seconds": FLOAT}, {"seconds": FLOAT}),
    "fail": signature(PREDICT, {"x": FLOAT}, {"y": FLOAT}),
}


def wait(limits, seconds):
    """Take some seconds, in steps that check the limits."""
    end = time.monotonic() + float(seconds[0])
    while time.monotonic() < end:
        limits.check()
        time.sleep(STEP_SECONDS)
    return {"seconds": seconds}


def deaf(limits, seconds):
    """Take some seconds without checking the limits."""
    time.sleep(float(seconds[0]))
    return {"seconds": seconds}


def fail(limits, x):
    raise RuntimeError("the engine broke")


FUNCTIONS = {
    "serving_default": lambda limits, x: {"y": x / 2 + 2},
    "sums": lambda limits, a, b=1.0: {"sum": a + b, "difference": a - b},
    "upper": lambda limits, text: {"upper": np.array([each.upper() for each in text], object)},
    "wait": wait,
    "deaf": deaf,
    "fail": fail,
}


class Arithmetic:
    """The servable. `running` counts running calls, `stopped` those ended by their limits."""

    signature_defs = SIGNATURES
    streams = False
    reader = None

    def __init__(self, workers=4, queue_size=64):
        self.places = threading.Semaphore(workers + queue_size)
        self.workers = ThreadPoolExecutor(workers)
        self.lock = threading.Lock()
        self.running = self.stopped = 0
        self.closed = False

    def submit(self, call):
        if not self.places.acquire(blocking=False):
            raise StatusError(Code.UNAVAILABLE, "The queue is full")
        future = self.workers.submit(self.run, call)
        future.add_done_callback(lambda _: self.places.release())
        return future

    def run(self, call):
        for name, value in call.inputs.items():
            expected = self.signature_defs[call.signature].inputs[name].dtype
            if messages.data_type_of(value) != expected:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"Expects arg[0] to be {messages.type_name(expected)} but "
                    f"{messages.type_name(messages.data_type_of(value))} is provided",
                )
        try:
            self.count(running=1)
            outputs = FUNCTIONS[call.signature](call.limits, **call.inputs)
        except StatusError:
            self.count(stopped=1)
            raise
        except (ValueError, TypeError) as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"Shapes do not fit: {error}") from error
        finally:
            self.count(running=-1)
        return {name: outputs[name] for name in call.outputs}

    def count(self, running=0, stopped=0):
        with self.lock:
            self.running += running
            self.stopped += stopped

    def stream(self, text, parameters, emit, limits):
        future = Future()
        future.set_exception(StatusError(Code.UNIMPLEMENTED, "Arithmetic has no tokens"))
        return future

    def close(self):
        self.closed = True
        self.workers.shutdown()
