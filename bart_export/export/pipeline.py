"""The stages of an export, from a preset to a verified artifact.

Nothing is committed unless every file agrees with the Keras model; if a stage fails, the previous
artifact is unchanged.
"""

import pathlib

from bart_export.artifact import drafts
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.drafts import Draft
from bart_export.bench import measurements
from bart_export.checkpoints.resolve import ResolvedPreset
from bart_export.export import export_manifest
from bart_export.export.edgetpu_target import export_edgetpu
from bart_export.export.options import EdgeTpuOptions, Options, SavedModelOptions
from bart_export.export.saved_model_target import export_saved_model
from bart_export.export.target import ExportResult, LoadedModel
from bart_export.export.tflite_target import export_tflite
from bart_export.model import BartBackbone
from bart_export.progress import Stage
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import golden, tokenization
from bart_export.verify.reference import KerasReference


def export(
    preset: str | ResolvedPreset,
    options: Options,
    output: pathlib.Path,
    stage: Stage = lambda name: None,
) -> Artifact:
    """Export a preset to an artifact directory.

    Args:
        preset: a preset's name, directory or hub address (see `resolve.find`), or what it was
            resolved to.
        options: their class chooses the target.
        output: the artifact directory to create, extend or replace.
        stage: called with the name of each stage as it begins.

    Raises:
        BartExportError: if the preset cannot be read or exported, or the artifact cannot be
            written.
        VerificationFailed: if a file does not agree with the Keras model.
    """
    resolved = ResolvedPreset(preset, stage=stage) if isinstance(preset, str) else preset
    checkpoint = resolved.checkpoint
    stage("build the Keras model")
    backbone = BartBackbone.from_checkpoint(checkpoint)
    with drafts.draft(output) as draft:
        tokenizer = export_manifest.write_tokenizer(checkpoint, draft)
        stage("verify the tokenizer")
        tokenization.check_tokenizer(checkpoint, tokenizer, golden.TEXTS)
        generation, length = resolved.defaults.generation, checkpoint.encoder_sequence_length
        info = ModelInfo(checkpoint.config, tokenizer, generation, length)
        model = LoadedModel(info, backbone, checkpoint.directory)
        exported = export_files(model, options, draft, stage)
        stage("ask the Keras model")
        keras = KerasReference(backbone)
        questions = golden.questions(info, exported.settings)
        cases = keras.ask(tokenizer, questions)
        verified = {}
        for file in exported.files:
            stage(f"verify {file.name}")
            verified[file.name] = file.check(keras, cases)
        described = export_manifest.describe(resolved, tokenizer)
        carried, earlier = export_manifest.carry_over(draft, described, exported.entries)
        stage("measure for the report")
        measured = measurements.measure(exported.measurable, info, carried.exports + 1)
        export_manifest.write_golden(draft, cases, verified, carried, earlier)
        completed = export_manifest.complete(draft, carried, exported, verified, measured)
        reported = export_manifest.write_report(draft, completed)
        stage("commit the artifact")
        draft.commit(reported)
    return Artifact.open(output)


def export_files(model: LoadedModel, options: Options, draft: Draft, stage: Stage) -> ExportResult:
    """Write the files of the options' target."""
    if isinstance(options, SavedModelOptions):
        return export_saved_model(model, options, draft, stage)
    if isinstance(options, EdgeTpuOptions):
        return export_edgetpu(model, options, draft, stage)
    return export_tflite(model, options, draft, stage)
