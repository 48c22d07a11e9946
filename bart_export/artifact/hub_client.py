"""What all uses of a hub's client share: its output, its errors and its cache.

The clients connect, cache and sign in as they document. Their output is hidden unless there is a
terminal, and their exceptions become one-line errors.
"""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from bart_export.errors import BartExportError, one_line

# Exceptions that the clients raise when they parse an unexpected response.
UNEXPECTED = (TypeError, ValueError, LookupError, AttributeError, AssertionError, RecursionError)
AGAIN = "Run the same command again; finished files are kept."
REDIRECTING = threading.RLock()
SIGN_IN = "sign in with `hf auth login` or set HF_TOKEN"


def hugging_face_failure(handle: str, error: Exception) -> str:
    """Return a one-line message for an exception of huggingface_hub."""
    from huggingface_hub import errors

    status = http_status(error) or http_status(error.__cause__)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"Hugging Face denies access to {handle}. Accept the model's terms on its page and "
            f"{SIGN_IN}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{handle} does not exist on Hugging Face, or is private. Check the name; if it is "
            f"private, {SIGN_IN}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{handle} names an unknown revision. Expected a branch, a tag or a commit."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"Cannot reach Hugging Face for {handle}, and the cache has no complete copy. Check "
            "the network and HF_HUB_OFFLINE."
        )
    if "Consistency check failed" in str(error) or status is not None:
        return f"The download of {handle} was interrupted ({one_line(error)}). {AGAIN}"
    if isinstance(error, UNEXPECTED) and not isinstance(error, errors.HFValidationError):
        return unexpected_response("Hugging Face", handle, "HF_ENDPOINT and the network.")
    return f"Cannot download {handle} from Hugging Face: {one_line(error)}"


def is_missing(error: Exception) -> bool:
    """Return whether an exception of huggingface_hub says that a repository lacks a file."""
    from huggingface_hub import errors

    return isinstance(error, errors.RemoteEntryNotFoundError)


def unexpected_response(hub: str, handle: str, check: str) -> str:
    """Return the message for a response that a client could not parse."""
    return f"{hub} sent an unexpected response for {handle}. Check {check}"


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status of a client's exception, or None if it has no response."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def blob_directories(snapshot: Path) -> tuple[Path, ...]:
    """Return the directories to which the links of a snapshot in huggingface_hub's cache point.

    Its path is `CACHE/models--ORG--NAME/snapshots/COMMIT`. The content of a file is in the
    repository's `blobs` or in `CACHE/blobs`, which all repositories share. There are none for any
    other directory.
    """
    repository = snapshot.parents[1] if len(snapshot.parents) > 2 else snapshot
    if snapshot.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return ()
    return repository / "blobs", repository.parent / "blobs"


def refuse_outside(
    handle: str, snapshot: Path, paths: Iterable[Path], error: type[BartExportError]
) -> None:
    """Raise an error of a class if a file of a snapshot is outside the hub's cache.

    The client stores a file under the name that the hub sends for its content, without checking it.
    """
    inside = [place.resolve() for place in (snapshot, *blob_directories(snapshot))]
    for path in paths:
        if not any(path.resolve().is_relative_to(place) for place in inside):
            raise error(
                f"The hub of {handle} caused {path.name} to be stored outside the cache, at "
                f"{path.resolve()}, so do not trust it. Check HF_ENDPOINT, and delete the file."
            )


def blob_name(path: Path) -> str:
    """Return the hub's name for the content of a snapshot's file: its link's target, or ""."""
    return Path(os.readlink(path)).name if path.is_symlink() else ""


def discard(path: Path) -> None:
    """Delete a file of a snapshot with its content, so that it is downloaded again."""
    content = path.resolve()
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    content.unlink(missing_ok=True)


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """Redirect a client's output to stderr, or discard it if stderr is not a terminal.

    One thread at a time: another would restore the streams that the first has redirected.
    """
    logger = logging.getLogger(library)
    with REDIRECTING, open(os.devnull, "w", encoding="utf-8") as null:
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        terminal = sys.stderr is not None and sys.stderr.isatty()
        sink = sys.stderr if terminal else null
        try:
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield
        finally:
            logger.setLevel(level)
