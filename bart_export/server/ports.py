"""Addresses and ports: which host is only this machine, and taking a port before it is needed."""

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from bart_export.errors import ConfigurationError
from bart_export.server.options import ServeOptions

LOG = logging.getLogger(__name__)

# Files that are open beside connections: models, libraries, pipes.
OTHER_FILES = 128
FEWEST_CONNECTIONS = 16
NO_FILES_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def connection_limit(options: ServeOptions) -> int:
    """Return how many connections each of both ports may have, `max_connections` at most.

    The limit of the process's files is raised as far as that takes and the system allows.
    """
    wanted = options.max_connections
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    files = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    except (OSError, ValueError):
        files = soft
    limit = min(wanted, max(FEWEST_CONNECTIONS, (files - OTHER_FILES) // 2))
    if limit < wanted:
        LOG.warning(
            "This process may have %d files open: at most %d connections to a port", files, limit
        )
    return limit


class Listener(socket.socket):
    """A socket that accepts connections also while no more files may be opened, and closes them.

    They would wait for an answer otherwise, and the event loop would try and log without end.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.spare = os.open(os.devnull, os.O_RDONLY)
        self.logged = -1.0

    def accept(self) -> tuple[socket.socket, Any]:
        """Wait for a connection as `socket.socket.accept` does."""
        while True:
            try:
                return super().accept()
            except OSError as error:
                if error.errno not in NO_FILES_LEFT:
                    raise
                self._refuse(error)

    def _refuse(self, error: OSError) -> None:
        """Accept a connection and close it, with the file that was kept for it."""
        if time.monotonic() - self.logged > 1:
            self.logged = time.monotonic()
            LOG.error("Connections are refused: %s", error.strerror)
        os.close(self.spare)
        try:
            super().accept()[0].close()
        finally:
            self.spare = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """Listen no more."""
        if self.fileno() >= 0:
            os.close(self.spare)
        super().close()


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
    """Hold the ports of both services to each other and to what is free."""
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
    """Hold a port on all addresses of a host for the length of a block; 0 takes a free one."""
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        unusable: OSError | None = None
        for family, kind, protocol, _, address in addresses(host, port):
            taken = sockets[0].getsockname()[1] if sockets else port
            try:
                each = stack.enter_context(Listener(family, kind, protocol))
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
    """Return the addresses to listen on, as `socket.getaddrinfo` gives them, none twice."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {host}: {error.strerror}. Name an address of this machine with "
            "--host."
        ) from error
    return list(dict.fromkeys(found))
