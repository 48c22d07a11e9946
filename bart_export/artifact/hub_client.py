"""What all uses of a hub's client share: its output, its errors and its cache.

The clients connect, cache and sign in as they document. Their output is hidden unless there is a
terminal, and their exceptions become one-line errors.
"""

import contextlib
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from bart_export.errors import BartExportError, one_line

# Exceptions that the clients raise when they parse an unexpected response.
UNEXPECTED = (
    "TypeError", "ValueError", "LookupError", "AttributeError", "AssertionError", "RecursionError",
)  # fmt: skip
AGAIN = "Run the same command again; finished files are kept."
REDIRECTING = threading.RLock()
SIGN_IN = "sign in with `hf auth login` or set HF_TOKEN"
NO_DOWNLOAD = "Cannot download {handle} from Hugging Face: {reason}."
CONNECTION = "network, HF_ENDPOINT and HF_HUB_OFFLINE"
NO_PUSH = f"Cannot push to {{handle}}: {{reason}}. Check the {CONNECTION}."
# Traits of an exception, and the message of the first row that has one of them, or none.
Rows = Iterable[tuple[Collection[str | int], str]]
# For huggingface_hub: the messages of a download and of a push, "" if they are the same.
HUGGING_FACE: tuple[tuple[Collection[str | int], str, str], ...] = (
    (("GatedRepoError", 403),
     "Hugging Face denies access to {handle}. Accept the model's terms on its page and "
     f"{SIGN_IN}.",
     "The token may not write to {handle}. Use one that may, or propose the files with "
     "--create-pr."),
    (("RepositoryNotFoundError",),
     "{handle} does not exist on Hugging Face, or is private. Check the name; if it is private, "
     f"{SIGN_IN}.", ""),
    ((401,),
     "Hugging Face refuses the token for {handle}. Set HF_TOKEN to a valid token, or sign in with "
     "`hf auth login`.",
     f"Pushing to {{handle}} needs a token that may write: {SIGN_IN}. Tokens are made at "
     "huggingface.co/settings/tokens."),
    (("RevisionNotFoundError",),
     "{handle} names an unknown revision. Expected a branch, a tag or a commit.", ""),
    (("LocalEntryNotFoundError",),
     "Cannot reach Hugging Face for {handle}, and the cache has no complete copy. Check the "
     f"{CONNECTION}.", ""),
    (("OSError",), f"The download of {{handle}} was interrupted ({{reason}}). {AGAIN}", NO_PUSH),
    (("HFValidationError",), NO_DOWNLOAD, NO_PUSH),
    (UNEXPECTED,
     "Hugging Face sent an unexpected response for {handle} ({reason}). Check HF_ENDPOINT, "
     "HF_TOKEN and the network.", ""),
    ((), NO_DOWNLOAD, NO_PUSH),
)  # fmt: skip


def hugging_face_failure(handle: str, error: Exception, *, push: bool = False) -> str:
    """Return a one-line message for an exception of huggingface_hub."""
    rows = (
        (kinds, (pushing if push else "") or loading) for kinds, loading, pushing in HUGGING_FACE
    )
    return failure(rows, handle, error)


def failure(rows: Rows, handle: str, error: Exception) -> str:
    """Return a one-line message for an exception."""
    found = traits(error)
    words = next(words for kinds, words in rows if not kinds or not found.isdisjoint(kinds))
    return words.format(handle=handle, reason=one_line(error))


def traits(error: BaseException) -> set[str | int]:
    """Return the names of the classes of an exception and of its cause, and their HTTP statuses."""
    found: set[str | int] = set()
    for each in (error, error.__cause__):
        found |= {kind.__name__ for kind in type(each).__mro__}
        response = getattr(each, "response", None)
        values = (getattr(response, "status_code", None), getattr(each, "status", None))
        found |= {value for value in values if isinstance(value, int)}
    return found


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
                f"The server of {handle} made the client store {path.name} outside the cache, at "
                f"{path.resolve()}. Do not trust it: check HF_ENDPOINT, and delete the file."
            )


def blob_name(path: Path) -> str:
    """Return the hub's name for the content of a snapshot's file: its link's target, or ""."""
    return Path(os.readlink(path)).name if path.is_symlink() else ""


def discard(path: Path) -> None:
    """Delete what is in the place of a cached file, so that it is downloaded again.

    The content of a snapshot's link is deleted, too. A deletion that fails is repeated next time.
    """
    with contextlib.suppress(OSError):
        content = Path(os.path.realpath(path))  # resolve() fails if links form a loop
        while path.is_symlink():
            target = path.parent / os.readlink(path)
            path.unlink()
            path = target
        shutil.rmtree(content) if content.is_dir() else content.unlink(missing_ok=True)


def counting_bar(check: Callable[[int], None]) -> type:
    """Return a class of progress bars for huggingface_hub that call `check` with the bytes so far.

    The client itself compares a file's size with the announced one only at the end.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        received = 0

        def update(self, n: float | None = 1) -> object:
            self.received += int(n or 0)
            check(self.received)
            return super().update(n)

    return Bar


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
