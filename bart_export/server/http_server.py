"""The HTTP server under the REST service: ports, connection limits, host and origin checks.

A client that is slow or sends only part of a request loses its connection after a few seconds. At
the connection limit, a new connection replaces the one that has waited longest without sending a
whole request, so that idle clients cannot keep others out.
"""

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import math
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import h11
import uvicorn
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from bart_export.errors import ConfigurationError
from bart_export.server import json_tensors
from bart_export.server.options import ServeOptions
from bart_export.server.status import status_of_error

LOG = logging.getLogger(__name__)

# asyncio accepts the whole backlog before it serves any other event.
BACKLOG = 128
CANCEL_SECONDS = 2.0  # for the responses of cancelled requests


def is_loopback(host: str) -> bool:
    """Return whether all addresses of a host are loopback addresses."""
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in addresses(host, 0))


def in_url(host: str) -> str:
    """Return a host as written in a URL, with brackets around an IPv6 address."""
    return f"[{host}]" if ":" in host else host


def check_ports(options: ServeOptions) -> None:
    """Raise ConfigurationError unless the ports differ and gRPC's is free."""
    if options.port == options.rest_api_port != 0:
        raise ConfigurationError(
            f"gRPC and REST need different ports, but both are set to {options.port}. "
            "Choose another --rest-api-port."
        )
    # gRPC binds its port after loading, because it accepts connections from then on.
    with bound(options.host, options.port, "--port"):
        pass


@contextlib.contextmanager
def bound(host: str, port: int, option: str = "--rest-api-port") -> Iterator[list[socket.socket]]:
    """Yield sockets bound to a port on all addresses of a host; port 0 takes a free one."""
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        unusable: OSError | None = None
        for family, kind, protocol, _, address in addresses(host, port):
            number = sockets[0].getsockname()[1] if sockets else port
            try:
                each = stack.enter_context(socket.socket(family, kind, protocol))
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                each.bind((address[0], number, *address[2:]))
                sockets.append(each)
            except OSError as error:
                unusable = error
                # A name may have addresses of a family that this machine lacks.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    sockets.clear()
                    break
        if unusable and not sockets:
            raise ConfigurationError(
                f"Cannot listen on {in_url(host)}:{port}: {unusable.strerror}. Choose a free port "
                f"with {option} (0 for any), or an address of this machine with --host."
            ) from unusable
        yield sockets


def addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return the distinct addresses of a host, as from `socket.getaddrinfo`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {host}: {error.strerror}. Choose an address of this machine with "
            "--host."
        ) from error
    return list(dict.fromkeys(found))


# Time for a request's headers, counted from the connection or the last response, and for reading
# the rest of a response before the connection closes.
IDLE_SECONDS = 5.0
# Time for the client to read a response, in addition to the request's time limit.
SENDING_SECONDS = 5.0
# Parsing a chunk costs as much as copying kilobytes, so a large number must not be tiny.
FREE_CHUNKS, SMALLEST_CHUNK = 512, 64


class Parser(h11.Connection):
    """h11's request parser, which also refuses a body in many tiny chunks."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self.chunks = self.chunk_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """Return the next event."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.chunks = self.chunk_bytes = 0
        elif isinstance(event, h11.Data):
            self.chunks += event.chunk_start
            self.chunk_bytes += len(event.data)
            if self.chunks > max(FREE_CHUNKS, self.chunk_bytes / SMALLEST_CHUNK):
                raise h11.RemoteProtocolError("too many chunks")
        return event


class Connection(H11Protocol):
    """A client connection; `since` is when it opened or its last response ended."""

    def __init__(self, limit: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.conn = Parser()
        self.limit = limit
        self.since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; beyond the limit, abort the one that has waited longest."""
        super().connection_made(transport)
        self.since = time.monotonic()
        if len(self.connections) <= self.limit:
            return
        others = map(functools.partial(cast, Connection), self.connections)
        open_ones = [each for each in others if not each.transport.is_closing()]
        if len(open_ones) > self.limit:
            waiting = (each for each in open_ones if not each.has_request(whole=True))
            min(waiting, key=lambda each: each.since).transport.abort()

    def on_response_complete(self) -> None:
        """Restart the clock for the next request."""
        self.since = time.monotonic()
        super().on_response_complete()

    def has_request(self, *, whole: bool = False) -> bool:
        """Return whether a request is unanswered; with `whole`, one whose body has arrived."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not (whole and cycle.more_body)

    def has_expired(self, now: float, request_seconds: float) -> bool:
        """Return whether the client has used up its time."""
        seconds = IDLE_SECONDS
        if self.has_request() and not self.transport.is_closing():
            seconds += request_seconds + SENDING_SECONDS
        return now - self.since > seconds

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP, unless a response has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        self.transport.close()


class RestServer(uvicorn.Server):
    """uvicorn's server without signal handlers, which aborts expired connections."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        # uvicorn logs a line for every malformed request. Our own errors are logged elsewhere.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        self.request_seconds = options.request_seconds
        protocol = functools.partial(Connection, options.max_connections)
        config = uvicorn.Config(
            Admission(app, options),
            http=cast(type[asyncio.Protocol], protocol),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=math.ceil(IDLE_SECONDS),
            timeout_graceful_shutdown=math.ceil(options.drain_seconds),
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down, and wait for the responses of cancelled requests, unlike uvicorn."""
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=CANCEL_SECONDS)

    async def on_tick(self, counter: int) -> bool:
        """Abort expired connections, ten times a second; return whether to exit."""
        now = time.monotonic()
        for connection in list(self.server_state.connections):
            if cast(Connection, connection).has_expired(now, self.request_seconds):
                connection.transport.abort()
        return await super().on_tick(counter)


ANY = "*"
# `host` of RFC 9110, section 7.2, and a port.
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(?::[0-9]*)?", re.IGNORECASE)
ALLOWED_HOST = re.compile(r"\[[0-9a-f:.]+\]|(\*\.)?[^\s:/?#@\[\]*]+", re.IGNORECASE)
ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://(?P<host>[^\s/?#@]+)", re.IGNORECASE)


class Admission:
    """ASGI middleware that checks `Host` and `Origin`.

    There is no access control, so web pages must not reach the server through a visitor's browser.
    Browsers send `Origin` with every POST and every request whose response a script could read,
    which reveals pages of other origins. `Host` reveals names that were made to resolve to this
    machine (DNS rebinding). Other clients send no `Origin` and the right `Host`.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self.app = app
        self.origins = frozenset(
            validated("--allowed-origin", origin, ORIGIN, "https://example.com")
            for origin in options.allowed_origins
        )
        if self.origins:
            self.app = CORSMiddleware(
                app, allow_origins=self.origins, allow_methods=["GET", "POST"]
            )
        self.is_ours = host_check(options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        try:
            self.check(scope)
        except HTTPException as error:
            await error_answer(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def check(self, scope: Scope) -> None:
        """Raise HTTPException for a request that must be refused."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        # HTTP/1.0 health checks have no Host; browsers always send one.
        if host is not None and not self.is_ours(host):
            raise HTTPException(
                403,
                f"Host {host!r} is not served here. Expected localhost or the address that the "
                "server listens on; bart-export serve --allowed-host allows others",
            )
        if origin is not None and not self.allows_origin(origin, host):
            raise HTTPException(
                403,
                f"Pages of {origin!r} are not allowed. Expected the server's own; "
                "bart-export serve --allowed-origin allows others",
            )
        # If a proxy used the other length, the rest of the body would become another request.
        if "transfer-encoding" in headers and (
            "content-length" in headers or scope["http_version"] == "1.0"
        ):
            raise HTTPException(
                400,
                "Expected one length of the body, received Transfer-Encoding with Content-Length "
                "or in HTTP/1.0",
                {"Connection": "close"},
            )

    def allows_origin(self, origin: str, host: str | None) -> bool:
        """Return whether an origin is an allowed one or the server's own."""
        if ANY in self.origins or origin in self.origins:
            return True
        found = ORIGIN.fullmatch(origin)
        own = found and found["host"]
        return bool(own and host and own.lower() == host.lower())


def host_check(options: ServeOptions) -> Callable[[str], bool]:
    """Return a function that tells whether a `Host` header names this server.

    Loopback names, the address listened on, and `allowed_hosts` are accepted. A server on all
    addresses accepts every address: unlike a name, an address cannot be made to resolve here.
    """
    allowed = (
        validated("--allowed-host", host, ALLOWED_HOST, "models.example.com or *.example.com")
        for host in options.allowed_hosts
    )
    names = {"localhost", options.host.lower(), *(host.strip("[]") for host in allowed)}
    own = {ipaddress.ip_address(found[4][0]) for found in addresses(options.host, 0)}
    suffixes = tuple(name[1:] for name in names if name.startswith("*."))
    everywhere = any(address.is_unspecified for address in own)

    def is_ours(host: str) -> bool:
        found = HOST.fullmatch(host)
        if ANY in names or not found:
            return ANY in names
        name = found[1].strip("[]").lower().removesuffix(".")
        if name in names or name.endswith(suffixes):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return everywhere or address.is_loopback or address in own

    return is_ours


def validated(option: str, value: str, pattern: re.Pattern[str], example: str) -> str:
    """Return an option's value in lower case; raise ConfigurationError unless it matches."""
    if value != ANY and not pattern.fullmatch(value):
        raise ConfigurationError(
            f"{option} must have the form {example}, or be '*' for any, received {value!r}."
        )
    return value.lower()


JSON = "application/json"
ERROR_CHARACTERS = 1024


def error_answer(error: Exception) -> Response:
    """Return an error as a JSON response; a long message is truncated."""
    if isinstance(error, HTTPException):
        code, message, headers = error.status_code, error.detail, error.headers
    else:
        status = status_of_error(error)
        code, message, headers = status.code.http_status, status.message, None
    if len(message) > ERROR_CHARACTERS:
        message = f"{message[:ERROR_CHARACTERS]} ..."
    return json_answer({"error": message}, code, headers)


def json_answer(
    value: Mapping[str, object], code: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON response."""
    return Response(json_tensors.encoded(value), code, headers, JSON)
