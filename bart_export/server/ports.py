"""Addresses and ports: which host is only this machine, and taking a port before it is needed.

In go a host and a port from the options; sockets come out that hold the port without accepting
connections. Nothing here knows what is served.
"""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

from bart_export.errors import ConfigurationError
from bart_export.server.options import ServeOptions


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host; for a name, all its addresses count."""
    try:
        found = {address[0] for _, _, _, _, address in addresses(host, 0)}
    except ConfigurationError:
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in found)


def in_url(host: str) -> str:
    """Return a host as it is written before a colon and a port."""
    return f"[{host}]" if ":" in host else host


def check(options: ServeOptions) -> None:
    """Hold the ports of both services to each other and to what is free.

    Raises:
        ConfigurationError: if they are the same, or the one for gRPC is taken.
    """
    if options.port == options.rest_api_port != 0:
        raise ConfigurationError(
            f"gRPC and REST need a port each, and both are told to take {options.port}. "
            "Name another --rest-api-port."
        )
    # gRPC takes its port later, and accepts connections from then on.
    with bound(options.host, options.port, "--port"):
        pass


@contextlib.contextmanager
def bound(host: str, port: int, option: str = "--rest-api-port") -> Iterator[list[socket.socket]]:
    """Hold a port on all addresses of a host for the length of a block; 0 takes a free one.

    Raises:
        ConfigurationError: if the host is none of this machine, or the port is not to be had.
    """
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
                # A name may have addresses of a kind that this machine does not have.
                unusable = error
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    break
        else:
            unusable = unusable if not sockets else None
        if unusable is not None:
            raise ConfigurationError(
                f"Cannot listen on {in_url(host)}:{port}: {unusable.strerror}. Name a free port "
                f"with {option}, 0 for any, or an address of this machine with --host."
            ) from unusable
        yield sockets


def addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return the addresses to listen on, as `socket.getaddrinfo` gives them, none twice.

    Raises:
        ConfigurationError: if the host is unknown.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {host}: {error.strerror}. Name an address of this machine with "
            "--host."
        ) from error
    return list(dict.fromkeys(found))
