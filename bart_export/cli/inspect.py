"""The facts about a preset or an artifact; presets on a hub are not downloaded."""

import itertools
import os
import pathlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bart_export.artifact.artifact import MANIFEST, Artifact, no_artifact, similar_artifact
from bart_export.artifact.figures import FileVerification, Verification
from bart_export.artifact.manifest import (
    SAVED_MODEL,
    TFLITE,
    BucketEntry,
    HostEntry,
    SignatureEntry,
    StaticEntry,
    TensorSpec,
)
from bart_export.checkpoints import weight_names
from bart_export.checkpoints.checkpoint import weights_digest
from bart_export.checkpoints.resolve import ResolvedPreset, known_settings
from bart_export.documents import plain
from bart_export.errors import NoArtifact, PresetError, did_you_mean, shown
from bart_export.locations import HUB, KAGGLE_HUB, Location, is_remote, normalized
from bart_export.presets import PRESETS
from bart_export.progress import plural
from bart_export.report.facts import layered

Facts = dict[str, Any]
Section = Callable[[Any], Iterator[str]]
Signatures = Mapping[str, SignatureEntry] | Mapping[str, BucketEntry]
MOST_LINES = 1000  # per section
WIDTH = 100  # of lines outside a terminal


def facts(preset_or_artifact: str) -> Facts:
    """Return the facts of an artifact or a preset."""
    preset_or_artifact = normalized(preset_or_artifact)
    path, directory = pathlib.Path(preset_or_artifact), os.path.isdir(preset_or_artifact)
    if (path / MANIFEST).is_file() if directory else os.path.isfile(path):
        return artifact_facts(path)
    if preset_or_artifact in PRESETS or directory:
        return preset_facts(preset_or_artifact)
    if is_remote(preset_or_artifact):
        try:
            return artifact_facts(preset_or_artifact)
        except NoArtifact:
            if not preset_or_artifact.startswith((HUB, KAGGLE_HUB)):
                raise
            return preset_facts(preset_or_artifact)
    if similar_artifact(path) is not None:
        raise NoArtifact(no_artifact(path))
    raise PresetError(
        f"{shown(preset_or_artifact)} is neither an artifact's directory nor a preset."
        f"{did_you_mean(preset_or_artifact, PRESETS)} Named presets are "
        f"{', '.join(PRESETS)}; others are directories, hf://… and kaggle://…."
    )


def artifact_facts(location: Location) -> Facts:
    """Return the facts of an artifact, after hashing the files of a local one."""
    artifact = Artifact.open(location)
    manifest = artifact.manifest
    for name in manifest.files if artifact.store is None else ():
        artifact.path(name, rehash=True)
    # As in `bart-export serve`: the version of a SavedModel is its directory's number, as in
    # TensorFlow Serving; that of `.tflite` files is the number of exports to the artifact.
    served = {"tensorflow": manifest.saved_model_versions}
    if artifact.files(TFLITE):
        served["litert"] = [manifest.exports]
    return {
        "artifact": {
            "preset": manifest.preset,
            "format_version": manifest.format_version,
            "parameters": manifest.parameter_count,
            **manifest.source.to_dict(),
        },
        "configuration": manifest.config.to_dict(),
        "generation": manifest.generation.to_dict(),
        "notes": list(manifest.notes),
        "served_versions": {engine: versions for engine, versions in served.items() if versions},
        "signatures": signatures(artifact),
        "files": {
            name: {"bytes": entry.bytes, "sha256": entry.sha256}
            for name, entry in manifest.files.items()
        },
        "verification": {row.file: row for row in manifest.verification},
        "tools": manifest.tools,
    }


def signatures(artifact: Artifact) -> dict[str, Signatures]:
    """Return the signatures by target, or by file for files with other signatures."""
    manifest = artifact.manifest
    dynamic = any(entry.shapes is None for entry in manifest.tflite().values())
    present = {TFLITE: dynamic, SAVED_MODEL: bool(artifact.files(SAVED_MODEL))}
    targets = [target for target, found in present.items() if found]
    return {target: manifest.signatures.get(target, {}) for target in targets} | {
        name: entry.signatures
        for name, entry in manifest.files.items()
        if isinstance(entry, (StaticEntry, HostEntry))
    }


def preset_facts(preset: str) -> Facts:
    """Return the facts of a preset."""
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
            "notes": [known_settings(known)],
        }
    resolved = ResolvedPreset(preset)
    source, checkpoint = resolved.source, resolved.checkpoint
    return {
        "preset": {
            "handle": source.handle,
            "revision": source.revision,
            "directory": str(source.directory),
            "format": checkpoint.format,
            "weights_sha256": weights_digest(checkpoint),
            "parameters": weight_names.parameter_count(checkpoint.config),
            "encoder_sequence_length": checkpoint.encoder_sequence_length,
        },
        "configuration": checkpoint.config.to_dict(),
        "generation": resolved.defaults.generation.to_dict(),
        "notes": list(resolved.defaults.notes),
        "files": {path.name: {"bytes": path.stat().st_size} for path in checkpoint.weight_files},
    }


def to_json(facts: Facts) -> Any:
    """Return facts as a JSON object."""
    content = plain(facts)
    for row in content.get("verification", {}).values():
        del row["file"]  # the key is the file
    return content


def lines(facts: Facts) -> Iterator[str]:
    """Yield facts as lines of text."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    for title, content in facts.items():
        if not content:
            continue
        yield title.replace("_", " ")
        section: Section = SECTIONS.get(title, fields)
        found = section(content)
        for line in itertools.islice(found, MOST_LINES):
            indent = "  " + " " * (len(line) - len(line.lstrip()))
            yield from textwrap.wrap(
                line.strip(),
                max(width, 40),
                initial_indent=indent,
                subsequent_indent=f"{indent}  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        if more := sum(1 for _ in found):
            yield f"  … and {plural(more, 'more line')}, which --json shows"


def fields(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each field."""
    for name, value in content.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        elif value is None or isinstance(value, bool):
            value = str(value).lower()
        yield f"{name}: {value}"


def signature_lines(content: Mapping[str, Signatures]) -> Iterator[str]:
    """Yield the tensors of signatures, with numbered tensors on one line."""
    for owner, owned in content.items():
        yield owner
        for name, signature in owned.items():
            yield f"  {name}"
            yield from (f"    input  {line}" for line in tensor_lines(signature.inputs))
            yield from (f"    output  {line}" for line in tensor_lines(signature.outputs))


def tensor_lines(tensors: Mapping[str, TensorSpec]) -> Iterator[str]:
    """Yield tensors, such as cross_key_0 … 5  float32 [1, 4, source, 64]."""
    for names, tensor in layered(tensors):
        yield f"{names}  {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"


def file_lines(content: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield files with their sizes and abbreviated hashes."""
    longest = max(map(len, content))
    for name, entry in content.items():
        digest = f"  sha256 {entry['sha256'][:16]}…" if "sha256" in entry else ""
        yield f"{name:{longest}}  {entry['bytes']:>12,} bytes{digest}"


def verification_lines(content: Mapping[str, Verification]) -> Iterator[str]:
    """Yield each file's comparison with the Keras model."""
    for file, row in content.items():
        yield f"{file}: {comparison(row)}"


def summary(artifact: Artifact, row: Verification) -> str:
    """Return a file's or SavedModel's size and its comparison with the Keras model."""
    files, name = artifact.manifest.files, row.file
    parts = [name] if name in files else [file for file in files if file.startswith(f"{name}/")]
    size = sum(files[file].bytes for file in parts)
    parameters = artifact.manifest.parameter_count
    density = f", {size / parameters:.3f} bytes per parameter" if name in files else ""
    return f"{name}: {size / 1e6:.1f} MB{density}; against Keras: {comparison(row)}"


def comparison(row: Verification) -> str:
    """Return a file's comparison with the Keras model as text."""
    steps, questions = row.steps, row.questions
    if isinstance(row, FileVerification):
        same = f"the same most likely token in {round(row.top1 * steps)} of {steps} steps"
        figures = f"{same}, logits within {row.logits:.2g}"
    else:
        figures = f"log-probabilities within {row.log_probabilities:.2g} over {steps} steps"
    if row.tokens is None:
        return f"{figures}, no golden text fits"
    return f"{figures}, {round(row.tokens * questions)} of {questions} golden texts equal"


# Printed if not all are equal, because it is the first figure that a new user sees.
ABOUT_EQUAL_TEXTS = (
    "A golden text is equal when all its tokens are. If two tokens are almost equally likely, "
    "rounded weights may choose the other one and continue with an equally good text. REPORT.md "
    "and bart-export verify --data with your own texts are better measures of quality."
)
SECTIONS: dict[str, Section] = {
    "notes": iter,
    "signatures": signature_lines,
    "files": file_lines,
    "verification": verification_lines,
}
