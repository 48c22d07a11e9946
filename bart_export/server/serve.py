"""The life cycle of a server: load, open the ports, answer, drain, unload.

All models are loaded before a port opens. REST and gRPC share an event loop and a model store. At
shutdown the ports close, running calls get time to finish, and the rest are stopped.
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
from bart_export.server.model_store import ModelSpec, ModelStore
from bart_export.server.models_config import follow_config
from bart_export.server.open_version import opener
from bart_export.server.options import ServeOptions
from bart_export.server.versions import ServedModel, State

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Serving:
    """A running server: its ports and its models."""

    port: int
    rest_api_port: int
    store: ModelStore


def serve(
    models: Sequence[ServedModel],
    options: ServeOptions,
    say: Callable[[str], None],
    config_file: pathlib.Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal exits immediately.

    Args:
        models: the models to serve.
        options: the server's settings.
        say: called with a line for each port and each model once the server is ready.
        config_file: the source of `models`, read again every `model_config_poll_seconds`.

    Raises:
        ConfigurationError: for a port in use or an invalid option.
        StatusError: for a model that cannot be loaded.
    """
    if not http_server.is_loopback(options.host):
        LOG.warning(
            "Listening on %s: anyone who can reach this machine can use the models. There is no "
            "access control; only gRPC has encryption, with --ssl-config-file",
            options.host,
        )

    async def until_signalled() -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        is_ready = False

        def on_signal(number: int, _: FrameType | None = None) -> None:
            # Before the server is ready, no client is waiting. The default action would not do:
            # the first process of a container ignores signals without a handler.
            if not is_ready or stopping.is_set():
                os._exit(128 + number)
            loop.call_soon_threadsafe(stopping.set)

        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                # A signal that another thread receives must wake the event loop, too.
                loop.add_signal_handler(number, on_signal, number)
            except NotImplementedError:  # Windows, where every signal wakes it
                signal.signal(number, on_signal)
        async with serving(models, options) as server:
            # Keep garbage collection during a large request from traversing everything loaded.
            gc.freeze()
            is_ready = True
            for line in ready_lines(server, options):
                say(line)
            seconds = options.model_config_poll_seconds
            if config_file and seconds:
                arguments = (config_file, models, server.store.configure, seconds)
                threading.Thread(target=follow_config, args=arguments, daemon=True).start()
            await stopping.wait()
            LOG.info("Stopping: running calls have %g s to finish", options.drain_seconds)

    asyncio.run(until_signalled())
    end_process()


def end_process() -> NoReturn:
    """Exit without destructors, after all models have been unloaded.

    Threads of gRPC, LiteRT and TensorFlow may still run. An ordinary exit destroys objects that
    they use, which sometimes aborts the process.
    """
    # TensorFlow cannot be interrupted, and a call's deadline may be far away.
    others = (each for each in threading.enumerate() if each is not threading.current_thread())
    if not all(thread.daemon for thread in others):
        LOG.warning("Exiting with calls still running that could not be stopped")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader is gone
            stream.flush()
    os._exit(0)


@contextlib.asynccontextmanager
async def serving(models: Sequence[ServedModel], options: ServeOptions) -> AsyncIterator[Serving]:
    """Load the models and serve them while a block runs; at its end, drain and unload."""
    http_server.check_ports(options)
    metrics = Metrics()
    store = ModelStore(opener(options, metrics), options)
    # Report invalid options before loading, which may take minutes.
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
    """Yield a line for each port and each model."""
    host = http_server.in_url(options.host)
    yield f"gRPC: {host}:{server.port}{' with TLS' if options.ssl_config_file else ''}"
    yield f"REST: http://{host}:{server.rest_api_port}/v1/models/NAME"
    if options.page:
        yield f"Page: http://{host}:{server.rest_api_port}/"
    for name in server.store.served:
        available = [
            str(version.number)
            for version in server.store.status(ModelSpec(name))
            if version.state == State.AVAILABLE
        ]
        yield f"Model {name}: version {', '.join(available)}"
