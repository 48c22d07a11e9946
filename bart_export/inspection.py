"""What a preset or an artifact holds, as plain facts for the command line to print.

A path or a preset's name goes in; headed dictionaries of JSON-ready values come out. Weights are
not read, and a preset on a hub that has a name here is described without being downloaded.
"""

import pathlib
from collections.abc import Iterable
from typing import Any

from bart_export import checkpoints
from bart_export.artifact import Artifact
from bart_export.checkpoints import names
from bart_export.presets import PRESETS

Facts = dict[str, dict[str, Any]]


def artifact_facts(directory: pathlib.Path) -> Facts:
    """Return the facts of an artifact, from its manifest; files are hashed.

    Raises:
        ArtifactError: for an artifact that is damaged.
    """
    artifact = Artifact.open(directory)
    manifest = artifact.manifest
    for name in manifest["files"]:
        artifact.path(name, rehash=True)
    return {
        "artifact": {
            "preset": manifest["preset"],
            "format_version": manifest["format_version"],
            "parameters": manifest["parameter_count"],
            **manifest["source"],
        },
        "configuration": manifest["config"],
        "generation": manifest["generation"],
        "notes": numbered(manifest.get("notes", ())),
        "signatures": {
            f"{target} {name}.{side}": ", ".join(
                f"{tensor} {details['dtype']} {details['shape']}"
                for tensor, details in signature[side].items()
            )
            for target, signatures in manifest["signatures"].items()
            for name, signature in signatures.items()
            for side in ("inputs", "outputs")
        },
        "files": {
            name: f"{entry['bytes']} bytes, sha256 {entry['sha256']}"
            for name, entry in manifest["files"].items()
        },
        "verification": {
            row["file"]: {key: value for key, value in row.items() if key != "file"}
            for row in manifest["verification"]
        },
        "tools": manifest["tools"],
    }


def preset_facts(preset: str) -> Facts:
    """Return the facts of a preset.

    Raises:
        PresetError: for a preset that cannot be found.
        CheckpointError: for one that cannot be read.
    """
    known = PRESETS.get(preset)
    if known is not None and known.directory is None:
        return {
            "preset": {
                "name": known.name,
                "description": known.description,
                "handle": known.handle,
                "parameters": known.parameters,
            },
            "generation": known.generation.to_dict() if known.generation else {},
            "notes": numbered([checkpoints.known_settings(known)]),
        }
    resolved = checkpoints.resolve_preset(preset)
    source, checkpoint = resolved.source, resolved.checkpoint
    return {
        "preset": {
            "handle": source.handle,
            "revision": source.revision,
            "directory": str(source.directory),
            "format": checkpoint.format,
            "parameters": names.parameter_count(checkpoint.config),
            "encoder_sequence_length": checkpoint.encoder_sequence_length,
        },
        "configuration": checkpoint.config.to_dict(),
        "generation": resolved.defaults.generation.to_dict(),
        "notes": numbered(resolved.defaults.notes),
        "files": {path.name: f"{path.stat().st_size} bytes" for path in checkpoint.weight_files}
        | {"sha256 of the weights": checkpoints.weights_digest(checkpoint)},
    }


def numbered(notes: Iterable[str]) -> dict[str, str]:
    """Return lines as facts, by their numbers."""
    return {str(number): note for number, note in enumerate(notes, 1)}
