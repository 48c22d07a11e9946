"""Figures: what an export finds out about its files, as the manifest and `golden.json` have it.

Quality (`Verification`), times (`Measurement`), what each layer loses by narrow storage, and the
answers to golden questions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from bart_export.config import GenerationConfig
from bart_export.documents import POSITIVE, Json, Kind, Record, absent, is_number

Positive = Annotated[int, POSITIVE]
Share = Annotated[
    float,
    Kind("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1),
]
Seconds = Annotated[float, Kind("a number above 0", lambda value: is_number(value) and value > 0)]


@dataclasses.dataclass(frozen=True)
class RougeLoss(Record):
    """One kind of ROUGE over some texts, in points of 100.

    `model` and `file` are the mean scores; `loss` is the first less the second, and `low` and
    `high` are the ends of the interval that holds it with 95 % confidence.
    """

    model: float
    file: float
    loss: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class TextFile(Record):
    """A file of texts: its hash, and how many texts were taken of it."""

    sha256: str
    texts: int


@dataclasses.dataclass(frozen=True)
class FileVerification(Record):
    """How far a `.tflite` file is from the float model.

    `signatures` has, for each of the file's, the figures of `traces.StepFigures`, or, for one
    that encodes, `error`, `spread` and `relative` of cross keys and values. `logits`, `spread`,
    `relative`, `kl` and `top1` are the worst of those, over `steps`, as are `rounding` and
    `float32`, None where the model was not computed in float64. `tokens` is the share of
    `questions` answered token for token, None where none was asked; of a file that is to be exact
    an answer counts that only float32's rounding sets apart. `weights` is the largest error
    of `verify.weights`, that of `worst_row`, None where it was not measured. `rouge_1`, `rouge_2`
    and `rouge_l` are what the file loses, `rouge` has the scores; None without references. `data`
    is the file that the texts are of, None for the golden ones.
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


@dataclasses.dataclass(frozen=True)
class EdgeTpuVerification(FileVerification):
    """How far the parts for the Edge TPU, run together on the CPU, are from the float model.

    `encoder` is the root mean square error of the encoder's output over that of the output about
    each position's mean, over all questions' sources; `encoder_tolerance` is what is accepted.
    `activation` is the largest error of the activation function that the segments compute.
    """

    _: dataclasses.KW_ONLY
    encoder: float
    encoder_tolerance: float
    activation: float


@dataclasses.dataclass(frozen=True)
class SavedModelVerification(Record):
    """How far a SavedModel is from the float model; `file` is its version's directory.

    `log_probabilities` is the largest error of the log-probability of a token of the reference's
    greedy traces, `hidden` that of a value of the backbone's two outputs. `tokens` is the share of
    questions that `generate` answered token for token, `texts` the share that `generate_text`
    answered letter for letter, tokenization included. `steps` and `questions` say over how many.
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
    """Return the class of what was verified."""
    if "encoder" in row:
        return EdgeTpuVerification
    return FileVerification if "top1" in row else SavedModelVerification


@dataclasses.dataclass(frozen=True)
class Machine(Record):
    """What a file's times were measured on."""

    processor: str
    architecture: str
    cores: int | None = absent()
    versions: Mapping[str, object] | None = absent()


@dataclasses.dataclass(frozen=True)
class MeasuredLength(Record):
    """The seconds of a generation: medians over the rounds, and the extremes of `seconds`.

    `encode_seconds` is the encoder's part, `seconds` from the source ids to the last token.
    """

    source: Positive
    num_beams: Positive
    new_tokens: Positive
    encode_seconds: Seconds | None = absent()
    seconds: Seconds = dataclasses.field(kw_only=True)
    fastest: Seconds | None = absent()
    slowest: Seconds | None = absent()


@dataclasses.dataclass(frozen=True)
class Measurement(Record):
    """How long a file took while it was exported.

    `export` is the number of the export at its place: what was measured in one run can be compared.
    """

    file: str
    export: int
    machine: Machine
    num_threads: Positive
    rounds: int
    lengths: tuple[MeasuredLength, ...]


@dataclasses.dataclass(frozen=True)
class LayerSensitivity(Record):
    """What a model loses by one layer: its matrix has `parameters` weights, stored as `storage`.

    `kl` is the mean Kullback-Leibler divergence of a step in nats, `relative` the root mean square
    error of the logits over their spread, as in `traces.StepFigures`.
    """

    layer: str
    parameters: int
    storage: str
    kl: float
    relative: float


@dataclasses.dataclass(frozen=True)
class Answer(Record):
    """The best sequence that a model or file gave: its ids, text and score."""

    token_ids: tuple[int, ...]
    text: str
    score: float


@dataclasses.dataclass(frozen=True)
class GoldenCase(Record):
    """A question, and what the float model and each file, by name, answered to it."""

    text: str
    source_token_ids: tuple[int, ...]
    setting: str
    generation: GenerationConfig
    reference: Answer
    files: Mapping[str, Answer]


@dataclasses.dataclass(frozen=True)
class Golden(Record):
    """The content of `golden.json`."""

    cases: tuple[GoldenCase, ...]
