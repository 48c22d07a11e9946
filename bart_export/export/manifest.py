"""The manifest of an export: what it says of the model, and what an earlier export leaves to it."""

import dataclasses
import importlib.metadata
import os
import shutil
import stat
from collections.abc import Collection, Mapping

import bart_export
from bart_export import contract
from bart_export.artifact.artifact import SERVING, Artifact, Draft, link
from bart_export.artifact.figures import Golden, LayerSensitivity, Measurement, Verification
from bart_export.artifact.manifest import (
    SAVED_MODEL,
    TFLITE,
    FileEntry,
    Manifest,
    SignatureEntry,
    Source,
    TokenizerFiles,
    folded,
)
from bart_export.checkpoints import names
from bart_export.checkpoints.checkpoint import weights_digest
from bart_export.checkpoints.files import licence
from bart_export.checkpoints.resolve import ResolvedPreset
from bart_export.errors import ArtifactError
from bart_export.text.added_tokens import BART_TOKENS
from bart_export.text.tokenizer import BartTokenizer

VOCABULARY, MERGES = "tokenizer/vocabulary.json", "tokenizer/merges.txt"
TOOLS = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer", "numpy", "tokenizers")
# Fields that say what the files were made of.
SAME = ("source", "config", "generation", "encoder_sequence_length", "tokenizer")
# Targets whose files stay when the source changes: a server goes back to an earlier version.
KEPT_OVER_SOURCES = (SAVED_MODEL,)


def describe(resolved: ResolvedPreset, tokenizer: BartTokenizer) -> Manifest:
    """Return the manifest of an artifact without files."""
    source, checkpoint = resolved.source, resolved.checkpoint
    config = checkpoint.config
    signatures = {
        TFLITE: contract.tflite_signatures(config),
        SAVED_MODEL: contract.saved_model_signatures(),
    }
    return Manifest(
        preset=resolved.preset,
        source=Source(
            source.handle, source.revision, checkpoint.format, weights_digest(checkpoint)
        ),
        config=config,
        parameter_count=names.parameter_count(config),
        generation=resolved.defaults.generation,
        notes=tuple(resolved.defaults.notes),
        rows_without_token=checkpoint.rows_without_token,
        encoder_sequence_length=checkpoint.encoder_sequence_length,
        special_token_ids={
            "start_token_id": tokenizer.start_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "end_token_id": tokenizer.end_token_id,
            "unknown_token_id": tokenizer.unknown_token_id,
            "mask_token_id": tokenizer.mask_token_id,
        },
        tokenizer=tokenizer_files(tokenizer),
        signatures={
            target: {
                signature.name: SignatureEntry.of(signature, contract.sizes(config))
                for signature in declared
            }
            for target, declared in signatures.items()
        },
        tools={"bart-export": bart_export.__version__}
        | {name: importlib.metadata.version(name) for name in TOOLS},
        licence=licence(checkpoint.directory),
        exports=1,
        files={},
        verification=(),
        measurements=(),
        sensitivity=(),
    )


def tokenizer_files(tokenizer: BartTokenizer) -> TokenizerFiles:
    """Return what the manifest says of a tokenizer; what is as in any BART is not stated."""
    added = [dataclasses.asdict(one) for one in tokenizer.added_tokens if one not in BART_TOKENS]
    prefixed = tokenizer.add_prefix_space or None
    return TokenizerFiles(VOCABULARY, MERGES, prefixed, tuple(added) or None)


@dataclasses.dataclass(frozen=True)
class PreviousExport:
    """What of an earlier export goes on: files, what was found out about them, golden answers.

    `exports` counts the exports that were committed at this place.
    """

    exports: int = 0
    files: Mapping[str, FileEntry] = dataclasses.field(default_factory=dict)
    verification: tuple[Verification, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    sensitivity: tuple[LayerSensitivity, ...] = ()
    golden: Golden = Golden(())


def carry_over(draft: Draft, manifest: Manifest, written: Collection[str]) -> PreviousExport:
    """Carry into a draft what an earlier export left and this one, of `written` files, does not.

    An artifact of another source leaves only what `KEPT_OVER_SOURCES` says, and one that is damaged
    leaves nothing.
    """
    carry_serving(draft)
    exports = 0
    try:
        previous = Artifact.open(draft.target)
        earlier = previous.manifest
        exports = earlier.exports
        same = all(getattr(earlier, field) == getattr(manifest, field) for field in SAME)
        golden = previous.golden()
        taken = {folded(name) for name in written}
        files = {
            name: entry
            for name, entry in earlier.files.items()
            if name.startswith(f"{entry.target}/")
            and folded(name) not in taken
            and (same or entry.target in KEPT_OVER_SOURCES)
        }
        sources = {name: previous.path(name, rehash=True) for name in files}
    except ArtifactError:
        return PreviousExport(exports)
    for name, source in sources.items():
        draft.take(source, name)
    return PreviousExport(
        exports,
        files,
        tuple(row for row in earlier.verification if stands(row.file, files)),
        tuple(row for row in earlier.measurements if stands(row.file, files)),
        earlier.sensitivity if same else (),
        golden,
    )


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
