"""What a manifest says: the fields of one export, and what an earlier one left to keep.

The checkpoint and its settings go in, JSON-ready dictionaries come out. What an artifact is, on
disk, `artifact` knows; how files are made and judged is not known here.
"""

import dataclasses
import importlib.metadata
import os
import shutil
import stat
from collections.abc import Collection, Mapping
from typing import Any

import bart_export
from bart_export import contract
from bart_export.artifact.artifact import SERVING, Artifact, Draft, link
from bart_export.artifact.manifest_file import folded
from bart_export.checkpoints import licence, names
from bart_export.checkpoints.checkpoint import weights_digest
from bart_export.checkpoints.resolved import ResolvedPreset
from bart_export.errors import ArtifactError
from bart_export.text.added_tokens import BART_TOKENS
from bart_export.text.tokenizer import BartTokenizer

VOCABULARY, MERGES = "tokenizer/vocabulary.json", "tokenizer/merges.txt"
TOOLS = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer", "numpy", "tokenizers")
# Fields that say what the files were made of.
SAME = ("source", "config", "generation", "encoder_sequence_length", "tokenizer")
# Targets whose files stay when the source changes: a server goes back to an earlier version.
KEPT_OVER_SOURCES = ("saved_model",)


def describe(resolved: ResolvedPreset, tokenizer: BartTokenizer) -> dict[str, Any]:
    """Return the manifest's fields that do not depend on the files."""
    source, checkpoint = resolved.source, resolved.checkpoint
    config = checkpoint.config
    sizes = contract.sizes(config)
    signatures = {
        "tflite": contract.tflite_signatures(config),
        "saved_model": contract.saved_model_signatures(),
    }
    return {
        "preset": resolved.preset,
        "source": {
            "handle": source.handle,
            "revision": source.revision,
            "format": checkpoint.format,
            "weights_sha256": weights_digest(checkpoint),
        },
        "config": config.to_dict(),
        "parameter_count": names.parameter_count(config),
        "generation": resolved.defaults.generation.to_dict(),
        "notes": list(resolved.defaults.notes),
        "rows_without_token": checkpoint.rows_without_token,
        "encoder_sequence_length": checkpoint.encoder_sequence_length,
        "special_token_ids": {
            "start_token_id": tokenizer.start_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "end_token_id": tokenizer.end_token_id,
            "unknown_token_id": tokenizer.unknown_token_id,
            "mask_token_id": tokenizer.mask_token_id,
        },
        "tokenizer": {"vocabulary": VOCABULARY, "merges": MERGES, **settings(tokenizer)},
        "signatures": {
            target: {signature.name: signature.to_dict(sizes) for signature in declared}
            for target, declared in signatures.items()
        },
        "tools": {"bart-export": bart_export.__version__}
        | {name: importlib.metadata.version(name) for name in TOOLS},
        "licence": licence.licence(checkpoint.directory),
        "exports": 1,
        "files": {},
        "verification": [],
        "measurements": [],
        "sensitivity": [],
    }


def settings(tokenizer: BartTokenizer) -> dict[str, Any]:
    """Return what changes a tokenizer's ids beside its two files, where it is not as in any BART.

    What is not stated here is not, either, in artifacts that were made before there was a word for
    it.
    """
    added = [dataclasses.asdict(one) for one in tokenizer.added_tokens if one not in BART_TOKENS]
    stated = {"add_prefix_space": tokenizer.add_prefix_space, "added_tokens": added}
    return {name: value for name, value in stated.items() if value}


@dataclasses.dataclass(frozen=True)
class Kept:
    """What of an earlier export goes on: files, what was found out about them, golden cases.

    `exports` counts the exports that were committed at this place.
    """

    exports: int = 0
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    verification: tuple[Mapping[str, Any], ...] = ()
    measurements: tuple[Mapping[str, Any], ...] = ()
    sensitivity: tuple[Mapping[str, Any], ...] = ()
    golden: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"cases": []})


def keep(draft: Draft, manifest: Mapping[str, Any], written: Collection[str]) -> Kept:
    """Carry into a draft what an earlier export left and this one, of `written` files, does not.

    An artifact of another source leaves only what `KEPT_OVER_SOURCES` says, and one that is damaged
    leaves nothing.
    """
    carry_serving(draft)
    exports = 0
    try:
        previous = Artifact.open(draft.target)
        exports = previous.manifest["exports"]
        same = all(previous.manifest[field] == manifest[field] for field in SAME)
        cases = previous.golden()
        taken = {folded(name) for name in written}
        others = {
            name: details
            for name, details in previous.manifest["files"].items()
            if name.startswith(f"{details.get('target')}/")
            and folded(name) not in taken
            and (same or details["target"] in KEPT_OVER_SOURCES)
        }
        sources = {name: previous.path(name, rehash=True) for name in others}
    except ArtifactError:
        return Kept(exports)
    for name, source in sources.items():
        draft.take(source, name)
    rows = {
        field: tuple(row for row in previous.manifest[field] if stands(row["file"], others))
        for field in ("verification", "measurements")
    }
    sensitivity = tuple(previous.manifest["sensitivity"]) if same else ()
    return Kept(exports, others, rows["verification"], rows["measurements"], sensitivity, cases)


def carry_serving(draft: Draft) -> None:
    """Take over the files of a deployment, which people edit, unless this export wrote its own.

    Links stay what they are, and what is neither file, directory nor link stays behind.
    """
    theirs, ours = draft.target / SERVING, draft.directory / SERVING
    if ours.exists():
        return
    if theirs.is_symlink():
        ours.symlink_to(os.readlink(theirs))
    elif theirs.is_dir():
        shutil.copytree(theirs, ours, symlinks=True, ignore=specials, copy_function=link)


def specials(directory: str, names: list[str]) -> list[str]:
    """Return the names of what is neither a file, a directory nor a link."""
    modes = {name: os.lstat(os.path.join(directory, name)).st_mode for name in names}
    plain = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)
    return [name for name, mode in modes.items() if not any(kind(mode) for kind in plain)]


def stands(exported: str, files: Collection[str]) -> bool:
    """Return whether a file is among some, or, for a directory, its files are."""
    return exported in files or any(name.startswith(f"{exported}/") for name in files)
