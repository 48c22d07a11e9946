"""TensorFlow Serving's PredictionService and ModelService over gRPC, with health and reflection.

A method takes a request message and the limits of the call, and returns the response message. A
StatusError becomes the status of the call. A client's deadline ends the limits, and so does a
client that goes away.
"""

import asyncio
import logging
import pathlib
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from bart_export.errors import ConfigurationError
from bart_export.quiet import native_stderr_silenced
from bart_export.server import messages, models_config, tensors
from bart_export.server.http_server import in_url
from bart_export.server.messages import Message
from bart_export.server.metrics import Metrics
from bart_export.server.models import ModelSpec, ModelStore
from bart_export.server.options import MAX_ANSWER_BYTES, ServeOptions
from bart_export.server.predict import NO_EXAMPLES, Predictor, check_inputs, run_off_loop
from bart_export.server.servable import Limits, Tensors
from bart_export.server.status import Code, StatusError, invalid, status_of_error

# A method of a service: a request message and the limits of the call, and the response message.
Method = Callable[[Message, Limits], Awaitable[Message]]

GRPC_STATUS: dict[Code, grpc.StatusCode] = {Code(code.value[0]): code for code in grpc.StatusCode}
# TensorFlow Serving's bound: details travel in a header, and clients bound their headers.
DETAILS_LENGTH = 1024
TRUNCATED = "...TRUNCATED"
# A connection whose client makes no HTTP/2 of it in time is ended, and so is one on which nothing
# is asked for long, or whose client has gone without a word. An old one is ended once its calls
# have come to an end: clients connect again, which also spreads them over servers.
BOUNDS = (
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_concurrent_streams", 128),
)
# What those who watch the health take to learn that the server ends.
WATCHING_SECONDS = 0.2
SIGNATURE_DEF = "signature_def"
NO_RELOADS = (
    "HandleReloadConfigRequest is not allowed here. Expected a server with "
    "--allow-reload-requests; --model-config-file-poll-seconds follows a file instead"
)


class Services:
    """The methods of both services."""

    def __init__(self, store: ModelStore, metrics: Metrics) -> None:
        self.store = store
        self.predictor = Predictor(store, metrics)
        self.configuring = asyncio.Lock()

    def by_name(self) -> Mapping[str, Mapping[str, Method]]:
        """Return the methods by the full names of the services and their own."""
        unserved = dict.fromkeys(("Classify", "Regress", "MultiInference"), self.unserved)
        return {
            "tensorflow.serving.PredictionService": {
                "Predict": self.predict,
                "GetModelMetadata": self.get_model_metadata,
                **unserved,
            },
            "tensorflow.serving.ModelService": {
                "GetModelStatus": self.get_model_status,
                "HandleReloadConfigRequest": self.handle_reload_config_request,
            },
        }

    async def unserved(self, request: Message, limits: Limits) -> Message:
        """Refuse a method that takes examples."""
        raise StatusError(Code.UNIMPLEMENTED, NO_EXAMPLES)

    async def predict(self, request: Message, limits: Limits) -> Message:
        """Run a signature with tensors."""
        wanted = wanted_model(request)
        with self.predictor.counted(wanted, "Predict", "GRPC"):
            answer = await self.predictor.predict(
                wanted,
                request.model_spec.signature_name,
                lambda signature: self.inputs(request, signature),
                request.ByteSize(),
                limits,
                request.output_filter,
            )
            size = sum(array.nbytes for array in answer.outputs.values())
            if size > MAX_ANSWER_BYTES:
                raise invalid(
                    f"The answer has {size} bytes, and at most {MAX_ANSWER_BYTES} are sent. Ask "
                    "for fewer rows at once, or filter the outputs."
                )
            outputs = await run_off_loop(
                size,
                lambda: {name: tensors.to_proto(value) for name, value in answer.outputs.items()},
            )
            return messages.PredictResponse(
                model_spec=model_spec(wanted, answer.version, answer.signature), outputs=outputs
            )

    def inputs(self, request: Message, signature: Message) -> Tensors:
        """Return the inputs of a PredictRequest as arrays."""
        check_inputs(signature, request.inputs)
        for alias, proto in request.inputs.items():
            rows = proto.tensor_shape.dim[0].size if proto.tensor_shape.dim else 1
            tensors.check_rows(alias, rows, self.store.options.max_request_rows)
        return {alias: tensors.from_proto(proto, alias) for alias, proto in request.inputs.items()}

    async def get_model_metadata(self, request: Message, limits: Limits) -> Message:
        """Return the signatures of a model."""
        wanted = wanted_model(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise invalid(f"Metadata field {field} is not supported")
        version, signatures = self.predictor.signatures(wanted)
        response = messages.GetModelMetadataResponse(model_spec=model_spec(wanted, version, ""))
        response.metadata[SIGNATURE_DEF].Pack(signatures)
        return response

    async def get_model_status(self, request: Message, limits: Limits) -> Message:
        """Return the states of a model's versions."""
        return self.predictor.status(wanted_model(request))

    async def handle_reload_config_request(self, request: Message, limits: Limits) -> Message:
        """Serve the models that a request lists instead of those served now.

        The response comes when the models that are new are available. A client that goes away does
        not stop the change.
        """
        if not self.store.options.allow_reload_requests:
            raise StatusError(Code.PERMISSION_DENIED, NO_RELOADS)
        models = models_config.from_proto(request.config)

        async def configure() -> None:
            # It may take minutes, and the threads that other work is given to are few.
            async with self.configuring:
                await asyncio.to_thread(self.store.configure, models)

        await asyncio.shield(configure())
        return messages.ReloadConfigResponse()


def wanted_model(request: Message) -> ModelSpec:
    """Return what a request's `model_spec` asks for."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    return ModelSpec(
        name=spec.name,
        version=spec.version.value if choice == "version" else None,
        label=spec.version_label if choice == "version_label" else None,
    )


def model_spec(wanted: ModelSpec, version: int, signature: str) -> Message:
    """Return the `model_spec` of a response: what answered."""
    return messages.ModelSpec(
        name=wanted.name,
        version=messages.Int64Value(value=version),
        signature_name=signature,
    )


class GrpcServer:
    """The gRPC server of a store's models."""

    def __init__(self, store: ModelStore, options: ServeOptions, metrics: Metrics) -> None:
        self._options = options
        self._credentials = (
            server_credentials(options.ssl_config_file) if options.ssl_config_file else None
        )
        # It would write a trace for each request of health and reflection that is no message.
        logging.getLogger("grpc").setLevel(logging.CRITICAL)
        self._running: set[asyncio.Task[object]] = set()
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                # A second server on the same port is to fail instead of taking every other call.
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", options.max_connections),
                *BOUNDS,
                ("grpc.max_receive_message_length", options.max_request_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        services = Services(store, metrics).by_name()
        self._names = list(services)
        for name, methods in services.items():
            described = messages.POOL.FindServiceByName(name).methods_by_name
            handlers = {
                each: grpc.unary_unary_rpc_method_handler(
                    self._handler(method, described.get(each))
                )
                for each, method in methods.items()
            }
            generic = grpc.method_handlers_generic_handler(name, handlers)
            self._server.add_generic_rpc_handlers([generic])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            messages.POOL.AddSerializedFile(file.serialized_pb)
        reflection.enable_server_reflection(
            [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME],
            self._server,
            pool=messages.POOL,
        )

    def bind(self) -> int:
        """Take the port and return its number."""
        options = self._options
        address = f"{in_url(options.host)}:{options.port}"
        # gRPC logs the reason on the standard error itself, at length.
        with native_stderr_silenced():
            try:
                if self._credentials is None:
                    return int(self._server.add_insecure_port(address))
                return int(self._server.add_secure_port(address, self._credentials))
            except RuntimeError as error:
                raise ConfigurationError(
                    f"Cannot serve gRPC on {address}: the port is taken. Name a free one with "
                    "--port."
                ) from error

    async def start(self) -> None:
        """Begin to answer; from now on the health service says that all services serve."""
        await self._server.start()
        for name in self._names:
            # TensorFlow Serving reports the services without their package.
            for known in (name, name.rpartition(".")[2]):
                await self._health.set(known, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, seconds: float) -> None:
        """Be unhealthy, refuse new calls, let running ones finish for some seconds, cancel them."""
        await self._health.enter_graceful_shutdown()
        # Those who watch the health learn it from tasks of their own, which the end would cancel.
        await asyncio.sleep(WATCHING_SECONDS)
        closing = asyncio.create_task(self._server.stop(seconds))
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)
        # Streams of the health service never end by themselves.
        await self._server.stop(None)
        await closing

    def _handler(
        self, method: Method, descriptor: Message
    ) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
        """Return the handler of a method, from bytes to bytes.

        Parsing is done here because gRPC would do it on the event loop, and answer bytes that are
        no message without saying why. A method without a descriptor is given no message.
        """

        def parsed(data: bytes) -> Message:
            kind = descriptor.input_type.full_name
            try:
                return messages.message(kind).FromString(data)
            except DecodeError as error:
                raise invalid(
                    f"Expected a serialized {kind}, received {len(data)} bytes that are none: "
                    f"{error}"
                ) from error

        async def handle(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            task = asyncio.current_task()
            assert task is not None
            self._running.add(task)
            # The task ends after the response has been sent.
            task.add_done_callback(self._running.discard)
            seconds = context.time_remaining()
            if seconds is None:
                seconds = self._options.request_seconds
            limits = Limits(deadline=time.monotonic() + seconds)
            try:
                request = descriptor and await run_off_loop(len(data), lambda: parsed(data))
                response = await method(request, limits)
                context.set_trailing_metadata(tuple(limits.remarks.headers().items()))
                serialized: bytes = response.SerializeToString()
                return serialized
            except Exception as error:
                failure = status_of_error(error)
            details = failure.message
            if len(details) > DETAILS_LENGTH:
                details = details[: DETAILS_LENGTH - len(TRUNCATED)] + TRUNCATED
            await context.abort(GRPC_STATUS[failure.code], details)
            raise AssertionError("abort raises")

        return handle


def server_credentials(path: pathlib.Path) -> grpc.ServerCredentials:
    """Read TensorFlow Serving's SSLConfig text proto; keys and certificates stand in it as PEM."""
    config = messages.read_text(path, messages.SSLConfig)
    # gRPC looks into them with the first port, and says of nothing what was wrong.
    with ThreadPoolExecutor(1) as executor, native_stderr_silenced():
        try:
            credentials = grpc.ssl_server_credentials(
                [(config.server_key.encode(), config.server_cert.encode())],
                root_certificates=config.custom_ca.encode() or None,
                require_client_auth=config.client_verify,
            )
            grpc.server(executor).add_secure_port("localhost:0", credentials)
        except (RuntimeError, ValueError):
            raise ConfigurationError(
                f"{path} holds no key and certificate that fit: expected server_key to be the "
                "private key of server_cert and, with client_verify, custom_ca the certificate of "
                "who signs the clients', each as the text of a PEM file and not its path."
            ) from None
    return credentials
