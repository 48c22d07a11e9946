"""The life of a server: load, open the ports, answer, drain, unload.

Everything is loaded before a port is opened, so that whoever can connect is answered. REST and gRPC
share one event loop and one store of models. When the server is to end, the ports are closed,
running calls have some seconds to finish, and what still runs then is stopped.
"""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import pathlib
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from bart_export.server import http_server, rest
from bart_export.server.grpc_server import GrpcServer
from bart_export.server.metrics import Metrics
from bart_export.server.models import ModelSpec, ModelStore
from bart_export.server.models_config import follow_config
from bart_export.server.open_version import opener
from bart_export.server.options import ServeOptions
from bart_export.server.versions import ServedModel, State

LOG = logging.getLogger(__name__)

# For work to stop: an engine looks between two tokens.
STOP_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Serving:
    """A server that answers: its ports and what it serves."""

    port: int
    rest_api_port: int
    store: ModelStore


def serve(
    models: Sequence[ServedModel],
    options: ServeOptions,
    say: Callable[[str], None],
    config_file: pathlib.Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what runs. A second signal ends at once.

    Args:
        models: what to serve.
        options: how.
        say: takes a line for each port and each model once the server is ready.
        config_file: where `models` came from, to be read again as `options` say.

    Raises:
        ConfigurationError: for a port that is taken, or an option that cannot be followed.
        StatusError: for a model that cannot be loaded.
    """
    if not http_server.is_loopback(options.host):
        LOG.warning(
            "Listening on %s: everybody who reaches this machine can use the models. There is no "
            "access control, and encryption for gRPC only, with --ssl-config-file",
            options.host,
        )

    async def until_signalled() -> None:
        loop, wished = asyncio.get_running_loop(), asyncio.Event()
        is_ready = False

        def end(number: int, _: FrameType | None) -> None:
            # At first nothing runs that a client waits for; and a second signal is in earnest. In a
            # container's first process the default action of a signal is to do nothing.
            if not is_ready or wished.is_set():
                os._exit(128 + number)
            loop.call_soon_threadsafe(wished.set)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        async with serving(models, options) as server:
            # The collector need not walk what is loaded because a request has many parts.
            gc.freeze()
            is_ready = True
            for line in ready_lines(server, options):
                say(line)
            seconds = options.model_config_poll_seconds
            if config_file and seconds:
                arguments = (config_file, models, server.store.configure, seconds)
                threading.Thread(target=follow_config, args=arguments, daemon=True).start()
            await wished.wait()
            LOG.info("Ending: running calls have %g s to finish", options.drain_seconds)

    asyncio.run(until_signalled())
    end_process()


def end_process() -> NoReturn:
    """End the process, everything having been unloaded, without taking its libraries apart.

    Threads of gRPC, LiteRT and TensorFlow outlive what used them. At a usual end the interpreter
    and C++ destroy what those threads still work with, and now and then one aborts the process.
    """
    # TensorFlow cannot be interrupted, and a call may have brought a deadline that is far.
    others = (each for each in threading.enumerate() if each is not threading.current_thread())
    if not all(thread.daemon for thread in others):
        LOG.warning("Ending in the midst of work that could not be stopped")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(0)


@contextlib.asynccontextmanager
async def serving(models: Sequence[ServedModel], options: ServeOptions) -> AsyncIterator[Serving]:
    """Load the models, then answer for the length of a block; at its end, drain and unload."""
    http_server.check_ports(options)
    limit = http_server.connection_limit(options)
    options = dataclasses.replace(options, max_connections=limit)
    metrics = Metrics()
    # When the store is stopped, calls have had their time and been asked to stop.
    last = dataclasses.replace(options, drain_seconds=min(options.drain_seconds, STOP_SECONDS))
    store = ModelStore(opener(options, metrics), last)
    # What is wrong with an option is to be known before minutes go into loading.
    grpc_server = GrpcServer(store, options, metrics)
    rest_server = http_server.RestServer(rest.app(store, options, metrics), options)
    async with contextlib.AsyncExitStack() as stack:
        sockets = stack.enter_context(http_server.bound(options.host, options.rest_api_port))
        stack.push_async_callback(asyncio.to_thread, store.stop)
        await asyncio.to_thread(store.configure, models)
        port = grpc_server.bind()
        rest_task = asyncio.create_task(rest_server.serve(sockets))
        await grpc_server.start()
        while not rest_server.started and not rest_task.done():
            await asyncio.sleep(0.01)
        try:
            yield Serving(port, sockets[0].getsockname()[1], store)
        finally:
            rest_server.should_exit = True
            await asyncio.gather(grpc_server.stop(options.drain_seconds), rest_task)


def ready_lines(server: Serving, options: ServeOptions) -> Iterator[str]:
    """Yield a line for each port and for each version that answers."""
    host = http_server.in_url(options.host)
    yield f"gRPC: {host}:{server.port}{' with TLS' if options.ssl_config_file else ''}"
    yield f"REST: http://{host}:{server.rest_api_port}/v1/models/NAME"
    if options.page:
        yield f"Page: http://{host}:{server.rest_api_port}/"
    for name in server.store.names():
        available = [
            str(status.version)
            for status in server.store.status(ModelSpec(name))
            if status.state == State.AVAILABLE
        ]
        yield f"Model {name}: version {', '.join(available)}"
