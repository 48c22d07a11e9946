"""The gRPC front: a port, and messages that go to the methods of services and come back.

A method takes the message that some bytes hold and the limits of the call. A StatusError becomes
the status of the call. A client's deadline ends the limits, and so does a client that goes away.
Health checks and reflection are answered here, too.
"""

import asyncio
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from bart_export.errors import ConfigurationError
from bart_export.quiet import native_stderr_silenced
from bart_export.server import messages, ports
from bart_export.server.options import ServeOptions
from bart_export.server.predict import aside, status_of
from bart_export.server.servable import Limits
from bart_export.server.status import Code, StatusError, invalid

# A method of a service: a request message and the limits of the call, and the response message.
Method = Callable[[Any, Limits], Awaitable[Any]]
# Methods by their names, by the full names of their services in `messages.POOL`.
Services = Mapping[str, Mapping[str, Method]]

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
# What those who watch the health take to be told that the server ends.
TELLING_SECONDS = 0.2


class GrpcServer:
    """A gRPC server for some services, with health and reflection beside them."""

    def __init__(self, services: Services, options: ServeOptions) -> None:
        self._options = options
        self._credentials = (
            server_credentials(options.ssl_config_file) if options.ssl_config_file else None
        )
        self._running: set[asyncio.Task[Any]] = set()
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[Parsing()],
            options=[
                # A second server on the same port is to fail instead of taking every other call.
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", options.max_connections),
                *BOUNDS,
                ("grpc.max_receive_message_length", options.max_request_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self._names = list(services)
        self._server.add_generic_rpc_handlers(
            [self._handlers(name, methods) for name, methods in services.items()]
        )
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
        address = f"{ports.in_url(options.host)}:{options.port}"
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
        # Those who watch the health are told by tasks of their own, which the end would cancel.
        await asyncio.sleep(TELLING_SECONDS)
        closing = asyncio.create_task(self._server.stop(seconds))
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)
        # Streams of the health service never end by themselves.
        await self._server.stop(None)
        await closing

    def _handlers(self, service: str, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
        descriptors = messages.POOL.FindServiceByName(service).methods_by_name
        return grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._handler(method, descriptors.get(name))
                )
                for name, method in methods.items()
            },
        )

    def _handler(
        self, method: Method, descriptor: Any
    ) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
        """Return the handler of a method, from bytes to bytes.

        Parsing is done here because gRPC answers bytes that are no message without saying why. A
        method without a descriptor is given no message.
        """
        request_type = descriptor and messages.message(descriptor.input_type.full_name)

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
                request = descriptor and await parsed(
                    data, descriptor.input_type, request_type.FromString
                )
                response = await method(request, limits)
                context.set_trailing_metadata(tuple(limits.remarks.headers().items()))
                serialized: bytes = response.SerializeToString()
                return serialized
            except Exception as error:
                failure = status_of(error)
            await context.abort(GRPC_STATUS[failure.code], shortened(failure.message))
            raise AssertionError("abort raises")

        return handle


class Parsing(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Parses the requests of health and reflection, whose handlers expect messages.

    gRPC would answer bytes that are no message with UNKNOWN, and log a trace for each.
    """

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the handler of a call, which is to be given bytes."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler
        service, name = details.method[1:].split("/")
        method = messages.POOL.FindServiceByName(service).methods_by_name[name]

        async def message(data: bytes, context: grpc.aio.ServicerContext) -> Any:
            try:
                return await parsed(data, method.input_type, handler.request_deserializer)
            except StatusError as failure:
                await context.abort(GRPC_STATUS[failure.code], shortened(failure.message))
                raise AssertionError("abort raises") from failure

        async def answer(data: bytes, context: grpc.aio.ServicerContext) -> Any:
            answers = handler.unary_stream or handler.unary_unary
            return await answers(await message(data, context), context)

        async def answers(
            requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
        ) -> AsyncIterator[Any]:
            read = (await message(data, context) async for data in requests)
            async for response in handler.stream_stream(read, context):
                yield response

        # A namedtuple
        return handler._replace(
            request_deserializer=None,
            unary_unary=handler.unary_unary and answer,
            unary_stream=handler.unary_stream and answer,
            stream_stream=handler.stream_stream and answers,
        )


async def parsed(data: bytes, descriptor: Any, parse: Callable[[bytes], Any]) -> Any:
    """Return the message of a type that some bytes hold."""
    try:
        return await aside(len(data), lambda: parse(data))
    except DecodeError as error:
        raise invalid(
            f"Expected a serialized {descriptor.full_name}, received {len(data)} bytes that are "
            f"none: {error}"
        ) from error


def shortened(details: str) -> str:
    """Return the details of an error, cut where TensorFlow Serving cuts them."""
    if len(details) <= DETAILS_LENGTH:
        return details
    return details[: DETAILS_LENGTH - len(TRUNCATED)] + TRUNCATED


def server_credentials(path: pathlib.Path) -> grpc.ServerCredentials:
    """Read TensorFlow Serving's SSLConfig text proto; keys and certificates stand in it as PEM."""
    try:
        config = messages.read_text(path, messages.SSLConfig)
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(
            f"{path}: expected the text of an SSLConfig message: {error}"
        ) from error
    if not config.server_key or not config.server_cert:
        raise ConfigurationError(
            f"{path}: expected server_key and server_cert, each with the text of a PEM file."
        )
    if config.client_verify and not config.custom_ca:
        raise ConfigurationError(
            f"{path}: client_verify needs custom_ca, the PEM of who signs the clients' "
            "certificates."
        )
    for name in ("server_key", "server_cert", "custom_ca"):
        if getattr(config, name) and "-----BEGIN " not in getattr(config, name):
            raise ConfigurationError(
                f"{path}: expected {name} to be the text of a PEM file, from -----BEGIN on, and "
                "not the file's path."
            )
    credentials = grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )
    # gRPC looks into them with the first port, and says of nothing what was wrong.
    with ThreadPoolExecutor(1) as executor, native_stderr_silenced():
        try:
            grpc.server(executor).add_secure_port("localhost:0", credentials)
        except RuntimeError:
            raise ConfigurationError(
                f"{path} holds no key and certificate that fit: expected server_key to be the "
                "private key of server_cert, and custom_ca certificates, all of them PEM."
            ) from None
    return credentials
