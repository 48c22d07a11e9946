"""The gRPC server with Arithmetic models, and TensorFlow Serving's official stubs."""

import asyncio
import contextlib
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from bart_export.server.grpc_server import GrpcServer
from bart_export.server.metrics import Metrics
from bart_export.server.model_store import ModelStore
from bart_export.server.options import ServeOptions
from bart_export.server.versions import ServedModel, VersionPolicy
from support.arithmetic import Arithmetic

REQUESTS = {
    "Predict": predict_pb2.PredictRequest,
    "Classify": classification_pb2.ClassificationRequest,
    "Regress": regression_pb2.RegressionRequest,
    "MultiInference": inference_pb2.MultiInferenceRequest,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
    "HandleReloadConfigRequest": model_management_pb2.ReloadConfigRequest,
}


class Front:
    """A running server with its parts, a channel and stubs."""

    def __init__(self, port, end, store, metrics, servables, credentials):
        self.port, self.end, self.servables = port, end, servables
        self.store, self.metrics = store, metrics
        address = f"localhost:{port}"
        if credentials is None:
            self.channel = grpc.insecure_channel(address)
        else:
            self.channel = grpc.secure_channel(address, credentials)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)


def store_of(options, servables, loading):
    """Return a store whose every model has versions 1 and 2, each an Arithmetic."""

    def open_version(served, number, path):
        assert served.name == "m" or loading is None or loading.wait(60)
        servables[served.name, number] = Arithmetic(queue_size=options.queue_size)
        return servables[served.name, number]

    return ModelStore(open_version, options, lambda served: dict.fromkeys((1, 2), served.base_path))


def model(name, base_path, **fields):
    """Return a ServedModel with all its versions."""
    return ServedModel(
        name=name,
        base_path=base_path,
        engine="tensorflow",
        policy=VersionPolicy(latest=None),
        **fields,
    )


@contextlib.contextmanager
def front(base_path, drain_seconds=5.0, loading=None, credentials=None, **settings):
    """Serve the model "m" during a block: versions 1, labelled "stable", and 2.

    Other models load once the event `loading` is set.
    """
    settings = {"port": 0, "allow_reload_requests": True, **settings}
    options = ServeOptions(drain_seconds=drain_seconds, **settings)
    servables, metrics = {}, Metrics()
    store = store_of(options, servables, loading)
    store.configure([model("m", base_path, labels={"stable": 1})])
    started = Future()

    async def serve():
        server = GrpcServer(store, options, metrics)
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        port = server.bind()
        await server.start()

        def end():
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(ended.set)

        started.set_result((port, end))
        await ended.wait()
        await server.stop(drain_seconds)

    with ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(asyncio.run, serve())
        port, end = started.result(60)

        def end_and_wait():
            if not outcome.done():
                end()
            outcome.result()
            store.stop()

        served = Front(port, end, store, metrics, servables, credentials)
        try:
            yield served
        finally:
            served.channel.close()
            end_and_wait()


def request_of(method, text="", **fields):
    """Return a method's request from protobuf text."""
    return text_format.Parse(text, REQUESTS[method](**fields))


def call(served, method, text="", timeout=30, **fields):
    """Call a method with a request from protobuf text."""
    request = request_of(method, text, **fields)
    stub = served.prediction if hasattr(served.prediction, method) else served.models
    return getattr(stub, method)(request, timeout=timeout)


def refused(served, method, text, **settings):
    """Make a call that fails; return its code and details."""
    with pytest.raises(grpc.RpcError) as caught:
        call(served, method, text, **settings)
    return caught.value.code().name, caught.value.details()


def spec(signature="", name="m", rest=""):
    """Return a model_spec as text."""
    return f'model_spec {{ name: "{name}" signature_name: "{signature}" {rest} }}'


def tensor(name, value):
    """Return an input as text."""
    proto = text_format.MessageToString(tf.make_tensor_proto(value), as_one_line=True)
    return f'inputs {{ key: "{name}" value {{ {proto} }} }}'
