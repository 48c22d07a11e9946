"""Artifacts of a few bytes, for tests that do not need a model."""

import dataclasses
import hashlib
import json
import shutil

from bart_export.artifact import artifact, drafts
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.manifest import Manifest, SourceEntry, TfliteEntry, TokenizerFiles
from bart_export.config import BartConfig, GenerationConfig

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
        source=SourceEntry("made up", None, "keras", "0" * 64),
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


def contents(directory):
    """Return the bytes of every file below a directory by its path, but for what readers keep."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    found = {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}
    return {name: content for name, content in found.items() if not name.startswith(".cache/")}


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_directory(path):
    """Replace a file by a directory that is not empty."""
    path.unlink()
    (path / "inside").mkdir(parents=True)


def seal(directory, fields):
    """Write a manifest with these fields and a valid hash, as another version or an attacker."""
    content = {**fields, "format_version": 1, "manifest_sha256": artifact.UNSEALED}
    sealed = artifact.seal(json.dumps(content).encode())
    (directory / "manifest.json").write_bytes(sealed)


def edit_manifest(directory, change):
    """Change a manifest's fields in place, and seal it again."""
    fields = json.loads((directory / "manifest.json").read_bytes())
    change(fields)
    seal(directory, fields)


def reseal(directory):
    """Update the sizes and hashes of files in a manifest."""

    def update(fields):
        for name, entry in fields["files"].items():
            data = (directory / name).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    edit_manifest(directory, update)


# The entry of an empty file.
EMPTY = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}


def with_files(made, **entries):
    """Add entries to an artifact's manifest, by name."""
    edit_manifest(made.directory, lambda fields: fields["files"].update(entries))


def variant(made, target, add=lambda draft: {}, without=(), **fields):
    """Commit and open a copy of an artifact.

    `add` writes files to the draft and returns their entries by name; `without` names files that
    the manifest lacks; `fields` are other fields of it.
    """
    ignored = shutil.ignore_patterns("manifest.json", ".cache")
    with drafts.draft(target) as draft:
        shutil.copytree(made.directory, draft.directory, ignore=ignored, dirs_exist_ok=True)
        files = {**made.manifest.files, **add(draft)}
        kept = {name: entry for name, entry in files.items() if name not in without}
        draft.commit(dataclasses.replace(made.manifest, files=kept, **fields))
    return Artifact.open(target)


def export_again(target, made, number):
    """Replace an artifact as an export does."""
    variant(made, target, exports=number)


def whole(directory):
    """Return an artifact after verifying all its files."""
    artifact = Artifact.open(directory)
    for name in artifact.manifest.files:
        artifact.path(name, rehash=True)
    return artifact
