"""Artifacts on the Hugging Face Hub or behind any other URL, and their local copies.

A store fetches the manifest when it is opened, and every other file when it is first asked for. A
file gets its name in the cache only once it is complete, so a killed download leaves nothing that
could be used. `Artifact.path` checks hashes, as for a local directory.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import IO

from bart_export import documents
from bart_export.artifact import hub_client, stamps
from bart_export.artifact.artifact import MANIFEST, MANIFEST_LIMIT, preset_message
from bart_export.artifact.drafts import locked_directory
from bart_export.artifact.manifest import FileEntry
from bart_export.errors import (
    ArtifactError,
    BartExportError,
    ConfigurationError,
    NoArtifact,
    import_extra,
    one_line,
    shown,
)
from bart_export.locations import HUB, HUGGING_FACE, KAGGLE_HUB, redacted

PARTS = ".parts"  # unfinished downloads; no name in a manifest begins with a dot
CHUNK = 1 << 20  # bytes
# Seconds to wait for another process that is downloading; then both download.
PATIENCE = 3600.0


class HubStore:
    """An artifact in a repository on the Hugging Face Hub, in the cache of huggingface_hub.

    All files are those of the commit that the manifest came from.
    """

    def __init__(self, repository: str, revision: str | None) -> None:
        self.location = f"{HUB}{repository}" + (f"@{revision}" if revision else "")
        self.repository, self.revision = repository, revision
        self.client = import_extra("huggingface_hub", f"Opening {self.location}", "hub")
        self.directory = self.download(MANIFEST, MANIFEST_LIMIT).parent
        self.revision = self.directory.name

    def fetch(self, name: str, entry: FileEntry) -> None:
        """Download a file, unless the cache has it."""
        if not (self.directory / name).exists():
            self.download(name, entry.bytes)

    def discard(self, name: str) -> None:
        """Delete a damaged file from the cache."""
        with contextlib.suppress(OSError):
            hub_client.discard(self.directory / name)

    def download(self, name: str, limit: int) -> pathlib.Path:
        """Return the path of a file of at most `limit` bytes in the cache."""
        wanted = {"repo_id": self.repository, "filename": name, "revision": self.revision}
        with hub_client.quiet("huggingface_hub"):
            try:
                size = self.client.hf_hub_download(**wanted, dry_run=True).file_size or 0
                if size > limit:
                    raise ArtifactError(
                        f"{self.location}/{name} must have at most {limit:,} bytes, received "
                        f"{size:,}."
                    )
                path = pathlib.Path(self.client.hf_hub_download(**wanted))
                snapshot = path.parents[name.count("/")]
                hub_client.refuse_outside(self.location, snapshot, [path], ArtifactError)
                return path
            except BartExportError:
                raise
            except Exception as error:  # of the client, its HTTP library or the system
                if hub_client.is_missing(error):
                    raise self.without(name) from error
                message = hub_client.hugging_face_failure(self.location, error)
                raise ArtifactError(message) from error

    def without(self, name: str) -> ArtifactError:
        """Return the error about a file that the repository lacks."""
        if name != MANIFEST:
            return incomplete(self.location, name)
        with contextlib.suppress(Exception):
            if self.client.file_exists(self.repository, "config.json", revision=self.revision):
                return NoArtifact(preset_message(self.location))
        return unfinished(self.location)


class UrlStore:
    """An artifact at a URL that fsspec can open, with a copy in this user's cache.

    The copy is in a directory that is named by the manifest's hash, so that of another version does
    not replace it.
    """

    def __init__(self, url: str) -> None:
        self.location = redacted(url)
        fsspec = import_extra("fsspec", f"Opening {self.location}", "hub")
        with self.reading(MANIFEST):
            self.system, self.root = fsspec.core.url_to_fs(url)
            with self.open(MANIFEST) as file:
                content = b"".join(chunks(file, MANIFEST_LIMIT))
        if len(content) > MANIFEST_LIMIT:
            raise ArtifactError(
                f"{self.location}/{MANIFEST} must have at most {MANIFEST_LIMIT:,} bytes."
            )
        cache = stamps.user_directory()
        if cache is None:
            raise ArtifactError(
                f"Opening {self.location} needs a cache that only this user can write. Set "
                "XDG_CACHE_HOME to the path of a writable directory."
            )
        self.directory = cache / "artifacts" / hashlib.sha256(content).hexdigest()[:32]
        path = self.directory / MANIFEST
        with self.reading(MANIFEST):
            if not path.exists() or documents.read_bounded(path, MANIFEST_LIMIT) != content:
                self.directory.mkdir(parents=True, exist_ok=True)
                documents.replace(path, content)

    def fetch(self, name: str, entry: FileEntry) -> None:
        """Download a file and check its hash, unless the cache has it."""
        path = self.directory / name
        if path.exists():
            return
        with locked_directory(self.directory, PATIENCE) as locked, self.reading(name):
            if path.exists():  # another process has downloaded it meanwhile
                return
            parts = self.directory / PARTS
            if locked:  # then these are of killed processes
                shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = parts / uuid.uuid4().hex
            try:
                self.download(name, entry, part)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            stamps.write(path, stamps.stamp(os.lstat(path), entry.sha256))

    def download(self, name: str, entry: FileEntry, part: pathlib.Path) -> None:
        """Write a file's content to `part`, or raise ArtifactError if it is not the manifest's."""
        digest, size = hashlib.sha256(), 0
        with self.open(name) as source, part.open("xb") as file:
            for chunk in chunks(source, entry.bytes):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        received = f"at least {size}" if size > entry.bytes else str(size)
        if size != entry.bytes:
            raise damaged(self.location, name, f"it has {received} bytes, not {entry.bytes}")
        if digest.hexdigest() != entry.sha256:
            raise damaged(self.location, name, "its hash does not match the manifest")

    def discard(self, name: str) -> None:
        """Delete a damaged file from the cache."""
        with contextlib.suppress(OSError):
            (self.directory / name).unlink(missing_ok=True)

    def open(self, name: str) -> IO[bytes]:
        """Open a remote file."""
        file: IO[bytes] = self.system.open(f"{self.root.rstrip('/')}/{name}", "rb")
        return file

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Raise any error of a block that reads a file as an ArtifactError."""
        try:
            yield
        except BartExportError:
            raise
        except FileNotFoundError:
            is_manifest = name == MANIFEST
            raise (
                unfinished(self.location) if is_manifest else incomplete(self.location, name)
            ) from None
        except ImportError as error:  # of the package for one kind of URL
            reason = one_line(error).removesuffix(".")
            raise ArtifactError(f"Opening {self.location} needs a package: {reason}.") from error
        except Exception as error:  # of the file system's package or the operating system
            reason = one_line(error).removesuffix(".")
            raise ArtifactError(
                f"Cannot copy {self.location}/{name} into the cache: {reason}. Check the address, "
                "the network and the credentials, and run the same command again."
            ) from error


def chunks(file: IO[bytes], limit: int) -> Iterator[bytes]:
    """Yield a file's content, and at most one byte more than `limit`.

    A read over a network may return less than was asked for.
    """
    size = 0
    while chunk := file.read(min(CHUNK, limit + 1 - size)):
        size += len(chunk)
        yield chunk


Store = HubStore | UrlStore


def open_store(location: str, revision: str | None) -> Store:
    """Open the store of an artifact and fetch its manifest.

    Args:
        location: hf://org/name, hf://org/name@revision, or a URL that fsspec can open.
        revision: a branch, tag or commit on the Hugging Face Hub; None for that of the location.

    Raises:
        NoArtifact: if there is no manifest.
        ArtifactError: if the store cannot be read.
        ConfigurationError: if `revision` does not apply.
        MissingExtra: if a package of the `hub` extra is not installed.
    """
    if location.startswith(KAGGLE_HUB):
        raise NoArtifact(preset_message(location))
    if not location.startswith(HUB):
        if revision is not None:
            raise ConfigurationError(
                f"revision applies to {HUB} locations, received {shown(revision)} for "
                f"{redacted(location)}."
            )
        return UrlStore(location)
    name = location if revision is None else f"{location}@{revision}"
    if (found := HUGGING_FACE.fullmatch(name)) is None:
        raise ArtifactError(
            f"Expected {HUB}org/name or {HUB}org/name@revision, received {shown(name)}."
        )
    return HubStore(*found.groups())


def unfinished(location: str) -> NoArtifact:
    """Return the error about a place without a manifest."""
    return NoArtifact(f"{location} has no {MANIFEST}, so it is not a finished artifact.")


def incomplete(location: str, name: str) -> ArtifactError:
    """Return the error about a missing file."""
    return ArtifactError(
        f"{location} has no file {name}, which its manifest lists. Upload the complete artifact."
    )


def damaged(location: str, name: str, fault: str) -> ArtifactError:
    """Return the error about a download that does not match the manifest."""
    return ArtifactError(
        f"The download of {location}/{name} is damaged ({fault}) and was deleted. "
        f"{hub_client.AGAIN}"
    )
