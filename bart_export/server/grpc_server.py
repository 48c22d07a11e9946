"""TensorFlow Serving's PredictionService and ModelService over gRPC, with health and reflection.

A StatusError becomes the status of a call. A call is cancelled at its deadline or when its client
disconnects.
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
from bart_export.server import messages, models_config
from bart_export.server.http_server import in_url
from bart_export.server.messages import Message
from bart_export.server.metrics import Metrics
from bart_export.server.model_store import ModelSpec, ModelStore
from bart_export.server.options import MAX_ANSWER_BYTES, ServeOptions
from bart_export.server.predict import NO_EXAMPLES, Predictor, call_of, run_off_loop
from bart_export.server.servable import Limits
from bart_export.server.status import Code, StatusError, invalid, status_of_error

# Takes a request message and the call's limits, returns the response message.
Method = Callable[[Message, Limits], Awaitable[Message]]

GRPC_STATUS: dict[Code, grpc.StatusCode] = {Code(code.value[0]): code for code in grpc.StatusCode}
# TensorFlow Serving's limit: details are sent in a header, whose size clients limit.
DETAILS_LENGTH = 1024
TRUNCATED = "...TRUNCATED"
# Close connections without an HTTP/2 handshake, idle ones, and those of vanished clients. Old ones
# close after their last call, so that reconnecting clients spread over several servers.
BOUNDS = (
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_concurrent_streams", 128),
)
# Time for health watchers to receive NOT_SERVING.
WATCHING_SECONDS = 0.2
SIGNATURE_DEF = "signature_def"
NO_RELOADS = (
    "HandleReloadConfigRequest is disabled. Start the server with --allow-reload-requests, or "
    "use --model-config-file-poll-seconds and edit the --model-config-file"
)


class Services:
    """The methods of both services."""

    def __init__(self, store: ModelStore, metrics: Metrics) -> None:
        self.store = store
        self.predictor = Predictor(store, metrics)
        self.configuring = asyncio.Lock()

    def by_name(self) -> Mapping[str, Mapping[str, Method]]:
        """Return the methods by full service name and method name."""
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
        """Refuse a method that takes tf.Examples."""
        raise StatusError(Code.UNIMPLEMENTED, NO_EXAMPLES)

    async def predict(self, request: Message, limits: Limits) -> Message:
        """Run a signature."""
        wanted, most = wanted_model(request), self.store.options.max_request_rows
        with self.predictor.counted(wanted, "Predict", "GRPC"):
            with self.store.lease(wanted) as lease:
                call = await run_off_loop(
                    request.ByteSize(), lambda: call_of(lease.servable, request, limits, most)
                )
                arrays = await self.predictor.predict(wanted, lease, call)
            size = sum(array.nbytes for array in arrays.values())
            if size > MAX_ANSWER_BYTES:
                raise invalid(
                    f"Expected a response of at most {MAX_ANSWER_BYTES} bytes, received {size}. "
                    "Send fewer rows per request, or set output_filter."
                )
            outputs = await run_off_loop(
                size,
                lambda: {name: messages.tensor_proto(array) for name, array in arrays.items()},
            )
            return messages.PredictResponse(
                model_spec=model_spec(wanted, lease.version, call.signature), outputs=outputs
            )

    async def get_model_metadata(self, request: Message, limits: Limits) -> Message:
        """Return a model's signatures."""
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
        """Replace the served models by those of a request, and respond once they are available.

        The change continues if the client disconnects.
        """
        if not self.store.options.allow_reload_requests:
            raise StatusError(Code.PERMISSION_DENIED, NO_RELOADS)
        models = models_config.from_proto(request.config)

        async def configure() -> None:
            # Loading may take minutes; the lock keeps waiting requests from occupying threads.
            async with self.configuring:
                await asyncio.to_thread(self.store.configure, models)

        await asyncio.shield(configure())
        return messages.ReloadConfigResponse()


def wanted_model(request: Message) -> ModelSpec:
    """Return a request's `model_spec`."""
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
    """Return the `model_spec` of a response."""
    return messages.ModelSpec(
        name=wanted.name,
        version=messages.Int64Value(value=version),
        signature_name=signature,
    )


class GrpcServer:
    """The gRPC server of a model store."""

    def __init__(self, store: ModelStore, options: ServeOptions, metrics: Metrics) -> None:
        self._options = options
        self._credentials = (
            server_credentials(options.ssl_config_file) if options.ssl_config_file else None
        )
        # gRPC logs a traceback for every malformed health or reflection request.
        logging.getLogger("grpc").setLevel(logging.CRITICAL)
        self._running: set[asyncio.Task[object]] = set()
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                # A second server on the port must fail instead of sharing the calls.
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
        """Bind the port and return its number."""
        options = self._options
        address = f"{in_url(options.host)}:{options.port}"
        # gRPC prints long reasons to standard error.
        with native_stderr_silenced():
            try:
                if self._credentials is None:
                    return int(self._server.add_insecure_port(address))
                return int(self._server.add_secure_port(address, self._credentials))
            except RuntimeError as error:
                raise ConfigurationError(
                    f"Cannot serve gRPC on {address}: the port is in use. Choose a free one with "
                    "--port."
                ) from error

    async def start(self) -> None:
        """Start answering, and report all services as serving."""
        await self._server.start()
        for name in self._names:
            # TensorFlow Serving reports the services without their package.
            for service in (name, name.rpartition(".")[2]):
                await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, seconds: float) -> None:
        """Report unhealthy, refuse new calls, give running ones `seconds`, then cancel them."""
        await self._health.enter_graceful_shutdown()
        # Stopping the server would cancel the tasks that notify health watchers.
        await asyncio.sleep(WATCHING_SECONDS)
        closing = asyncio.create_task(self._server.stop(seconds))
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)
        # Streams of the health service never end on their own.
        await self._server.stop(None)
        await closing

    def _handler(
        self, method: Method, descriptor: Message
    ) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
        """Return the handler of a method, from bytes to bytes.

        gRPC itself would parse on the event loop and give no reason for malformed requests. A
        method without a descriptor gets no message.
        """

        def parsed(data: bytes) -> Message:
            kind = descriptor.input_type.full_name
            try:
                return messages.message(kind).FromString(data)
            except DecodeError as error:
                raise invalid(
                    f"Expected a serialized {kind}, received {len(data)} invalid bytes: {error}"
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
            except Exception as error:  # gRPC would answer UNKNOWN, without the reason
                failure = status_of_error(error)
            details = failure.message
            if len(details) > DETAILS_LENGTH:
                details = details[: DETAILS_LENGTH - len(TRUNCATED)] + TRUNCATED
            await context.abort(GRPC_STATUS[failure.code], details)
            raise AssertionError("abort raises")

        return handle


def server_credentials(path: pathlib.Path) -> grpc.ServerCredentials:
    """Read an SSLConfig text proto, whose keys and certificates are PEM texts."""
    config = messages.read_text(path, messages.SSLConfig)
    # gRPC checks them when it binds a port, and gives no reason for a failure.
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
                f"{path} has no matching key and certificate: expected server_key to be the "
                "private key of server_cert and, with client_verify, custom_ca to be the "
                "certificate that signs the clients' certificates, each as PEM text, not a path."
            ) from None
    return credentials
