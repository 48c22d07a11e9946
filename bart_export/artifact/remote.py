"""Artifacts on the Hugging Face Hub or behind any other URL, and their local copies.

A store fetches the manifest when it is opened, and every other file when it is first asked for. A
file gets its name in the cache only once it is complete, so an interrupted download leaves nothing
usable behind. `Artifact.path` checks sizes and hashes, as for a local directory.
"""

import contextlib
import gc
import hashlib
import os
import pathlib
import shutil
import traceback
import uuid
from collections.abc import Iterator
from typing import IO

from bart_export import documents
from bart_export.artifact import hub_client, stamps
from bart_export.artifact.artifact import (
    MANIFEST,
    MANIFEST_LIMIT,
    parse_manifest,
    preset_message,
    read_manifest,
)
from bart_export.artifact.locks import locked_directory
from bart_export.artifact.manifest import FileEntry
from bart_export.errors import (
    ArtifactError,
    BartExportError,
    NoArtifact,
    import_extra,
    one_line,
    shown,
)
from bart_export.locations import HUB, HUGGING_FACE, KAGGLE_HUB, redacted_url

PARTS = ".parts"  # unfinished downloads; no name in a manifest begins with a dot
CHUNK = 1 << 20  # bytes
# Seconds to wait for another process that is downloading; then both download.
PATIENCE = 3600.0
SILENCE = 60.0  # seconds without any data after which an HTTP server does not respond
REFUSED: set[str | int] = {401, 403, "PermissionError"}
# Traits of the exceptions of fsspec and its file systems, and their messages.
FAILURES = (
    (REFUSED,
     "Access to {handle} was refused ({reason}). Check the credentials, and run the same command "
     "again."),
    (("TooManyRedirects",), "{handle} is redirected again and again. Check the address."),
    (("ImportError",), "Opening {handle} needs a package: {reason}."),
    ((),
     "Cannot read {handle}: {reason}. Check the address, the network and the credentials, and run "
     "the same command again."),
)  # fmt: skip


class HubStore:
    """An artifact in a repository on the Hugging Face Hub, in the cache of huggingface_hub.

    All files are those of the commit that the manifest came from.
    """

    def __init__(self, repository: str, revision: str | None) -> None:
        self.location = f"{HUB}{repository}" + (f"@{revision}" if revision else "")
        self.repository, self.revision = repository, revision
        self.client = import_extra("huggingface_hub", f"Opening {self.location}", "hub")
        path = self.download(MANIFEST, MANIFEST_LIMIT)
        self.directory, self.revision = path.parent, path.parent.name
        try:
            self.manifest = read_manifest(path, f"{self.location}/{MANIFEST}")
        except ArtifactError:
            hub_client.discard(path)
            raise

    def fetch(self, name: str, entry: FileEntry) -> None:
        """Download a file, unless the cache has it."""
        if not (self.directory / name).exists():
            self.download(name, entry.bytes)

    def download(self, name: str, limit: int) -> pathlib.Path:
        """Return the path of a file of at most `limit` bytes in the cache."""
        wanted = {"repo_id": self.repository, "filename": name, "revision": self.revision}

        def require_size(size: int) -> None:
            if size > limit:
                raise ArtifactError(
                    f"{self.location}/{name} must have at most {limit:,} bytes, received {size:,}."
                )

        with hub_client.quiet("huggingface_hub"):
            try:
                require_size(self.client.hf_hub_download(**wanted, dry_run=True).file_size or 0)
                bar = hub_client.counting_bar(require_size)
                path = pathlib.Path(self.client.hf_hub_download(**wanted, tqdm_class=bar))
                snapshot = path.parents[name.count("/")]
                hub_client.refuse_outside(self.location, snapshot, [path], ArtifactError)
                return path
            except BartExportError:
                raise
            except Exception as error:  # of the client, its HTTP library or the system
                if "RemoteEntryNotFoundError" in hub_client.traits(error):
                    raise self.missing(name) from error
                message = hub_client.hugging_face_failure(self.location, error)
                raise ArtifactError(message) from error

    def missing(self, name: str) -> ArtifactError:
        """Return the error about a file that the repository lacks."""
        with contextlib.suppress(Exception):
            if name == MANIFEST and self.client.file_exists(
                self.repository, "config.json", revision=self.revision
            ):
                return NoArtifact(preset_message(self.location))
        return missing(self.location, name)


class UrlStore:
    """An artifact at a URL that fsspec can open, with a copy in this user's cache.

    The copy is in a directory named after the manifest's hash, so versions do not overwrite each
    other.
    """

    def __init__(self, url: str) -> None:
        self.location = redacted_url(url)
        fsspec = import_extra("fsspec", f"Opening {self.location}", "hub")
        with self.reading(MANIFEST):
            self.system, self.root = fsspec.core.url_to_fs(url)
        content = b"".join(self.read(MANIFEST, MANIFEST_LIMIT))
        if len(content) > MANIFEST_LIMIT:
            raise ArtifactError(
                f"{self.location}/{MANIFEST} must have at most {MANIFEST_LIMIT:,} bytes."
            )
        self.manifest = parse_manifest(content, f"{self.location}/{MANIFEST}")
        cache = stamps.user_directory()
        if cache is None:
            raise ArtifactError(
                f"Opening {self.location} needs a cache that only this user can write. Set "
                "XDG_CACHE_HOME to the path of a writable directory."
            )
        self.directory = cache / "artifacts" / hashlib.sha256(content).hexdigest()[:32]
        path = self.directory / MANIFEST
        with self.caching(MANIFEST):
            try:
                cached = documents.read_bounded(path, MANIFEST_LIMIT)
            except OSError:
                hub_client.discard(path)
                cached = b""
            if cached != content:
                self.directory.mkdir(parents=True, exist_ok=True)
                documents.replace(path, content)

    def fetch(self, name: str, entry: FileEntry) -> None:
        """Download a file of at most one byte more than its entry, unless the cache has it."""
        path = self.directory / name
        if path.exists():
            return
        with self.caching(name), locked_directory(self.directory, PATIENCE) as locked:
            if path.exists():  # another process has downloaded it meanwhile
                return
            parts = self.directory / PARTS
            if locked:  # then these are of killed processes
                shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = parts / uuid.uuid4().hex
            try:
                with part.open("xb") as file:
                    file.writelines(self.read(name, entry.bytes))
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    def read(self, name: str, limit: int) -> Iterator[bytes]:
        """Yield a remote file's content, and at most one byte more than `limit`.

        A read over a network may return less than was asked for.
        """
        size = 0
        with self.reading(name), self.open(name) as file:
            while chunk := file.read(min(CHUNK, limit + 1 - size)):
                size += len(chunk)
                yield chunk

    def open(self, name: str) -> IO[bytes]:
        """Open a remote file; its name precedes the query of the artifact's URL."""
        root, mark, query = self.root.partition("?")
        options: dict[str, object] = {}
        if "https" in self.system.protocol:
            import aiohttp  # fsspec's file system needs it, too

            # A stream needs no range requests. Without a size, fsspec would ask for it first, and
            # report any refusal as a missing file.
            timeout = aiohttp.ClientTimeout(sock_connect=SILENCE, sock_read=SILENCE)
            options = {"block_size": 0, "size": 1, "timeout": timeout}
        path = f"{root.rstrip('/')}/{name}{mark}{query}"
        file: IO[bytes] = self.system.open(path, "rb", **options)
        return file

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Raise any error of a block that reads a remote file as an ArtifactError."""
        try:
            yield
        except Exception as error:  # of the file system's package or the operating system
            with hub_client.quiet("asyncio"):  # aiohttp reports a connection that fsspec left open
                traceback.clear_frames(error.__traceback__)
                gc.collect()
            if isinstance(error, FileNotFoundError) and not hub_client.traits(error) & REFUSED:
                raise missing(self.location, name) from None
            message = hub_client.failure(FAILURES, f"{self.location}/{name}", error)
            raise ArtifactError(message) from None  # its message may have credentials

    @contextlib.contextmanager
    def caching(self, name: str) -> Iterator[None]:
        """Raise an OSError of a block that writes to the cache as an ArtifactError."""
        try:
            yield
        except OSError as error:
            raise ArtifactError(
                f"Cannot write {name} of {self.location} to the cache in {self.directory}: "
                f"{one_line(error)}. Free some space, delete the directory, or move the cache with "
                "XDG_CACHE_HOME."
            ) from error


Store = HubStore | UrlStore


def open_store(location: str, revision: str | None) -> Store:
    """Open the store of an artifact and fetch its manifest.

    Args:
        location: hf://org/name, hf://org/name@revision, or a URL that fsspec can open.
        revision: a branch, tag or commit on the Hugging Face Hub; None for that of the location.

    Raises:
        NoArtifact: if there is no manifest.
        ArtifactError: if the store cannot be read.
        MissingExtra: if a package of the `hub` extra is not installed.
    """
    if location.startswith(KAGGLE_HUB):
        raise NoArtifact(preset_message(location))
    if not location.startswith(HUB):
        return UrlStore(location)
    name = location if revision is None else f"{location}@{revision}"
    if (found := HUGGING_FACE.fullmatch(name)) is None:
        raise ArtifactError(
            f"Expected {HUB}org/name or {HUB}org/name@revision, received {shown(name)}."
        )
    return HubStore(*found.groups())


def missing(location: str, name: str) -> ArtifactError:
    """Return the error about a missing file."""
    if name == MANIFEST:
        return NoArtifact(f"{location} has no {MANIFEST}, so it is not a finished artifact.")
    return ArtifactError(
        f"{location} has no file {name}, which its manifest lists. Upload the complete artifact."
    )
