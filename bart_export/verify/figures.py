"""What is measured of a `.tflite` file: one value that the manifest, the report and bounds go by.

No figure is computed here, and none is judged.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bart_export.verify.rouge import Loss


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far a file is from the float model.

    `signatures` has, for each of the file's, the figures of `StepFigures`, or, for one that
    encodes, `error`, `spread` and `relative` of cross keys and values. `logits`, `spread`,
    `relative`, `kl` and `top1` are the worst of those, over `steps`, as are `rounding` and
    `float32`, None where the model was not computed in float64. `tokens` is the share of
    `questions` answered token for token, None where none was asked; of a file that is to be exact
    an answer counts that only float32's rounding sets apart. `weights` is the largest error
    of `quality.weights`, that of `worst_row`, None where it was not measured. `rouge_1`, `rouge_2`
    and `rouge_l` are what the file loses, `rouge` has the scores; None without references. `data`
    is the file that the texts are of and how many it has, None for the golden ones.
    """

    logits: float
    spread: float
    relative: float
    kl: float
    top1: float
    tokens: float | None
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
    rouge: Mapping[str, Loss] | None = None
    data: Mapping[str, Any] | None = None
