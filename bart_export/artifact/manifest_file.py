"""The files `manifest.json` and `golden.json`: read whole, and the manifest's seal checked.

An artifact comes from anywhere, and its seal is a checksum that anybody can make: nothing of a
manifest is used before it is checked, and `path_of` lets no name out of the directory.
"""

import hashlib
import json
import os
import pathlib
import re

from bart_export import documents
from bart_export.artifact.figures import Golden
from bart_export.artifact.manifest import FORMAT_VERSION, UNSEALED, Manifest
from bart_export.errors import ArtifactError, ConfigurationError, shown

# Bytes of a manifest and of golden.json: many times what any export makes.
MANIFEST_LIMIT, GOLDEN_LIMIT = 4 * documents.MEBIBYTE, 64 * documents.MEBIBYTE
MOST_CASES, MOST_TOKENS = 1000, 1 << 18  # of a golden.json, read and decoded, beam by beam
SEAL = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"')


def read_manifest(path: pathlib.Path) -> Manifest:
    """Return a manifest that is there, sealed and valid, or raise ArtifactError.

    Raises:
        FileNotFoundError: if there is none.
    """
    try:
        text = documents.read_bounded(path, MANIFEST_LIMIT)
        content = documents.parse_json(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(
            f"{path} cannot be read: {reason}. Export the artifact again."
        ) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} must have format_version {FORMAT_VERSION}, received {shown(version)}. "
            "Export the artifact again with this version of bart-export, or update it."
        )
    unsealed, seals = SEAL.subn(f'"manifest_sha256": "{UNSEALED}"'.encode(), text)
    if seals != 1 or seal(unsealed) != text:
        raise ArtifactError(
            f"{path} was edited or damaged after the export: its manifest_sha256 does not match. "
            "Export the artifact again."
        )
    try:
        return Manifest.from_dict(content)
    except ConfigurationError as error:
        raise ArtifactError(f"{path} is damaged: {error} Export it again.") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}. Export the artifact again.") from None


def write_manifest(path: pathlib.Path, manifest: Manifest) -> None:
    """Write a manifest with its seal, or raise ArtifactError for one that cannot be read back."""
    content = manifest.to_dict() | {"manifest_sha256": UNSEALED}
    text = json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
    try:
        Manifest.from_dict(documents.parse_json(text))
        most = f"{MANIFEST_LIMIT} bytes or less"
        documents.require(len(text) <= MANIFEST_LIMIT, "the manifest", most, len(text))
    except (ConfigurationError, ValueError) as error:
        reason = str(error).removesuffix(".")
        raise ArtifactError(
            f"The manifest could not be read back: {reason}. Nothing was committed."
        ) from None
    path.write_bytes(seal(text))


def read_golden(path: pathlib.Path) -> Golden:
    """Return the content of a golden.json, or raise OSError or ValueError."""
    golden = Golden.from_dict(documents.parse_json(documents.read_bounded(path, GOLDEN_LIMIT)))
    check_golden(golden)
    return golden


def write_golden(path: pathlib.Path, golden: Golden) -> None:
    """Write a golden.json, or raise ArtifactError for one that would not be read back."""
    try:
        check_golden(golden)
    except ValueError as error:
        raise ArtifactError(f"{path.name} could not be read back: {error}.") from None
    text = json.dumps(golden.to_dict(), ensure_ascii=False, indent=1)
    path.write_text(text, encoding="utf-8")


def check_golden(golden: Golden) -> None:
    """Raise ValueError for golden answers that cannot be asked again in a short time."""
    count, tokens = len(golden.cases), 0
    documents.require(count <= MOST_CASES, "cases", f"at most {MOST_CASES}", count)
    for case in golden.cases:
        asked = case.generation
        tokens += len(case.source_token_ids) + asked.num_beams * asked.max_length
    most = f"at most {MOST_TOKENS}"
    documents.require(tokens <= MOST_TOKENS, "the number of tokens of all beams", most, tokens)


def seal(unsealed: bytes) -> bytes:
    """Put the sha256 of a manifest's text, with that very value as zeros, into the text."""
    digest = hashlib.sha256(unsealed).hexdigest()
    return unsealed.replace(UNSEALED.encode(), digest.encode(), 1)


def path_of(directory: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of a file that a manifest names; no link may lead out of the directory."""
    path, root = os.path.realpath(directory / name), os.path.realpath(directory)
    if not path.startswith(os.path.join(root, "")):
        raise ArtifactError(
            f"{directory / name} leads out of the artifact, to {path}. An artifact must hold its "
            "files itself: copy it with its links resolved, as with cp -rL."
        )
    return directory / name
