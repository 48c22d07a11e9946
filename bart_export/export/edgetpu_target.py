"""The Edge TPU target: the host file and the segments, compiled if the compiler is installed."""

import dataclasses
import functools
import posixpath
from collections.abc import Sequence

import numpy as np

from bart_export import contract
from bart_export.artifact import manifest
from bart_export.artifact.drafts import Draft
from bart_export.artifact.figures import Answer, EdgeTpuVerification
from bart_export.convert import edgetpu
from bart_export.edgetpu import compiler, parts
from bart_export.edgetpu.compiler import CompilerReport
from bart_export.errors import VerificationFailed
from bart_export.export.options import EdgeTpuOptions
from bart_export.export.target import ExportedFile, ExportResult, LoadedModel, calibration_texts
from bart_export.export.tflite_target import file_entry
from bart_export.progress import Stage
from bart_export.recipes import table
from bart_export.recipes.metrics import AT_MOST, Metric
from bart_export.recipes.table import Recipe
from bart_export.runtime.compiled_model import CompiledModelBackend
from bart_export.runtime.edgetpu import open_edgetpu
from bart_export.runtime.engine import FileEngine
from bart_export.verify.compare import Cases, compare_model
from bart_export.verify.reference import KerasReference
from bart_export.verify.tolerance import Bound, bounds_of, require_bounds
from bart_export.verify.traces import ArrayFigures

# Largest error of the encoder output, relative to its standard deviation.
ENCODER_TOLERANCE = 0.1
ENCODER = Metric("encoder", "the error of the encoder output", AT_MOST)


def export_edgetpu(
    model: LoadedModel, options: EdgeTpuOptions, draft: Draft, stage: Stage
) -> ExportResult:
    """Write the host file and the encoder segments."""
    config, rows = model.info.config, options.source_length
    recipe = table.with_bounds(table.RECIPES[table.DEFAULT], options.tolerance)
    texts, calibration = calibration_texts(options.calibration_data, model.directory)
    sources = list(map(model.info.encode, texts))
    calibration = dataclasses.replace(calibration, samples=sum(map(len, sources)))
    (draft.directory / parts.DIRECTORY).mkdir()
    stage("write the host file")
    edgetpu.write_host(model.parameters, recipe, draft.directory / parts.HOST)
    stage("write and check the segments")
    edgetpu.write_segments(model.parameters, sources, rows, draft.directory)
    segments, sizes = parts.segments(config), contract.sizes(config)
    host = file_entry(draft, parts.HOST, dataclasses.replace(recipe, refusals={}), config)
    signatures = {
        signature.name: manifest.SignatureEntry.of(signature, sizes)
        for signature in parts.host_signatures(config)
    }
    entries: dict[str, manifest.FileEntry] = {
        parts.HOST: manifest.HostEntry(
            **vars(dataclasses.replace(host, target=parts.TARGET)), signatures=signatures
        ),
        parts.CONSTANTS: manifest.FileEntry(*draft.content(parts.CONSTANTS), parts.TARGET),
    }
    for segment in segments:
        report = check_segment(draft, segment)
        entries[segment.file] = manifest.SegmentEntry(
            *draft.content(segment.file),
            parts.TARGET,
            rows=rows,
            calibration=calibration,
            parameter_bytes=report.parameter_bytes,
            streamed_bytes=report.streamed_bytes,
        )
    entries |= compile_segments(draft, segments)
    check = functools.partial(check_edgetpu, model, draft, recipe)
    return ExportResult([ExportedFile(parts.HOST, entries, check)])


def check_segment(draft: Draft, segment: parts.Segment) -> CompilerReport:
    """Return a segment's report; raise VerificationFailed unless the Edge TPU runs all of it."""
    report = compiler.check_file(draft.directory / segment.file)
    if not report.passes:
        faults = [f"{row.operator}: {row.status} ({row.reason})" for row in report.rows if row.rule]
        raise VerificationFailed(
            f"{segment.file} must run entirely on the Edge TPU, but {'; '.join(faults)}."
        )
    return report


def compile_segments(
    draft: Draft, segments: Sequence[parts.Segment]
) -> dict[str, manifest.CompiledEntry]:
    """Compile all segments together, so that they share the Edge TPU's memory.

    Returns the entries of the compiled files by name, or {} if the compiler is not on PATH.
    """
    if compiler.compiler_path() is None:
        return {}
    paths = [draft.directory / segment.file for segment in segments]
    entries = {}
    for compiled in compiler.compile_files(paths, draft.directory / parts.DIRECTORY):
        source, output = map(posixpath.basename, (compiled.file, compiled.output))
        name = f"{parts.DIRECTORY}/{output}"
        log = dataclasses.replace(compiled, file=source, output=output).to_dict()
        entries[name] = manifest.CompiledEntry(*draft.content(name), parts.TARGET, compiler=log)
    return entries


def check_edgetpu(
    model: LoadedModel,
    draft: Draft,
    recipe: Recipe,
    keras: KerasReference,
    cases: Cases,
) -> tuple[EdgeTpuVerification, Sequence[Answer | None]]:
    """Run all parts on the CPU, and compare the encoder and the answers with the Keras model."""
    config, tokenizer = model.info.config, model.info.tokenizer
    engine = open_edgetpu(draft.directory / parts.HOST, config)
    error = encoder_error(engine, keras, cases)
    require_bounds(parts.HOST, [Bound(ENCODER, error, ENCODER_TOLERANCE)])
    compared, answers = compare_model(parts.HOST, engine, tokenizer, cases, exact=recipe.exact)
    require_bounds(parts.HOST, bounds_of(recipe, compared))
    verification = EdgeTpuVerification(
        **vars(compared),
        encoder=error,
        encoder_tolerance=ENCODER_TOLERANCE,
        activation=edgetpu.activation_error(config.activation_function),
    )
    return verification, answers


def encoder_error(engine: FileEngine, keras: KerasReference, cases: Cases) -> float:
    """Return the encoder output's RMS error over all sources, relative to its deviation."""
    assert isinstance(engine.backend, CompiledModelBackend)
    encoder = engine.backend.encoder
    assert encoder is not None
    figures = ArrayFigures()
    for source in dict.fromkeys(question.source_token_ids for question in cases.questions):
        ids = np.array([source], np.int32)
        figures.add(np.asarray(keras.encode(ids), np.float32)[0], encoder(ids))
    return figures.relative
