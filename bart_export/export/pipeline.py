"""The journey of an export, top to bottom: a preset goes in, a verified artifact comes out.

`export` names every stage in order; each is a room of its own. Nothing is committed unless every
file says what the Keras model says, and whatever fails leaves the previous artifact as it was.
"""

import dataclasses
import pathlib

from bart_export.artifact import artifact, manifest_file
from bart_export.artifact.artifact import GOLDEN, Artifact, Draft, write_json
from bart_export.bench import measurements
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.resolve import ResolvedPreset, resolve_preset
from bart_export.export.manifest import MERGES, VOCABULARY, carry_over, describe
from bart_export.export.options import Options
from bart_export.export.result import Model
from bart_export.export.targets import export_files
from bart_export.model import BartBackbone
from bart_export.progress import Stage
from bart_export.report import report
from bart_export.runtime.generator import ModelInfo
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify import golden, tokenization, verify
from bart_export.verify.reference import Float64Reference, KerasReference


def export(
    preset: str,
    options: Options,
    output: pathlib.Path,
    stage: Stage = lambda name: None,
    *,
    task: str | None = None,
) -> Artifact:
    """Export a preset to an artifact directory.

    Args:
        preset: what `origin.resolve` takes.
        options: what to export; their class is the target.
        output: the artifact directory to make, to add to, or to replace.
        stage: told the name of each stage as it begins.
        task: whose settings to take, of a checkpoint that has `task_specific_params`.

    Raises:
        BartExportError: of the family, for whatever cannot be read, written or is not true.
        VerificationFailed: if a file does not say what the Keras model says.
    """
    resolved = resolve_preset(preset, task, stage)
    return export_resolved(resolved, options, output, stage)


def export_resolved(
    resolved: ResolvedPreset,
    options: Options,
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
        info = ModelInfo(
            checkpoint.config, tokenizer, generation, checkpoint.encoder_sequence_length
        )
        model = Model(info, backbone, checkpoint.directory)
        exported = export_files(model, options, draft, stage)
        stage("ask the Keras model")
        others = {file.name: file.settings for file in exported.files if file.settings}
        questions = golden.questions(info, others)
        keras = KerasReference(backbone)
        truth = Float64Reference(backbone)
        reference = verify.consult(keras, tokenizer, questions, truth)
        rows, answers = [], {}
        for one in exported.files:
            stage(f"verify {one.name}")
            verification, answers[one.name] = one.check(keras, reference)
            rows.append(verification)
        described = describe(resolved, tokenizer)
        entries = {name: entry for one in exported.files for name, entry in one.entries.items()}
        previous = carry_over(draft, described, entries)
        exports = previous.exports + 1
        stage("measure for the report")
        measured = measurements.measure(
            {one.name: one.measured for one in exported.files if one.measured is not None},
            info,
            exports,
        )
        kept = [row.file for row in previous.verification]
        recorded = golden.recorded(questions, reference.answers, answers, previous.golden, kept)
        manifest_file.write_golden(draft.directory / GOLDEN, recorded)
        own = {name: draft.entry(name) for name in (VOCABULARY, MERGES, GOLDEN)}
        manifest = dataclasses.replace(
            described,
            exports=exports,
            files={**entries, **previous.files, **own},
            verification=(*rows, *previous.verification),
            measurements=(*measured, *previous.measurements),
            sensitivity=tuple(exported.sensitivity) or previous.sensitivity,
        )
        reported = report.write(draft.directory, manifest)
        files = {**manifest.files, **{name: draft.entry(name) for name in reported}}
        manifest = dataclasses.replace(manifest, files=files)
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
