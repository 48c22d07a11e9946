"""The export for the Edge TPU: what writes its files, checks each and compares them with the model.

A `Model` and the options of a `.tflite` export go in; the host's file, the segments and what the
compiler makes of them, where it is installed, appear in the draft. A segment that breaks a rule of
the compiler ends the export. What the files compute is known to `targets.edgetpu`, what runs them
to `runtime.edgetpu`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bart_export import contract
from bart_export.artifact.artifact import Draft
from bart_export.convert import edgetpu
from bart_export.convert.calibration import Calibration
from bart_export.edgetpu import compiler, parts
from bart_export.edgetpu.check import Report
from bart_export.edgetpu.check import check as check_file
from bart_export.edgetpu.compiler import Compiled
from bart_export.errors import VerificationFailed
from bart_export.export import calibration_texts
from bart_export.export.result import Exported, Model, Written
from bart_export.graph.parameters import InferenceParameters
from bart_export.progress import Stage
from bart_export.recipes import table
from bart_export.recipes.metrics import AT_MOST
from bart_export.recipes.table import Recipe, with_bounds
from bart_export.runtime.edgetpu import EdgeTpuBackend, open_edgetpu
from bart_export.runtime.engine import FileEngine
from bart_export.verify import figures, verify
from bart_export.verify.golden import Answer
from bart_export.verify.reference import KerasReference
from bart_export.verify.tolerance import Bound, hold, judge, uncommitted
from bart_export.verify.verify import Reference

# What the error of the encoder's output may be, in units of its spread.
ENCODER_TOLERANCE = 0.1
TINY = 1e-30  # stands for the spread of an output that is all equal


@dataclasses.dataclass(frozen=True)
class Comparison(figures.Comparison):
    """How far the parts, run together on the CPU, are from the Keras model.

    `encoder` is the root mean square error of the encoder's output over that of the output about
    each position's mean, over all questions' sources; `encoder_tolerance` is what is accepted.
    `activation` is the largest error of the activation function that the segments compute.
    """

    encoder: float = math.nan
    encoder_tolerance: float = ENCODER_TOLERANCE
    activation: float = math.nan


def export_edgetpu(model: Model, options: Any, draft: Draft, stage: Stage) -> Exported:
    """Write the segments of the encoder and the host's file.

    `options` are `EdgeTpuOptions`.

    Raises:
        VerificationFailed: if a segment breaks a rule of the compiler.
        EngineError: if the compiler is installed and fails.
    """
    config = model.backbone.config
    weights = model.backbone.named_weights()
    parameters = InferenceParameters(config, lambda name: np.asarray(weights[name]))
    recipe = with_bounds(table.named(table.DEFAULT), options.tolerance)
    rows = options.source_length
    texts = calibration_texts.texts(options.calibration_data, model.directory)
    sources = [
        model.tokenizer.encode(text, model.encoder_sequence_length, truncate=True)
        for text in texts.texts
    ]
    (draft.directory / parts.DIRECTORY).mkdir()
    stage("write what stays on the CPU")
    edgetpu.write_host(parameters, recipe, draft.directory / parts.HOST)
    stage("write and check the segments")
    samples = edgetpu.write_segments(parameters, sources, rows, draft.directory)
    calibrated = {
        "rows": rows,
        "calibration": texts.to_dict(Calibration({}, len(sources), samples)),
    }
    segments = parts.segments(config)
    own = {"target": parts.TARGET}
    host = {
        "recipe": recipe.name,
        "mode": recipe.mode,
        "layers": [list(pair) for pair in recipe.layers],
        "tolerance": dict(recipe.tolerance),
        "runtimes": dict(table.LITERT_ONLY),
        "refusals": {},
        "signatures": {
            one.name: one.to_dict(contract.sizes(config)) for one in parts.host_signatures(config)
        },
    }
    files: dict[str, dict[str, Any]] = {parts.HOST: own | host, parts.CONSTANTS: own}
    for segment in segments:
        report = check_segment(draft, segment)
        files[segment.file] = {
            **own,
            **calibrated,
            "parameter_bytes": report.parameter_bytes,
            "streamed_bytes": report.streamed_bytes,
        }
    for name, compiled in compile_segments(draft, segments).items():
        files[name] = {**own, "compiler": compiled.to_dict()}
    check = functools.partial(check_edgetpu, model, draft, recipe)
    return Exported([Written(parts.HOST, files, check)])


def check_segment(draft: Draft, segment: parts.Segment) -> Report:
    """Hold a segment to the compiler's rules.

    Raises:
        VerificationFailed: for one that the Edge TPU would not run whole.
    """
    report = check_file(draft.directory / segment.file)
    if not report.passes:
        faults = [f"{row.operator}: {row.status} ({row.reason})" for row in report.rows if row.rule]
        raise VerificationFailed(
            f"{segment.file} must run on the Edge TPU whole, but {'; '.join(faults)}. "
            "Nothing was committed."
        )
    return report


def compile_segments(draft: Draft, segments: Sequence[parts.Segment]) -> dict[str, Compiled]:
    """Compile all segments together, so that they share the Edge TPU's memory, where that can be.

    Returns what the compiler says of each, by the name of the file that it made; nothing where it
    is not on PATH.

    Raises:
        EngineError: if it fails.
    """
    if compiler.program() is None:
        return {}
    paths = [draft.directory / segment.file for segment in segments]
    log = compiler.compile_files(paths, draft.directory / parts.DIRECTORY)
    made = {segment.compiled_file.rpartition("/")[2]: segment for segment in segments}
    return {
        made[one.output.rpartition("/")[2]].compiled_file: dataclasses.replace(
            one, file=one.file.rpartition("/")[2], output=one.output.rpartition("/")[2]
        )
        for one in log.files
    }


def check_edgetpu(
    model: Model,
    draft: Draft,
    recipe: Recipe,
    keras: KerasReference,
    reference: Reference,
) -> tuple[Comparison, Sequence[Answer | None]]:
    """Run the parts together, on the CPU, and compare encoder and answers with the reference.

    Raises:
        VerificationFailed: for an encoder or logits outside their tolerance.
    """
    config = model.backbone.config
    engine = open_edgetpu(draft.directory, config)
    error = encoder_error(engine, keras, reference)
    with uncommitted():
        hold(
            parts.HOST,
            [Bound("the error of the encoder's output", error, ENCODER_TOLERANCE, AT_MOST)],
        )
        compared, answers = verify.compare(parts.HOST, recipe, engine, model.tokenizer, reference)
        judge(parts.HOST, recipe, compared)
    values = {one.name: getattr(compared, one.name) for one in dataclasses.fields(compared)}
    activation = edgetpu.activation_error(config.activation_function)
    return Comparison(**values, encoder=error, activation=activation), answers


def encoder_error(engine: FileEngine, keras: KerasReference, reference: Reference) -> float:
    """Return the error of the encoder's output, over all sources, in units of its spread."""
    assert isinstance(engine.backend, EdgeTpuBackend)
    encoder = engine.backend.encoder
    errors, spreads = [], []
    for source in dict.fromkeys(question.source_token_ids for question in reference.questions):
        ids = np.array([source], np.int32)
        expected = np.asarray(keras.encode(ids), np.float32)[0]
        errors.append(encoder.run(ids) - expected)
        spreads.append(expected - expected.mean(axis=-1, keepdims=True))
    return root_mean_square(errors) / max(root_mean_square(spreads), TINY)


def root_mean_square(arrays: Sequence[Any]) -> float:
    """Return the root mean square of all numbers of some arrays."""
    return float(np.sqrt(np.mean(np.square(np.concatenate(arrays)))))
