"""The errors of this package.

Every message is a single line that says what was expected, what was received and what would be
accepted. The command line catches `BartExportError` once, shows the line, and ends with the class's
`exit_code`. Errors about a wrong argument also derive from `ValueError`, so that code written for
Keras' constructors keeps catching them::

    BartExportError                 exit 2
    ├─ ConfigurationError           a value that no model or generation can have (ValueError)
    ├─ MissingExtra                 an optional dependency is not installed (ImportError)
    ├─ PresetError                  a preset that cannot be found or downloaded, or is not a BART
    ├─ CheckpointError              a weight file that is damaged, incomplete or of other shapes
    ├─ TokenizerError               tokenizer files that are missing or do not fit the model
    ├─ ArtifactError                an artifact directory that is missing, damaged or not writable
    ├─ InputError                   a text, id or length that the model cannot take (ValueError)
    ├─ EngineError                  a runtime that cannot run a file, or computes it incorrectly
    ├─ StatusError                  an error of the server, with its gRPC code (server.status)
    └─ VerificationFailed           exit 1: an exported file disagrees with the Keras model
"""

import difflib
import json
import os
import re
import shlex
import signal
from collections.abc import Iterable, Mapping
from typing import TypeVar

Row = TypeVar("Row")
SHOWN = 120  # characters of a value in a line


def shown(value: object) -> str:
    """Return a value as JSON writes it, the form of configurations, requests and manifests.

    Cut where it is long, and on one line.
    """
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # not JSON's, or an integer of 4,300 digits
        text = f"a value of type {type(value).__name__}"
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    return printable(text)


def printable(text: str) -> str:
    """Return a text with JSON's escapes for what ends a line, steers a terminal or is not seen."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, each of them `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def last_words(output: str, exit_code: int) -> str:
    """Return what a process of this package said last before it failed, and how it ended.

    Without what Python puts before an error's text on its standard error: the name of its class.
    """
    if exit_code < 0:
        return f"it was ended by {signal.Signals(-exit_code).name}"
    lines = output.strip().splitlines() or [f"exit code {exit_code}"]
    return re.sub(r"^(Error|(\w+\.)+\w+): ", "", lines[-1])


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return the end of a line about an unknown name: the nearest of some, "" if none is near."""
    choices = list(choices)
    parts = [choice for choice in choices if len(name) > 2 and name in re.split(r"[-_]", choice)]
    near = difflib.get_close_matches(name, choices, n=1)
    if len(parts) == 1:  # litert is a part of ai-edge-litert, and nearer to other names
        near = parts
    return f" Did you mean {near[0]}?" if near else ""


def lookup(kind: str, name: object, rows: Mapping[str, Row], others: str = "") -> Row:
    """Return the row of a table that has a name, which may come from a file.

    `kind` is what a row is, as in "A recipe"; `others` end the list of what could be named.

    Raises:
        ConfigurationError: if there is none, with the nearest and all others.
    """
    if isinstance(name, str) and name in rows:
        return rows[name]
    raise ConfigurationError(
        f"{kind} must be one of {', '.join(rows)}{others}, received {name!r}."
        f"{did_you_mean(str(name), rows)}"
    )


def pip_install(extra: str) -> str:
    """Return the command that installs this package with an extra, "" for none.

    It names what the package was installed from, which pip notes down; it is on no index.
    """
    import importlib.metadata  # these take longer than all the rest of `--help`
    import urllib.parse
    import urllib.request

    try:
        distribution = importlib.metadata.distribution("bart-export")
        origin = json.loads(distribution.read_text("direct_url.json") or "null")["url"]
    except (importlib.metadata.PackageNotFoundError, ValueError, TypeError, KeyError):
        origin = ""
    path = urllib.request.url2pathname(urllib.parse.urlsplit(origin).path)
    known = origin.startswith("file:") and os.path.exists(path)
    wanted = (path if known else ".") + (f"[{extra}]" if extra else "")
    place = "" if known else " in a clone of bart-export"
    return f"pip install {shlex.quote(wanted)}{place}"


def named(name: object) -> str:
    """Return a name from outside as a line has it: without quotes, otherwise as `shown`."""
    return shown(name).strip('"')


class BartExportError(Exception):
    """Base of all errors of this package; `str(error)` is the line that the user reads."""

    exit_code = 2

    def __init__(self, line: str) -> None:
        super().__init__(printable(" ".join(line.splitlines())))


class ConfigurationError(BartExportError, ValueError):
    """A configuration or parameter value that is out of range, unknown or contradictory."""


class MissingExtra(BartExportError, ImportError):
    """A package that a command needs is not installed.

    `extra` is the extra that installs it, "" for the base installation.
    """

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
    """Tokenizer files that are missing, unreadable, or do not fit the model's vocabulary."""


class ArtifactError(BartExportError):
    """An artifact directory that is missing, incomplete, altered, newer, or cannot be written."""


class InputError(BartExportError, ValueError):
    """A text, token id or length that the model cannot take."""


class EngineError(BartExportError):
    """A runtime that cannot run a file, or is known to compute it incorrectly."""


class VerificationFailed(BartExportError):
    """An exported file that disagrees with the model it was made from."""

    exit_code = 1
