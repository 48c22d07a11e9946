"""Figures about exported files in the manifest and `golden.json`.

Quality (`Verification`), times (`Measurement`), the sensitivity of layers to quantization, and
golden answers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from bart_export.config import GenerationConfig
from bart_export.documents import POSITIVE, Json, Kind, Record, absent, dataclass

Positive = Annotated[int, POSITIVE]
Share = Annotated[float, Kind("a number from 0 to 1", lambda value: 0 <= value <= 1)]
Seconds = Annotated[float, Kind("a number above 0", lambda value: value > 0)]


@dataclass(frozen=True)
class RougeLoss(Record):
    """One kind of ROUGE, from 0 to 100.

    `model` and `file` are mean scores; `loss` is `model - file`, with the 95 % confidence interval
    from `low` to `high`.
    """

    model: float
    file: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class TextFile(Record):
    """A file of texts: its hash, and how many texts were taken from it."""

    sha256: str
    texts: int


@dataclass(frozen=True)
class FileVerification(Record):
    """The difference between a `.tflite` file and the float model.

    Attributes:
        logits, spread, relative, kl, top1: the worst of `signatures`; see `traces.StepFigures`.
        tokens: the share of `questions` with identical answers, or None without questions. For a
            file that must be exact, differences due to float32 rounding count as identical.
        steps: the number of decoder steps compared.
        signatures: figures by signature: those of `traces.StepFigures`, or for an encoder the
            `error`, `spread` and `relative` error of the cross keys and values. "decode of 3
            sources" has those of `decode` with three sources at a time.
        rounding, float32: as in `traces.StepFigures`, or None without a float64 model.
        weights: the largest error that `verify.weights` found, that of `worst_row`; None if not
            measured.
        rouge_1, rouge_2, rouge_l: the file's losses, with scores in `rouge`; None without
            references.
        data: the file with the texts, or None for the golden texts.
    """

    file: str
    logits: float
    spread: float
    relative: float
    kl: float
    top1: Share
    tokens: Share | None
    steps: int
    questions: int
    signatures: Mapping[str, Mapping[str, float]]
    rounding: float | None = None
    float32: float | None = None
    weights: float | None = None
    worst_row: str | None = None
    rouge_1: float | None = None
    rouge_2: float | None = None
    rouge_l: float | None = None
    rouge: Mapping[str, RougeLoss] | None = None
    data: TextFile | None = None


@dataclass(frozen=True)
class EdgeTpuVerification(FileVerification):
    """The difference between the parts for the Edge TPU, run on the CPU, and the float model.

    `encoder` is the root mean square error of the encoder's output, relative to the output's
    standard deviation within positions, over all sources; at most `encoder_tolerance` is accepted.
    `activation` is the largest error of the segments' activation function.
    """

    _: dataclasses.KW_ONLY
    encoder: float
    encoder_tolerance: float
    activation: float


@dataclass(frozen=True)
class SavedModelVerification(Record):
    """The difference between a SavedModel and the float model.

    Attributes:
        file: the version's directory.
        log_probabilities: the largest error of a token's log-probability in the float model's
            greedy traces, over `steps`.
        hidden: the largest error in the backbone's two outputs.
        tokens: the share of `questions` with identical tokens from `generate`.
        texts: the share of `questions` with identical text from `generate_text`.
    """

    file: str
    log_probabilities: float
    hidden: float
    tokens: Share
    texts: Share
    steps: int
    questions: int


Verification = FileVerification | SavedModelVerification


def verification_type(row: Mapping[str, Json]) -> type[Record]:
    """Return the class of a row."""
    if "encoder" in row:
        return EdgeTpuVerification
    return FileVerification if "top1" in row else SavedModelVerification


@dataclass(frozen=True)
class Machine(Record):
    """The machine on which times were measured."""

    processor: str
    architecture: str
    cores: int | None = absent()
    versions: Mapping[str, object] | None = absent()


@dataclass(frozen=True)
class MeasuredLength(Record):
    """The median time of one generation, and its extremes.

    `seconds` runs from the source ids to the last token; `encode_seconds` is the encoder's part.
    """

    source: Positive
    num_beams: Positive
    new_tokens: Positive
    encode_seconds: Seconds | None = absent()
    seconds: Seconds = dataclasses.field(kw_only=True)
    fastest: Seconds | None = absent()
    slowest: Seconds | None = absent()


@dataclass(frozen=True)
class Measurement(Record):
    """A file's times, measured when it was exported.

    `export` is the artifact's export count; measurements with the same count are comparable.
    """

    file: str
    export: int
    machine: Machine
    num_threads: Positive
    rounds: int
    lengths: tuple[MeasuredLength, ...]


@dataclass(frozen=True)
class LayerSensitivity(Record):
    """The error from storing one layer, of `parameters` weights, as `storage`.

    `kl` is the mean Kullback-Leibler divergence per step in nats; `relative` is the root mean
    square error of the logits relative to their spread, as in `traces.StepFigures`.
    """

    layer: str
    parameters: int
    storage: str
    kl: float
    relative: float


@dataclass(frozen=True)
class Answer(Record):
    """The best sequence of a model or file."""

    token_ids: tuple[int, ...]
    text: str
    score: float


@dataclass(frozen=True)
class GoldenCase(Record):
    """A question, with the answers of the float model (`reference`) and of each file."""

    text: str
    source_token_ids: tuple[int, ...]
    setting: str
    generation: GenerationConfig
    reference: Answer
    files: Mapping[str, Answer]


@dataclass(frozen=True)
class Golden(Record):
    """The content of `golden.json`."""

    cases: tuple[GoldenCase, ...]
