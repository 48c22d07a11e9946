"""The HTTP server of the REST service: ports, connections and their bounds, admission.

A client that is slow, or never finishes what it began, keeps its connection for some seconds. Where
there are as many connections as there may be, a new one takes the place of the one that has waited
longest for a whole request, so that many who only connect do not keep out those who ask.
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
from bart_export.server import tensors
from bart_export.server.options import ServeOptions

LOG = logging.getLogger(__name__)

# Files that are open beside connections: models, libraries, pipes.
OTHER_FILES = 128
FEWEST_CONNECTIONS = 16
# Connections that wait to be accepted, all of which asyncio accepts before it looks at others.
BACKLOG = 128


def connection_limit(options: ServeOptions) -> int:
    """Return how many connections each of both ports may have, `max_connections` at most.

    The limit of the process's files is raised as far as that takes and the system allows.
    """
    limit = options.max_connections
    needed = 2 * limit + OTHER_FILES
    with contextlib.suppress(ImportError):  # on Windows, which has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < needed:
            files = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
            files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            limit = min(limit, max(FEWEST_CONNECTIONS, (files - OTHER_FILES) // 2))
    if limit < options.max_connections:
        LOG.warning(
            "Of %d connections to a port this process may have %d", options.max_connections, limit
        )
    return limit


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host; for a name, all its addresses count."""
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in addresses(host, 0))


def in_url(host: str) -> str:
    """Return a host as it is written before a colon and a port."""
    return f"[{host}]" if ":" in host else host


def check_ports(options: ServeOptions) -> None:
    """Hold the ports of both services to each other and to what is free."""
    if options.port == options.rest_api_port != 0:
        raise ConfigurationError(
            f"gRPC and REST need a port each, and both are set to {options.port}. "
            "Name another --rest-api-port."
        )
    # gRPC takes its port later, and accepts connections from then on.
    with bound(options.host, options.port, "--port"):
        pass


@contextlib.contextmanager
def bound(host: str, port: int, option: str = "--rest-api-port") -> Iterator[list[socket.socket]]:
    """Hold a port on all addresses of a host for the length of a block; 0 takes a free one."""
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        unusable: OSError | None = None
        for family, kind, protocol, _, address in addresses(host, port):
            taken = sockets[0].getsockname()[1] if sockets else port
            try:
                each = stack.enter_context(socket.socket(family, kind, protocol))
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                each.bind((address[0], taken, *address[2:]))
                sockets.append(each)
            except OSError as error:
                unusable = error
                # A name may have addresses of a kind that this machine does not have.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    sockets.clear()
                    break
        if unusable and not sockets:
            raise ConfigurationError(
                f"Cannot listen on {in_url(host)}:{port}: {unusable.strerror}. Name a free port "
                f"with {option}, 0 for any, or an address of this machine with --host."
            ) from unusable
        yield sockets


def addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return the addresses to listen on, as `socket.getaddrinfo` gives them, none twice."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {host}: {error.strerror}. Name an address of this machine with "
            "--host."
        ) from error
    return list(dict.fromkeys(found))


# What a client has from connecting, or from its last answer, to the end of a request's headers, and
# to take what is left of an answer when its connection is closed.
IDLE_SECONDS = 5.0
# What it has to take an answer, once the time of its request is over.
SENDING_SECONDS = 5.0
# Parsing a chunk costs as much as copying kilobytes: beyond a few, they are to be worth it.
FREE_CHUNKS, SMALLEST_CHUNK = 512, 64


class Parser(h11.Connection):
    """h11's parser of requests, which refuses bodies in many tiny chunks, too."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self.chunks = self.chunk_bytes = 0

    def next_event(self) -> Any:
        """Return what comes next."""
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
    """A connection to a client; `since` is when it was made, or its last answer ended."""

    def __init__(self, limit: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.conn = Parser()
        self.limit = limit
        self.since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, in the place of another if there are too many."""
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
        """Go on to the next request, if there may be one."""
        self.since = time.monotonic()
        super().on_response_complete()

    def has_request(self, *, whole: bool = False) -> bool:
        """Return whether a request is not answered yet, its headers or all of it having come."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not (whole and cycle.more_body)

    def has_expired(self, now: float, request_seconds: float) -> bool:
        """Return whether the client has had its time."""
        seconds = IDLE_SECONDS
        if self.has_request() and not self.transport.is_closing():
            seconds += request_seconds + SENDING_SECONDS
        return now - self.since > seconds

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request, unless an answer has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        self.transport.close()


class RestServer(uvicorn.Server):
    """uvicorn's server; it leaves signals to `serve` and ends connections that do not move on."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        # It would write a line for each request that is none. What can go wrong is logged here.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        self.request_seconds = options.request_seconds
        config = uvicorn.Config(
            Admission(app, options),
            http=cast(
                type[asyncio.Protocol], functools.partial(Connection, options.max_connections)
            ),
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
        """Capture none."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Do what is to be done ten times a second; return whether to end."""
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
    """An ASGI application that refuses what is not let in, and passes on what is.

    There is no access control, so a browser must not lend its access to the pages that it shows. A
    page of another origin is refused by its `Origin`, which a browser sends with every POST and
    every request whose answer a script could read. A name that was made to point here (DNS
    rebinding) is refused by `Host`. Other clients send no origin and the right host, and notice
    nothing.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self.app = app
        self.origins = frozenset(
            checked("--allowed-origin", origin, ORIGIN, "https://example.com")
            for origin in options.allowed_origins
        )
        if self.origins:
            self.app = CORSMiddleware(
                app, allow_origins=self.origins, allow_methods=["GET", "POST"]
            )
        self.is_ours = host_check(options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer why not."""
        if scope["type"] != "http":
            return
        try:
            self.check(scope)
        except HTTPException as error:
            response = error_response(error.status_code, error.detail, error.headers)
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def check(self, scope: Scope) -> None:
        """Raise an HTTPException for a request that is not let in."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        # No browser leaves the host out; checks of health by HTTP/1.0 do.
        if host is not None and not self.is_ours(host):
            raise HTTPException(
                403,
                f"Host {host!r} is not served here. Expected localhost or the address that the "
                "server listens on; bart-export serve --allowed-host lets others in",
            )
        if origin is not None and not self.is_let_in(origin, host):
            raise HTTPException(
                403,
                f"Pages of {origin!r} are not let in. Expected the server's own; "
                "bart-export serve --allowed-origin lets others in",
            )
        # Whoever passed it on may have taken the other one, and what follows for another request.
        if "transfer-encoding" in headers and (
            "content-length" in headers or scope["http_version"] == "1.0"
        ):
            raise HTTPException(
                400,
                "Expected one length of the body, received Transfer-Encoding beside Content-Length "
                "or in HTTP/1.0",
                {"Connection": "close"},
            )

    def is_let_in(self, origin: str, host: str | None) -> bool:
        """Return whether the pages of an origin may ask: this server's own and those allowed."""
        if ANY in self.origins or origin in self.origins:
            return True
        found = ORIGIN.fullmatch(origin)
        own = found and found["host"]
        return bool(own and host and own.lower() == host.lower())


def host_check(options: ServeOptions) -> Callable[[str], bool]:
    """Return the test whether a `Host` header names this server.

    Loopback names do, the address listened on, and what the options allow. On all addresses of the
    machine every address does: no page can have one that is not the server's own, as it can a name.
    """
    allowed = (
        checked("--allowed-host", host, ALLOWED_HOST, "models.example.com, *.example.com")
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


def checked(option: str, value: str, pattern: re.Pattern[str], example: str) -> str:
    """Return the value of an option in small letters, held to a pattern."""
    if value != ANY and not pattern.fullmatch(value):
        raise ConfigurationError(
            f"{option} must be such as {example}, or '*' for any, received {value!r}."
        )
    return value.lower()


JSON = "application/json"
ERROR_CHARACTERS = 1024


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response for an error; a long message is cut."""
    cut = message if len(message) <= ERROR_CHARACTERS else f"{message[:ERROR_CHARACTERS]} ..."
    return Response(tensors.encoded({"error": cut}), status, headers, JSON)
