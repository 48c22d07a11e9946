"""The errors of this package.

Every error is a `BartExportError` whose message is one line: what was expected, what was received,
and how to fix it. Errors about an invalid argument are also `ValueError`s, as in Keras. The
server's `StatusError` is in `server.status`; exit codes are in `cli.main`.
"""

import copyreg
import difflib
import importlib
import json
import os
import re
import shlex
import signal
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from bart_export.locations import redacted

Row = TypeVar("Row")
SHOWN, LONGEST = 120, 200  # maximum lengths of a value and of a library's error in a message
LONGEST_MESSAGE = 2048  # half of it is all that the status of gRPC has room for


def shown(value: object) -> str:
    """Return a value as one line of JSON, truncated if it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # not JSON, or an integer of 4,300 digits
        kind = type(value)  # NumPy has a bool, too
        text = f"a value of type {kind.__module__}.{kind.__name__}".replace("builtins.", "")
    return printable(text, SHOWN)


def escaped(text: str) -> str:
    """Escape line breaks, control characters and invisible characters in a string, as in JSON."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def printable(text: str, most: int | None = None) -> str:
    """Return a message as it may be shown: escaped, and without the credentials of URLs.

    A message of more than `most` characters is truncated.
    """
    # First, because a truncated URL hides where its credentials end.
    text = redacted(decoded(text))
    return escaped(text if most is None or len(text) <= most else f"{text[:most]}…")


def decoded(text: str) -> str:
    """Decode the bytes of a text that Python did not; unchanged if they are not UTF-8.

    In the C locale, the bytes of a non-ASCII path are lone surrogates.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        return text


def bounded(text: str) -> str:
    """Return a message as `printable` does, without the middle of a long one."""
    text, half = printable(text), LONGEST_MESSAGE // 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]}…{text[-half:]}"


def printable_lines(text: str) -> str:
    """Apply `printable` to each line of a string."""
    return "\n".join(map(printable, text.split("\n")))


def last_words(output: str, exit_code: int) -> str:
    """Return the last line that a failed process printed, without an exception's class name."""
    if exit_code < 0:
        return f"it was killed by {signal.Signals(-exit_code).name}"
    lines = output.strip().splitlines() or [f"exit code {exit_code}"]
    return re.sub(r"^(Error|(\w+\.)+\w+): ", "", lines[-1])


def one_line(error: BaseException) -> str:
    """Return a library's error message as one short line without the final full stop."""
    line = " ".join(str(error).split()).removesuffix(".")
    return printable(line, LONGEST) or type(error).__name__


def closest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that an unknown name probably means, or None."""
    choices = list(choices)
    parts = [choice for choice in choices if len(name) > 2 and name in re.split(r"[-_]", choice)]
    # litert is part of ai-edge-litert, but other names are closer to it.
    close = parts if len(parts) == 1 else difflib.get_close_matches(name, choices, n=1)
    return close[0] if close else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a hint for an unknown name that names the closest choice, or "" if none is close."""
    found = closest(name, choices)
    return "" if found is None else f" Did you mean {found}?"


def lookup(kind: str, name: object, rows: Mapping[str, Row], others: str = "") -> Row:
    """Return the row with this name, or raise ConfigurationError.

    In the message, `kind` is the subject, such as "A recipe", and `others` ends the list of names.
    """
    if isinstance(name, str) and name in rows:
        return rows[name]
    raise ConfigurationError(
        f"{kind} must be one of {', '.join(rows)}{others}, received {shown(name)}."
        f"{did_you_mean(name, rows) if isinstance(name, str) else ''}"
    )


def pip_install(extra: str) -> str:
    """Return the command that installs this package with an extra; "" means no extra.

    The package is not on an index, so the command names the directory that it was installed from.
    """
    import importlib.metadata  # slower than the rest of `--help`
    import urllib.parse
    import urllib.request

    try:
        distribution = importlib.metadata.distribution("bart-export")
        origin = json.loads(distribution.read_text("direct_url.json") or "null")["url"]
    except (importlib.metadata.PackageNotFoundError, ValueError, TypeError, KeyError):
        origin = ""
    path = urllib.request.url2pathname(urllib.parse.urlsplit(origin).path)
    known = origin.startswith("file:") and os.path.exists(path)
    package = (path if known else ".") + (f"[{extra}]" if extra else "")
    place = "" if known else " in a clone of bart-export"
    return f"pip install {shlex.quote(package)}{place}"


def import_extra(package: str, purpose: str, extra: str = "export") -> Any:
    """Import a package that an extra installs.

    Raises:
        MissingExtra: if it is not installed; the message begins with `purpose`.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(purpose, package, extra) from error


def named(name: object) -> str:
    """Return an untrusted name as `shown` does, but without quotes."""
    return shown(name).strip('"')


class BartExportError(Exception):
    """Base class of this package's errors; `str(error)` is one line for the user."""

    def __init__(self, line: str) -> None:
        super().__init__(bounded(" ".join(line.splitlines())))

    def __reduce__(self) -> tuple[object, ...]:
        # Other processes restore it without __init__, whose arguments differ between classes.
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class ConfigurationError(BartExportError, ValueError):
    """A configuration or parameter value that is out of range, unknown or contradictory."""


class MissingExtra(BartExportError, ImportError):
    """A required package is not installed; `extra` installs it ("" is the base installation)."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package {package}, which is not installed. "
            f"Install it with: {pip_install(extra)}"
        )


class PresetError(BartExportError):
    """A preset that is unknown, unreachable, or not a BART model."""


class CheckpointError(BartExportError):
    """Weights or configuration on disk that are not a complete BART checkpoint."""


class TokenizerError(BartExportError):
    """Tokenizer files that are missing or unreadable, or do not match the model's vocabulary."""


class ArtifactError(BartExportError):
    """An artifact that is missing, incomplete, altered or too new, or cannot be written."""


class NoArtifact(ArtifactError):
    """A place without a manifest, such as a checkpoint."""


class InputError(BartExportError, ValueError):
    """A text, token id or length that the model cannot process."""


class EngineError(BartExportError):
    """A runtime that cannot run a file, or runs it incorrectly."""


class VerificationFailed(BartExportError):
    """An exported file that disagrees with its Keras model."""
