"""HTTP for the REST service: uvicorn, held to time-outs, to a number of connections and to framing.

A client that is slow, or never finishes what it began, keeps its connection for some seconds. Where
there are as many connections as there may be, a new one takes the place of the one that has waited
longest for a whole request, so that many who only connect do not keep out those who ask. Whatever
goes wrong is told as JSON.
"""

import asyncio
import contextlib
import functools
import logging
import math
import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import h11
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from bart_export.server import json_body
from bart_export.server.options import ServeOptions
from bart_export.server.servable import TIMED_OUT
from bart_export.server.status import HTTP_STATUS, Code

LOG = logging.getLogger(__name__)

JSON = "application/json"
STOPPED = "The server is ending"
# What a client has from its first byte, or from connecting, to the end of a request's headers.
HEAD_SECONDS = 5.0
# What it has between two parts of a body.
BODY_SECONDS = 5.0
# What a connection without a request has, and one that is closed while its client takes nothing.
IDLE_SECONDS = 5
CLOSING_SECONDS = 5.0
# Connections ended at a time, ten times a second: each costs some work, and others wait for it.
ENDED_AT_ONCE = 100
# Parsing a chunk costs as much as copying kilobytes: beyond a few, they are to be worth it.
FREE_CHUNKS, SMALLEST_CHUNK = 512, 64
# Connections accepted before those that are there are looked at again, and those that may wait.
ACCEPTED_AT_ONCE, BACKLOG = 32, 1024


class Parser(h11.Connection):
    """h11's parser of requests, which also refuses what it would let pass.

    `fault` is what was wrong with the bytes received, or "".
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self.fault = ""
        self.chunks = self.chunk_bytes = 0

    def next_event(self) -> Any:
        """Return what comes next."""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self.chunks = self.chunk_bytes = 0
                check_length(event)
            elif isinstance(event, h11.Data):
                self.chunks += event.chunk_start
                self.chunk_bytes += len(event.data)
                if self.chunks > max(FREE_CHUNKS, self.chunk_bytes / SMALLEST_CHUNK):
                    raise h11.RemoteProtocolError(
                        f"expected chunks of {SMALLEST_CHUNK} bytes on the average, received "
                        f"{self.chunks} with {self.chunk_bytes}"
                    )
        except h11.RemoteProtocolError as error:
            self.fault = str(error)
            raise
        return event


def check_length(request: h11.Request) -> None:
    """Hold a request to one way of telling where its body ends."""
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names and (
        b"content-length" in names or request.http_version == b"1.0"
    ):
        raise h11.RemoteProtocolError(
            "expected one length of the body, received Transfer-Encoding beside Content-Length or "
            "in HTTP/1.0"
        )


class Connections:
    """The bound of a server's connections, and those without a whole request, first come first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting: dict[Connection, None] = {}


class Connection(H11Protocol):
    """A connection to a client.

    `head_since` is when the head of a request was begun that is not whole yet, `received` when
    bytes came last, `closing_since` when the connection was found closed by this side with
    something left to send.
    """

    def __init__(self, others: Connections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.conn = Parser()
        self.others = others
        self.head_since: float | None = None
        self.received = 0.0
        self.closing_since: float | None = None
        self.is_half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, in the place of another if there are too many."""
        super().connection_made(transport)
        self.head_since = time.monotonic()
        if len(self.connections) > self.others.limit:
            if not self.others.waiting:
                self.refuse(503, "The server has as many connections as it may")
                return
            oldest = next(iter(self.others.waiting))
            del self.others.waiting[oldest]
            oldest.transport.abort()
        self.others.waiting[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.others.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        self.received = time.monotonic()
        super().data_received(data)
        self.look()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether to stay: for a client that sends no more and waits for its answer.

        One that has gone looks the same until it is sent something, to which its system then says
        that nobody takes it. That is an interim answer, which clients pass over (RFC 9110, 15.2).
        Whoever closes in the midst of an answer has gone.
        """
        whole = self.cycle is not None and not self.cycle.more_body
        if not whole or self.conn.our_state is not h11.SEND_RESPONSE:
            return False
        self.is_half_closed = True
        if self.conn.their_http_version != b"1.0":
            interim = h11.InformationalResponse(status_code=100, headers=[])
            self.transport.write(self.conn.send(interim) or b"")
        return True

    def on_response_complete(self) -> None:
        """Go on to the next request, if there may be one."""
        super().on_response_complete()
        self.look()
        if self.is_half_closed and self.cycle.response_complete:
            self.transport.close()

    def look(self) -> None:
        """Note whether a whole request is there, or the beginning of one."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self.head_since = None
            if not cycle.more_body:
                self.others.waiting.pop(self, None)
            return
        if not self.transport.is_closing():
            self.others.waiting.setdefault(self)
        has_begun = self.conn.trailing_data[0] or self.conn.their_state is not h11.IDLE
        if not has_begun:
            self.head_since = None
        elif self.head_since is None:
            self.head_since = time.monotonic()

    def has_expired(self, now: float) -> bool:
        """Return whether the client has had its time."""
        if self.transport.is_closing():
            self.closing_since = self.closing_since or now
            return now - self.closing_since > CLOSING_SECONDS
        if self.is_half_closed:  # asyncio reads no more, and would not see that nobody is there
            there = self.transport.get_extra_info("socket")
            return bool(there.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        if self.head_since is not None:
            return now - self.head_since > HEAD_SECONDS
        return self.is_reading_body() and now - self.received > BODY_SECONDS

    def end(self) -> None:
        """End the connection because its client has had its time."""
        if self.transport.is_closing() or self.is_half_closed:
            self.transport.abort()
        elif self.head_since is not None:
            self.refuse(408, f"Expected the head of a request within {HEAD_SECONDS:g} s")
        else:
            self.refuse(408, f"Expected more of the body within {BODY_SECONDS:g} s")

    def is_reading_body(self) -> bool:
        """Return whether the rest of a body is waited for."""
        cycle = self.cycle
        return (
            cycle is not None
            and not cycle.response_complete
            and cycle.more_body
            and not self.flow.read_paused
        )

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request."""
        self.refuse(400, f"No HTTP request: {cast(Parser, self.conn).fault or msg}")

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error if nothing was answered yet, and close the connection."""
        self.others.waiting.pop(self, None)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json_body.error(message)
            headers = [
                ("Content-Type", JSON), ("Content-Length", str(len(body))), ("Connection", "close")
            ]  # fmt: skip
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class RestServer(uvicorn.Server):
    """uvicorn's server; it leaves signals to `serve` and ends connections that do not move on."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        for each in sockets or []:
            # asyncio takes the backlog for what it accepts before it looks at anything else.
            each.listen(BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        """Do what is to be done ten times a second; return whether to end."""
        now = time.monotonic()
        connections = map(functools.partial(cast, Connection), self.server_state.connections)
        expired = [connection for connection in connections if connection.has_expired(now)]
        for connection in expired[:ENDED_AT_ONCE]:
            connection.end()
        return await super().on_tick(counter)


def rest_config(app: ASGIApp, options: ServeOptions) -> uvicorn.Config:
    """Return how uvicorn is to serve the REST service: over HTTP alone."""
    # It would write a line for each request that is none. What can go wrong here is logged here.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    protocol = functools.partial(Connection, Connections(options.max_connections))
    return uvicorn.Config(
        answered(app),
        http=cast(Any, protocol),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=math.ceil(options.drain_seconds),
    )


def answered(app: ASGIApp) -> ASGIApp:
    """Return an application that answers whatever happens: errors, too little time, the end."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        code, message = Code.DEADLINE_EXCEEDED, TIMED_OUT
        try:
            await app(scope, receive, sending)
        except asyncio.CancelledError:  # as uvicorn does at the end
            code, message = Code.UNAVAILABLE, STOPPED
        except Exception as error:
            LOG.exception("%s %s", scope["method"], scope["path"])
            code, message = Code.INTERNAL, f"{type(error).__name__}: {error}"
        if not begun:
            body = json_body.error(message)
            await Response(body, HTTP_STATUS[code], media_type=JSON)(scope, receive, send)

    return application
