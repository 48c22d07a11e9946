"""Builds the manifest of an export, including entries kept from an earlier export."""

import dataclasses
import importlib.metadata
import operator
import os
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence

import bart_export
from bart_export import contract
from bart_export.artifact import artifact
from bart_export.artifact.artifact import GOLDEN, SERVING, Artifact
from bart_export.artifact.drafts import Draft, link, write_json
from bart_export.artifact.figures import Golden, Measurement
from bart_export.artifact.manifest import (
    SAVED_MODEL,
    TFLITE,
    Manifest,
    SignatureEntry,
    SourceEntry,
    TokenizerFiles,
    folded,
)
from bart_export.checkpoints import weight_names
from bart_export.checkpoints.checkpoint import Checkpoint, weights_digest
from bart_export.checkpoints.files import licence
from bart_export.checkpoints.resolve import ResolvedPreset
from bart_export.errors import ArtifactError
from bart_export.export.target import ExportResult, Verified
from bart_export.report import report
from bart_export.text.added_tokens import BART_TOKENS
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify import golden
from bart_export.verify.compare import Cases

VOCABULARY, MERGES = "tokenizer/vocabulary.json", "tokenizer/merges.txt"
TOOLS = ("tensorflow", "keras", "ai-edge-litert", "litert-quantizer", "numpy", "tokenizers")
# An earlier export's files are kept if these fields are equal.
SAME = ("source.weights_sha256", "config", "generation", "encoder_sequence_length", "tokenizer")
# Targets whose files are always kept, so that a server can roll back to an earlier version.
KEPT_OVER_SOURCES = (SAVED_MODEL,)


def write_tokenizer(checkpoint: Checkpoint, draft: Draft) -> BartTokenizer:
    """Write the tokenizer's files into a draft, and open them."""
    vocabulary, merges = draft.directory / VOCABULARY, draft.directory / MERGES
    vocabulary.parent.mkdir()
    write_json(vocabulary, dict(checkpoint.vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in checkpoint.merges)]
    merges.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return BartTokenizer.from_files(
        vocabulary,
        merges,
        checkpoint.added_tokens,
        add_prefix_space=checkpoint.add_prefix_space,
    )


def describe(resolved: ResolvedPreset, tokenizer: BartTokenizer) -> Manifest:
    """Return the manifest of an artifact that has no files and no committed export."""
    source, checkpoint, config = resolved.source, resolved.checkpoint, resolved.checkpoint.config
    tokens = ("start", "pad", "end", "unknown", "mask")
    sizes = contract.sizes(config)
    # The tokens that every BART model has are omitted.
    added = [
        dataclasses.asdict(token) for token in tokenizer.added_tokens if token not in BART_TOKENS
    ]
    signatures = {
        TFLITE: contract.tflite_signatures(config),
        SAVED_MODEL: contract.saved_model_signatures(),
    }
    return Manifest(
        preset=resolved.preset if source.revision else source.handle,
        source=SourceEntry(
            source.handle, source.revision, checkpoint.format, weights_digest(checkpoint)
        ),
        config=config,
        parameter_count=weight_names.parameter_count(config),
        generation=resolved.defaults.generation,
        notes=tuple(resolved.defaults.notes),
        rows_without_token=checkpoint.rows_without_token,
        encoder_sequence_length=checkpoint.encoder_sequence_length,
        special_token_ids={
            f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in tokens
        },
        tokenizer=TokenizerFiles(
            VOCABULARY, MERGES, tokenizer.add_prefix_space or None, tuple(added) or None
        ),
        signatures={
            target: {signature.name: SignatureEntry.of(signature, sizes) for signature in declared}
            for target, declared in signatures.items()
        },
        tools={"bart-export": bart_export.__version__}
        | {name: importlib.metadata.version(name) for name in TOOLS},
        licence=licence(checkpoint.directory),
        exports=0,
        files={},
        verification=(),
        measurements=(),
        sensitivity=(),
    )


def carry_over(
    draft: Draft, described: Manifest, written: Collection[str]
) -> tuple[Manifest, Golden]:
    """Keep an earlier export's files in a draft, unless this export's `written` files replace them.

    If the source differs, only files of `KEPT_OVER_SOURCES` are kept; if the earlier artifact is
    damaged, none are. Returns this export's manifest, `described`, extended by the kept files,
    their figures and the number of earlier exports; and the earlier export's golden answers.
    """
    carry_serving(draft)
    exports = 0
    try:
        previous = Artifact.open(draft.target)
        earlier = previous.manifest
        exports = earlier.exports
        compared = operator.attrgetter(*SAME)
        same = compared(earlier) == compared(described)
        answers = previous.golden()
        replaced = {folded(name) for name in written}
        files = {
            name: entry
            for name, entry in earlier.files.items()
            if name.startswith(f"{entry.target}/")
            and folded(name) not in replaced
            and (same or entry.target in KEPT_OVER_SOURCES)
        }
        sources = {name: previous.path(name, rehash=True) for name in files}
    except ArtifactError:
        return dataclasses.replace(described, exports=exports), Golden(())
    for name, source in sources.items():
        draft.take(source, name)
    carried = dataclasses.replace(
        described,
        exports=exports,
        files=files,
        verification=tuple(row for row in earlier.verification if is_kept(row.file, files)),
        measurements=tuple(row for row in earlier.measurements if is_kept(row.file, files)),
        sensitivity=earlier.sensitivity if same else (),
    )
    return carried, answers


def write_golden(
    draft: Draft,
    cases: Cases,
    verified: Mapping[str, Verified],
    carried: Manifest,
    earlier: Golden,
) -> None:
    """Write the answers of the Keras model, of this export's files and of kept files."""
    answers = {name: answer for name, (_, answer) in verified.items()}
    kept = [row.file for row in carried.verification]
    recorded = golden.merged(cases.questions, cases.answers, answers, earlier, kept)
    artifact.write_golden(draft.directory / GOLDEN, recorded)


def complete(
    draft: Draft,
    carried: Manifest,
    exported: ExportResult,
    verified: Mapping[str, Verified],
    measured: Sequence[Measurement],
) -> Manifest:
    """Add this export's files and figures to those carried over."""
    added = {name: draft.entry(name) for name in (VOCABULARY, MERGES, GOLDEN)}
    return dataclasses.replace(
        carried,
        exports=carried.exports + 1,
        files={**exported.entries, **carried.files, **added},
        verification=(*(row for row, _ in verified.values()), *carried.verification),
        measurements=(*measured, *carried.measurements),
        sensitivity=exported.sensitivity or carried.sensitivity,
    )


def write_report(draft: Draft, manifest: Manifest) -> Manifest:
    """Write an artifact's report, and return its manifest with the report's files."""
    reported = report.write(draft.directory, manifest)
    files = {**manifest.files, **{name: draft.entry(name) for name in reported}}
    return dataclasses.replace(manifest, files=files)


def carry_serving(draft: Draft) -> None:
    """Copy an earlier deployment, which users may have edited, unless this export wrote a new one.

    Links are copied as links; sockets, pipes and devices are left out.
    """
    source, copy = draft.target / SERVING, draft.directory / SERVING
    if copy.exists():
        return
    if source.is_symlink():
        copy.symlink_to(os.readlink(source))
    elif source.is_dir():
        shutil.copytree(source, copy, symlinks=True, ignore=special_files, copy_function=link)


def special_files(directory: str, names: list[str]) -> list[str]:
    """Return the names of entries that are not files, directories or links."""
    modes = {name: os.lstat(os.path.join(directory, name)).st_mode for name in names}
    plain = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)
    return [name for name, mode in modes.items() if not any(kind(mode) for kind in plain)]


def is_kept(exported: str, files: Collection[str]) -> bool:
    """Return whether `files` contains a file, or, for a directory, any file in it."""
    return exported in files or any(name.startswith(f"{exported}/") for name in files)
