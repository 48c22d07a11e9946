"""The status of a request that fails: gRPC's canonical codes, as gRPC and as HTTP."""

import asyncio
import concurrent.futures
import enum
import logging

from bart_export.errors import BartExportError, ConfigurationError, InputError

LOG = logging.getLogger(__name__)

TIMED_OUT = "Timed out waiting for notification"


class Code(enum.IntEnum):
    """The canonical codes (google.rpc.Code); the numbers are those on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# TensorFlow Serving's mapping, which is that of google.rpc.Code.
HTTP_STATUS: dict[Code, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


class StatusError(BartExportError):
    """A request that fails, with the code and the message that its client receives."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = str(self)


def invalid(message: str) -> StatusError:
    """Return the error of a request that is wrong, whoever is asked."""
    return StatusError(Code.INVALID_ARGUMENT, message)


# Before Python 3.11 these are three.
TIMEOUTS = (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError)
# By the first row that fits; without a message of its own the error's is used.
STATUSES: tuple[tuple[tuple[type[BaseException], ...], Code, str], ...] = (
    ((ConfigurationError, InputError), Code.INVALID_ARGUMENT, ""),
    ((BartExportError,), Code.INTERNAL, ""),
    ((concurrent.futures.CancelledError,), Code.CANCELLED, "The request was cancelled"),
    (TIMEOUTS, Code.DEADLINE_EXCEEDED, TIMED_OUT),
    ((MemoryError,), Code.RESOURCE_EXHAUSTED, "Out of memory"),
)


def status_of_error(error: BaseException) -> StatusError:
    """Return the status of an error; an unexpected one is logged as well."""
    if isinstance(error, StatusError):
        return error
    for kinds, code, message in STATUSES:
        if isinstance(error, kinds):
            return StatusError(code, message or str(error))
    LOG.error("A request failed unexpectedly", exc_info=error)
    return StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")


def code_and_message(error: Exception) -> tuple[Code, str]:
    """Return the code and the message of an error of loading, UNKNOWN unless it has a status."""
    if isinstance(error, StatusError):
        return error.code, error.message
    return Code.UNKNOWN, str(error) or type(error).__name__


def one_line(text: str) -> str:
    """Return a text with every run of white space as one space."""
    return " ".join(text.split())
