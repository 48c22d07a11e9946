"""Which HTTP requests are let in: by the host they name, the page they come from, their type.

There is no access control, so a browser must not lend its access to the pages that it shows. A
page of another origin is refused by its `Origin`, which a browser sends with every POST and every
request whose answer a script could read. A name that was made to point here (DNS rebinding) is
refused by `Host`. Other clients send no origin and the right host, and notice nothing.
"""

import ipaddress
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bart_export.errors import ConfigurationError
from bart_export.server import json_body, ports
from bart_export.server.options import ServeOptions

ANY = "*"
# `host` of RFC 9110, section 7.2, and a port.
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(?::[0-9]*)?", re.IGNORECASE)
ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^\s/?#@]+)", re.IGNORECASE)
# What clients of TensorFlow Serving send, which itself looks at none: the second is what curl, wget
# and Python's urllib write when nobody tells them.
CONTENT_TYPES = re.compile(
    r"(application/([a-z0-9.+-]+\+)?json|text/json|application/x-www-form-urlencoded)\s*(;.*)?",
    re.IGNORECASE,
)


class Admission:
    """An ASGI application that refuses what is not let in, and passes on what is."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self.app = app
        self.origins = frozenset(map(checked_origin, options.allowed_origins))
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
            body = json_body.error(error.detail)
            response = Response(body, error.status_code, media_type="application/json")
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def check(self, scope: Scope) -> None:
        """Hold a request's headers to what is let in."""
        headers = Headers(scope=scope)
        host = headers.get("host")
        # No browser leaves it out; checks of health by HTTP/1.0 do.
        if host is not None and not self.is_ours(host):
            raise HTTPException(
                403,
                f"Host {host!r} is not served here. Expected localhost or the address that the "
                "server listens on; bart-export serve --allowed-host lets others in",
            )
        origin = headers.get("origin")
        if origin is not None and not self.is_let_in(origin, host):
            raise HTTPException(
                403,
                f"Pages of {origin!r} are not let in. Expected the server's own; "
                "bart-export serve --allowed-origin lets others in",
            )
        content_type = headers.get("content-type")
        if scope["method"] == "POST" and content_type and not CONTENT_TYPES.fullmatch(content_type):
            raise HTTPException(
                415,
                f"Expected a Content-Type of application/json, or none, received {content_type!r}",
            )

    def is_let_in(self, origin: str, host: str | None) -> bool:
        """Return whether the pages of an origin may ask: this server's own and those allowed."""
        if ANY in self.origins or origin in self.origins:
            return True
        found = ORIGIN.fullmatch(origin)
        return bool(found and host and found["host"].lower() == host.lower())


def host_check(options: ServeOptions) -> Callable[[str], bool]:
    """Return what tells whether a `Host` header names this server.

    Loopback names do, the address listened on, and what the options allow. On all addresses of the
    machine every address does: no page can have one that is not the server's own, as it can a name.
    """
    names = {"localhost", options.host.lower(), *map(checked_host, options.allowed_hosts)}
    bound = {ipaddress.ip_address(found[4][0]) for found in ports.addresses(options.host, 0)}
    suffixes = tuple(name[1:] for name in names if name.startswith("*."))
    everywhere = any(address.is_unspecified for address in bound)

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
        return everywhere or address.is_loopback or address in bound

    return is_ours


def checked_origin(origin: str) -> str:
    """Return an origin as browsers write it."""
    if origin in (ANY, "null") or ORIGIN.fullmatch(origin):
        return origin.lower()
    raise ConfigurationError(
        f"--allowed-origin must be a scheme, a host and perhaps a port, such as "
        f"https://example.com, or '*' for every page, received {origin!r}."
    )


def checked_host(host: str) -> str:
    """Return a host in small letters and without brackets."""
    found = HOST.fullmatch(host)
    if found and found[1] == host and (ANY not in host.removeprefix("*.") or host == ANY):
        return host.strip("[]").lower()
    raise ConfigurationError(
        f"--allowed-host must be a name or an address without a port, such as models.example.com, "
        f"*.example.com, or '*' for every host, received {host!r}."
    )
