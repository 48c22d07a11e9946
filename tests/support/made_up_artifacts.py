"""Artifacts of a few bytes, for tests that do not need a model."""

import dataclasses
import hashlib
import json
import shutil

from bart_export.artifact import artifact, drafts
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.manifest import Manifest, Source, TfliteEntry, TokenizerFiles
from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import ArtifactError

CONFIG = BartConfig(vocabulary_size=8, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4)
FILES = {"tflite/a.tflite": b"first" * 1000, "golden.json": b"{}"}

# The fields of a `.tflite` file's entry except size and hash.
EXPORTED = {
    "target": "tflite",
    "recipe": "float32",
    "mode": "float",
    "layers": (),
    "tolerance": {},
    "runtimes": {},
    "refusals": {},
}


def entry(**changes):
    """Return the entry of a `.tflite` file of a few bytes."""
    return TfliteEntry(5, "0" * 64, **{**EXPORTED, **changes})


def manifest(files, preset="made_up"):
    """Return a manifest with the entries of `files`."""
    return Manifest(
        preset=preset,
        source=Source("made up", None, "keras", "0" * 64),
        config=CONFIG,
        generation=GenerationConfig(),
        encoder_sequence_length=16,
        special_token_ids={},
        parameter_count=1,
        tokenizer=TokenizerFiles(*2 * [next(iter(files), "")]),
        signatures={},
        files=files,
        tools={},
        verification=(),
        measurements=(),
        sensitivity=(),
        exports=1,
    )


def write(target, contents, preset="made_up"):
    """Commit an artifact with files of these contents, by name, and open it."""
    with drafts.draft(target) as draft:
        for name, content in contents.items():
            path = draft.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        entries = {name: TfliteEntry(*draft.content(name), **EXPORTED) for name in contents}
        draft.commit(manifest(entries, preset))
    return artifact.Artifact.open(target)


def names(directory):
    """Return the names in a directory."""
    return sorted(path.name for path in directory.iterdir())


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def reseal(directory):
    """Update the sizes and hashes in a manifest, as an attacker could."""
    path = directory / "manifest.json"
    content = json.loads(path.read_bytes())
    for name, entry in content["files"].items():
        data = (directory / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    content["manifest_sha256"] = artifact.UNSEALED
    path.write_bytes(artifact.seal(json.dumps(content).encode()))


# The entry of an empty file.
EMPTY = {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}


def seal(directory, fields):
    """Write a manifest with these fields and a valid hash."""
    content = {**fields, "format_version": 1, "manifest_sha256": "0" * 64}
    text = json.dumps(content, indent=1).encode()
    (directory / "manifest.json").write_bytes(artifact.seal(text))


def with_files(made, **entries):
    """Add entries to an artifact's manifest, by name, and update its hash."""
    fields = made.manifest.to_dict()
    seal(made.directory, {**fields, "files": {**fields["files"], **entries}})


def export_again(target, made, number):
    """Replace an artifact as an export does."""
    ignored = shutil.ignore_patterns("manifest.json", ".cache")
    with drafts.draft(target) as draft:
        shutil.copytree(made.directory, draft.directory, ignore=ignored, dirs_exist_ok=True)
        draft.commit(dataclasses.replace(made.manifest, exports=number))


def whole(directory):
    """Return an artifact after verifying all its files."""
    artifact = Artifact.open(directory)
    for name in artifact.manifest.files:
        artifact.path(name, rehash=True)
    return artifact


def check_neighbours(target):
    """Fail if a kill left an incomplete artifact next to this one."""
    for path in target.parent.rglob("*"):
        if path != target and path.is_dir():
            try:
                Artifact.open(path)
            except ArtifactError:
                continue
            whole(path)
