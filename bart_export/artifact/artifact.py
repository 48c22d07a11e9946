"""The artifact, which exports write and runtimes read; see artifacts/README.md.

Artifacts are untrusted, and the seal is a checksum that anyone can compute: every value in a
manifest is checked before use, and no file name may point outside the directory.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shlex
import sys
from typing import TYPE_CHECKING

from bart_export import documents
from bart_export.artifact import hub_client, stamps
from bart_export.artifact.figures import Golden
from bart_export.artifact.manifest import (
    FORMAT_VERSION,
    UNSEALED,
    FileEntry,
    Manifest,
    StaticEntry,
    TfliteEntry,
)
from bart_export.config import BartConfig, GenerationConfig, check_path, require
from bart_export.contract import Bucket, dynamic_buckets, tflite_signatures
from bart_export.errors import ArtifactError, ConfigurationError, NoArtifact, closest, shown
from bart_export.locations import HUB, Location, is_remote, normalized
from bart_export.presets import PRESETS

if TYPE_CHECKING:
    from bart_export.artifact.remote import Store

MANIFEST = "manifest.json"
CACHE = ".cache"
# Every export writes both; a bundle for Android has only the first.
GOLDEN, REPORT = "golden.json", "REPORT.md"
SERVING = "serving"
# Bytes, many times the size of any export's files.
MANIFEST_LIMIT, GOLDEN_LIMIT = 4 * documents.MEBIBYTE, 64 * documents.MEBIBYTE
# Of a golden.json; tokens are source tokens plus the maximum length of every beam.
MOST_CASES, MOST_TOKENS = 1000, 1 << 18
MOST_NAMES = 1000  # of a directory, among which a misspelt one is looked for
BEGINNING = 2000  # bytes of other content, of which a message has the first
AGAIN = "Export the artifact again."
SEAL = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"')


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An artifact directory with a checked manifest.

    For a remote artifact, `directory` is the local copy, and `store` fetches files into it.
    """

    directory: pathlib.Path
    manifest: Manifest
    store: "Store | None" = dataclasses.field(default=None, compare=False)

    @property
    def location(self) -> str:
        """The directory or URL of the artifact."""
        return str(self.directory) if self.store is None else self.store.location

    @property
    def output_flag(self) -> str:
        """The option that makes an export add to this artifact; "" for a remote one."""
        return f" --output {self.directory}" if self.store is None else ""

    @property
    def config(self) -> BartConfig:
        """The model's architecture."""
        return self.manifest.config

    @property
    def generation(self) -> GenerationConfig:
        """The default generation settings."""
        return self.manifest.generation

    @classmethod
    def open(cls, location: Location, revision: str | None = None) -> "Artifact":
        """Open an artifact; of a remote one, only the manifest is fetched.

        Args:
            location: a directory, hf://org/name, hf://org/name@revision, or a URL that fsspec can
                open.
            revision: a branch, tag or commit on the Hugging Face Hub.

        Raises:
            NoArtifact: if the manifest is missing.
            ArtifactError: if the manifest is invalid or cannot be fetched.
            ConfigurationError: if an argument has another type, or the revision does not apply.
            MissingExtra: if the package that opens a URL is not installed.
        """
        require(revision is None or isinstance(revision, str), "revision", "a string", revision)
        place = normalized(check_path("location", location))
        if revision is not None and not place.startswith(HUB):
            raise ConfigurationError(
                f"revision applies to {HUB} locations, received {shown(revision)} for {place}."
            )
        if is_remote(place):
            from bart_export.artifact import remote  # not needed for directories

            store = remote.open_store(place, revision)
            return cls(store.directory, store.manifest, store)
        directory = pathlib.Path(place)
        with contextlib.suppress(FileNotFoundError):
            if os.path.isdir(directory):
                return cls(directory, read_manifest(directory / MANIFEST))
        raise NoArtifact(no_artifact(directory))

    def path(self, name: str, *, rehash: bool = False) -> pathlib.Path:
        """Return the path of a file whose hash matches the manifest.

        Unless `rehash` is set, a file that has not changed since this user hashed it is not hashed
        again (`stamps`). A file of a remote artifact is fetched first.

        Raises:
            ArtifactError: if the file is missing or altered, or not in the manifest, or cannot be
                fetched.
        """
        if name not in self.manifest.files:
            known = ", ".join(self.manifest.files)
            raise ArtifactError(f"{self.location} has no file {name}. It has: {known}.")
        expected = self.manifest.files[name]
        if self.store is not None:
            self.store.fetch(name, expected)
        path, advice = path_of(self.directory, name), AGAIN
        try:
            status = path.stat()
            documents.require_regular(path, status)
            stamp = stamps.stamp(status, expected.sha256)
            if not rehash and stamps.read(path) == stamp:
                return path
            if status.st_size > expected.bytes:
                fault = f"it has more than {expected.bytes} bytes"
            elif status.st_size < expected.bytes:
                fault = f"it has {status.st_size} bytes, not {expected.bytes}"
            elif sha256(path) != expected.sha256:
                fault = f"it has the right size, {expected.bytes} bytes, but different content"
            else:
                stamps.write(path, stamp)
                return path
            refusal = f"does not match its manifest: it was altered or damaged ({fault})"
        except OSError as error:
            fault, advice = str(error.strerror), advice_on(error)
            refusal = f"cannot be read: {fault}"
        if self.store is None:
            raise ArtifactError(f"{path} {refusal}. {advice}")
        hub_client.discard(path)
        raise ArtifactError(
            f"The download of {self.location}/{name} was damaged ({fault}) and is deleted. "
            f"{hub_client.AGAIN}"
        )

    def golden(self) -> Golden:
        """Return the content of golden.json, or raise ArtifactError."""
        path = self.path(GOLDEN)
        try:
            content = documents.parse_json(documents.read_bounded(path, GOLDEN_LIMIT))
            golden = Golden.from_dict(content)
            check_golden(golden)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ArtifactError(f"{path} cannot be used: {reason}. {advice_on(error)}") from None
        return golden

    def folder(self, name: str) -> pathlib.Path:
        """Return the path of a folder that contains exactly the files in the manifest.

        Extra files matter: TensorFlow prefers a `saved_model.cpb` to the `saved_model.pb`.
        """
        folder = self.directory / name
        named = [file for file in self.manifest.files if file.startswith(f"{name}/")]
        for path in sorted(folder.rglob("*")):
            file = path.relative_to(self.directory).as_posix()
            if file not in named and (path.is_symlink() or not path.is_dir()):
                raise ArtifactError(
                    f"{path} is not in the manifest, and {folder} may contain only files that the "
                    "manifest names. Remove it, or export the artifact again."
                )
        if not named:
            raise ArtifactError(f"{self.location}/{MANIFEST} lists no files in {name}.")
        for file in named:
            self.path(file)
        return folder

    def files(self, target: str) -> dict[str, FileEntry]:
        """Return the entries of a target, such as "saved_model", by name, in manifest order."""
        files = self.manifest.files
        return {name: entry for name, entry in files.items() if entry.target == target}

    def buckets(self, name: str) -> tuple[Bucket, ...]:
        """Return the signatures of a `.tflite` file that engines open."""
        entry = self.manifest.files[name]
        assert isinstance(entry, TfliteEntry)
        signatures = tflite_signatures(self.config, entry.contract_version or 1)
        if not isinstance(entry, StaticEntry):
            return dynamic_buckets(signatures)
        known = {signature.name: signature for signature in signatures}
        return tuple(
            Bucket(name, known[bucket.signature], bucket.all_sizes)
            for name, bucket in entry.signatures.items()
        )


def advice_on(error: Exception) -> str:
    """Return advice on an error about a file of an artifact."""
    return "Check its permissions." if isinstance(error, PermissionError) else AGAIN


def read_manifest(path: pathlib.Path, place: str = "") -> Manifest:
    """Read a manifest as `parse_manifest` does; messages name its path, or its `place`.

    Raises ArtifactError, or FileNotFoundError if it does not exist.
    """
    place = place or str(path)
    try:
        return parse_manifest(documents.read_bounded(path, MANIFEST_LIMIT), place)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ArtifactError(
            f"{place} cannot be read: {error.strerror}. {advice_on(error)}"
        ) from None


def parse_manifest(text: bytes, place: str) -> Manifest:
    """Parse a manifest and check its seal and fields; raise ArtifactError if they are invalid."""
    content, fault = None, "it has no format_version"
    try:
        content = documents.parse_json(text)
    except ValueError as error:
        fault = str(error)
    if not isinstance(content, dict) or "format_version" not in content:
        begin = shown(text[:BEGINNING].decode(errors="replace"))
        raise ArtifactError(
            f"{place} must be the JSON of a manifest, received {begin} ({fault}). Give the "
            "place of an artifact, or export it again."
        )
    version = content["format_version"]
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{place} must have format_version {FORMAT_VERSION}, received {shown(version)}. "
            "Export the artifact again with this version of bart-export, or update it."
        )
    unsealed, seals = SEAL.subn(f'"manifest_sha256": "{UNSEALED}"'.encode(), text)
    if seals != 1 or seal(unsealed) != text:
        raise ArtifactError(
            f"{place} was edited or damaged after the export: its manifest_sha256 does not match. "
            f"{AGAIN}"
        )
    try:
        return Manifest.from_dict(content)
    except ConfigurationError as error:
        raise ArtifactError(f"{place} is damaged: {error} Export it again.") from error
    except ValueError as error:
        raise ArtifactError(f"{place} is damaged: {error}. {AGAIN}") from None


def write_manifest(path: pathlib.Path, manifest: Manifest) -> None:
    """Write a sealed manifest, or raise ArtifactError if it could not be read back."""
    content = manifest.to_dict() | {"manifest_sha256": UNSEALED}
    text = json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
    try:
        Manifest.from_dict(documents.parse_json(text))
        most = f"at most {MANIFEST_LIMIT} bytes"
        documents.require(len(text) <= MANIFEST_LIMIT, "the manifest", most, len(text))
    except (ConfigurationError, ValueError) as error:
        reason = str(error).removesuffix(".")
        raise ArtifactError(
            f"The manifest could not be read back: {reason}. Nothing was committed."
        ) from None
    path.write_bytes(seal(text))


def write_golden(path: pathlib.Path, golden: Golden) -> None:
    """Write a golden.json, or raise ArtifactError if it could not be read back."""
    try:
        check_golden(golden)
    except ValueError as error:
        raise ArtifactError(f"{path.name} could not be read back: {error}.") from None
    text = json.dumps(golden.to_dict(), ensure_ascii=False, indent=1)
    path.write_text(text, encoding="utf-8")


def check_golden(golden: Golden) -> None:
    """Raise ValueError for golden cases that would take too long to repeat."""
    count, tokens = len(golden.cases), 0
    documents.require(count <= MOST_CASES, "cases", f"at most {MOST_CASES}", count)
    for case in golden.cases:
        generation = case.generation
        tokens += len(case.source_token_ids) + generation.num_beams * generation.max_length
    most = f"at most {MOST_TOKENS}"
    documents.require(tokens <= MOST_TOKENS, "the number of tokens in all beams", most, tokens)


def seal(unsealed: bytes) -> bytes:
    """Return a manifest's text with its sha256 in place of `UNSEALED`."""
    digest = hashlib.sha256(unsealed).hexdigest()
    return unsealed.replace(UNSEALED.encode(), digest.encode(), 1)


def path_of(directory: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of a file in a manifest, or raise ArtifactError if a link points outside.

    The links of a snapshot in huggingface_hub's cache point to the cache's blobs.
    """
    path, root = os.path.realpath(directory / name), pathlib.Path(os.path.realpath(directory))
    places = map(os.path.realpath, (root, *hub_client.blob_directories(root)))
    if not any(path.startswith(os.path.join(place, "")) for place in places):
        raise ArtifactError(
            f"{directory / name} leads out of the artifact, to {path}. An artifact must contain "
            "its own files: copy it with links followed, as cp -rL does."
        )
    return directory / name


def sha256(path: pathlib.Path) -> str:
    """Return the hexadecimal sha256 of a file (hashlib.file_digest needs Python 3.11)."""
    digest = hashlib.sha256()
    with documents.open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_readable_by_all(path: pathlib.Path) -> None:
    """Raise ArtifactError unless a path is UTF-8, as TensorFlow and LiteRT require."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        utf8 = sys.getfilesystemencoding() == "utf-8"
        raise ArtifactError(
            f"{shown(str(path))} must be a UTF-8 path for TensorFlow and LiteRT to open it. "
            + ("Rename it, or choose another." if utf8 else "Set PYTHONUTF8=1, or rename it.")
        ) from None


def is_artifact(directory: pathlib.Path) -> bool:
    """Return whether a directory has a manifest that we wrote, even a damaged one."""
    try:
        content = documents.read_bounded(directory / MANIFEST, MANIFEST_LIMIT)
    except (OSError, ValueError):  # ValueError: an invalid file name
        return False
    return b'"manifest_sha256"' in content


def no_artifact(path: pathlib.Path) -> str:
    """Return the message for a path that is not an artifact, with how to get one."""
    typed = path.as_posix()
    around = next(filter(is_artifact, path.absolute().parents), None)
    if path.exists() and around is not None:
        return f"{path} is inside an artifact. Name the artifact: {around}"
    if not path.exists() and (meant := similar_artifact(path)) is not None:
        return f"{path} does not exist. Did you mean {meant}?"
    if not path.exists() and typed in PRESETS:
        return preset_message(typed)
    if (path / "config.json").is_file():
        return f"{path} is a checkpoint. Export it to an artifact with: {export_command(path)}"
    if not path.is_dir():
        place = "" if path.exists() else f" --output {shlex.quote(str(path))}"
        return (
            f"An artifact is a directory with a {MANIFEST}, but {path} is not a directory. "
            f"Export one with: {export_command('NAME')}{place}"
        )
    return f"{path} has no {MANIFEST}, so it is not a finished artifact. Export it again."


def similar_artifact(path: pathlib.Path) -> pathlib.Path | None:
    """Return the artifact that a path which does not exist probably means, or None."""
    default = pathlib.Path("artifacts")
    found: dict[str, pathlib.Path] = {}
    for place in (default / path.parent, path.parent, default):
        with contextlib.suppress(OSError, ValueError):  # ValueError: an invalid file name
            for each in sorted(place.iterdir())[:MOST_NAMES]:
                if is_artifact(each):
                    found.setdefault(each.name, each)
    if path.name in PRESETS and path.name not in found:
        return None
    name = closest(path.name, found)
    return None if name is None else found[name]


def preset_message(name: str) -> str:
    """Return the message for a preset that was given instead of an artifact."""
    return f"{name} is a preset. Export it to an artifact with: {export_command(name)}"


def export_command(preset: str | pathlib.Path) -> str:
    """Return the command that exports a preset."""
    name = str(preset)
    if isinstance(preset, pathlib.Path) and name in PRESETS:
        name = f"./{name}"
    return f"bart-export --preset {shlex.quote(name)} --target tflite"
