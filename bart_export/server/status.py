"""The status of a failed request: gRPC's canonical codes, and their HTTP statuses."""

import asyncio
import concurrent.futures
import enum
import logging

from bart_export.errors import BartExportError, ConfigurationError, InputError

LOG = logging.getLogger(__name__)

TIMED_OUT = "Timed out waiting for notification"


class Code(enum.IntEnum):
    """The canonical codes (google.rpc.Code), and the HTTP status of each."""

    OK = 0, 200
    CANCELLED = 1, 499
    UNKNOWN = 2, 500
    INVALID_ARGUMENT = 3, 400
    DEADLINE_EXCEEDED = 4, 504
    NOT_FOUND = 5, 404
    ALREADY_EXISTS = 6, 409
    PERMISSION_DENIED = 7, 403
    RESOURCE_EXHAUSTED = 8, 429
    FAILED_PRECONDITION = 9, 400
    ABORTED = 10, 409
    OUT_OF_RANGE = 11, 400
    UNIMPLEMENTED = 12, 501
    INTERNAL = 13, 500
    UNAVAILABLE = 14, 503
    DATA_LOSS = 15, 500
    UNAUTHENTICATED = 16, 401

    http_status: int

    def __new__(cls, number: int, http_status: int = 500) -> "Code":
        """Make the integer `number` a member, with an HTTP status."""
        member = int.__new__(cls, number)
        member._value_, member.http_status = number, http_status
        return member


class StatusError(BartExportError):
    """A failed request, with the code and message that the client receives."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = str(self)


def invalid(message: str) -> StatusError:
    """Return the error for an invalid request."""
    return StatusError(Code.INVALID_ARGUMENT, message)


# Three different classes before Python 3.11.
TIMEOUTS = (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError)
# The first matching row wins; if it has no message, the error's own is used.
STATUSES: tuple[tuple[tuple[type[BaseException], ...], Code, str], ...] = (
    ((ConfigurationError, InputError), Code.INVALID_ARGUMENT, ""),
    ((BartExportError,), Code.INTERNAL, ""),
    ((concurrent.futures.CancelledError,), Code.CANCELLED, "The request was cancelled"),
    (TIMEOUTS, Code.DEADLINE_EXCEEDED, TIMED_OUT),
    ((MemoryError,), Code.RESOURCE_EXHAUSTED, "Out of memory"),
)


def status_of_error(error: BaseException) -> StatusError:
    """Return the status of an error; unexpected errors are also logged."""
    if isinstance(error, StatusError):
        return error
    for kinds, code, message in STATUSES:
        if isinstance(error, kinds):
            return StatusError(code, message or str(error))
    LOG.error("A request failed unexpectedly", exc_info=error)
    return StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")


def status_of_load(error: Exception) -> StatusError:
    """Return the status of an error of a version; the code is UNKNOWN unless it has another."""
    if isinstance(error, StatusError):
        return error
    return StatusError(Code.UNKNOWN, str(error) or type(error).__name__)
