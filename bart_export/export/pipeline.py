"""The journey of an export, top to bottom: a preset goes in, a verified artifact comes out.

`export` names every stage in order; each is a room of its own. Nothing is committed unless every
file says what the Keras model says, and whatever fails leaves the previous artifact as it was.
"""

import dataclasses
import pathlib
from typing import Any

from bart_export.artifact import artifact, manifest_file
from bart_export.artifact.artifact import GOLDEN, Artifact, Draft, write_json
from bart_export.bench import measurements
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.resolved import ResolvedPreset, resolve_preset
from bart_export.export.manifest import MERGES, VOCABULARY, describe, keep
from bart_export.export.targets import EXPORTERS, Model
from bart_export.model import BartBackbone
from bart_export.progress import Stage
from bart_export.report import report
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify import golden, tokenization, verify
from bart_export.verify.reference import Float64Reference, KerasReference


def export(
    preset: str,
    target: str,
    options: Any,
    output: pathlib.Path,
    stage: Stage = lambda name: None,
    *,
    task: str | None = None,
) -> Artifact:
    """Export a preset to an artifact directory.

    Args:
        preset: what `origin.resolve` takes.
        target: a key of `exporters.EXPORTERS`.
        options: what that exporter takes: a `TfliteOptions` or a `SavedModelOptions`.
        output: the artifact directory to make, to add to, or to replace.
        stage: told the name of each stage as it begins.
        task: whose settings to take, of a checkpoint that has `task_specific_params`.

    Raises:
        BartExportError: of the family, for whatever cannot be read, written or is not true.
        VerificationFailed: if a file does not say what the Keras model says.
    """
    resolved = resolve_preset(preset, task, stage)
    return export_resolved(resolved, target, options, output, stage)


def export_resolved(
    resolved: ResolvedPreset,
    target: str,
    options: Any,
    output: pathlib.Path,
    stage: Stage = lambda name: None,
) -> Artifact:
    """Export a preset that has been resolved; see `export`."""
    checkpoint, generation = resolved.checkpoint, resolved.defaults.generation
    stage("build the Keras model")
    backbone = BartBackbone.from_checkpoint(checkpoint)
    with artifact.draft(output) as draft:
        tokenizer = write_tokenizer(checkpoint, draft)
        stage("verify the tokenizer")
        tokenization.check(checkpoint, tokenizer, golden.TEXTS)
        model = Model(
            backbone,
            tokenizer,
            generation,
            checkpoint.encoder_sequence_length,
            checkpoint.directory,
        )
        exported = EXPORTERS[target](model, options, draft, stage)
        written = exported.written
        stage("ask the Keras model")
        questions = golden.questions(
            tokenizer,
            checkpoint.config,
            {"defaults": generation} | {one.name: one.settings for one in written if one.settings},
            checkpoint.encoder_sequence_length,
        )
        keras = KerasReference(backbone)
        truth = Float64Reference(backbone)
        reference = verify.consult(keras, tokenizer, questions, truth)
        rows, answers = [], {}
        for one in written:
            stage(f"verify {one.name}")
            comparison, answers[one.name] = one.check(keras, reference)
            rows.append({"file": one.name, **dataclasses.asdict(comparison)})
        manifest = describe(resolved, tokenizer)
        entries = {
            name: draft.entry(name, **details)
            for one in written
            for name, details in one.files.items()
        }
        kept = keep(draft, manifest, entries)
        manifest["exports"] = kept.exports + 1
        manifest["verification"] = [*rows, *kept.verification]
        stage("measure for the report")
        measured = measurements.measure(
            {
                one.name: measurements.Measured(entries[one.name], one.run)
                for one in written
                if one.run is not None
            },
            measurements.Model(generation, checkpoint.encoder_sequence_length),
            manifest["exports"],
        )
        manifest["measurements"] = [*measured, *kept.measurements]
        manifest["sensitivity"] = [*(exported.sensitivity or kept.sensitivity)]
        content = golden.to_dict(questions, reference.answers, answers)
        golden.add_earlier(content, kept.golden, [row["file"] for row in kept.verification])
        manifest_file.write_golden(draft.directory / GOLDEN, content)
        own = {name: draft.entry(name) for name in (VOCABULARY, MERGES, GOLDEN)}
        manifest["files"] = {**entries, **kept.files, **own}
        reported = report.write(draft.directory, manifest)
        manifest["files"] |= {name: draft.entry(name) for name in reported}
        stage("commit the artifact")
        draft.commit(manifest)
    return Artifact.open(output)


def write_tokenizer(checkpoint: Checkpoint, draft: Draft) -> BartTokenizer:
    """Write the tokenizer's files into a draft and open them there."""
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
