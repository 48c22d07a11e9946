"""Teacher forcing: models are fed the same source and decoder tokens, and their outputs compared.

The Keras model computes a trace in one call, a file step by step through each pair of its
signatures. Figures are kept as sums, so that any number of texts over any vocabulary fits in
memory.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from bart_export import contract
from bart_export.runtime.engine import Buckets, Engine, FileEngine
from bart_export.verify.data import Floats

ROWS = 2  # one beam and several are decoded by different signatures
# No float32 computation is surely nearer, in units of the spread, than neighbouring numbers are.
ULP = 2.0**-23
TINY = 1e-30  # stands for the spread of values that are all equal


@dataclasses.dataclass(frozen=True)
class Trace:
    """A source, and the tokens that a decoder is fed."""

    source_token_ids: tuple[int, ...]
    fed_token_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TraceOutput:
    """What a model computes along a trace.

    `cross` are the tensors of `contract.cross_tensors` by name, (1, heads, source, head_size), none
    where the model does not show them; `logits` are (steps, vocabulary). Both are float32, of a
    model in float64 float64.
    """

    cross: Mapping[str, Floats]
    logits: Floats


Teacher = Callable[[Trace], TraceOutput]


@dataclasses.dataclass(frozen=True)
class SignaturePair:
    """A pair of signatures of a file, by their names, which together run a trace.

    `rows` is the number of beams; `source_length` and `target_length` are the sizes of a static
    build, None for any.
    """

    encode: str
    decode: str
    model: Engine
    rows: int
    source_length: int | None = None
    target_length: int | None = None

    def fits(self, trace: Trace) -> bool:
        """Return whether a trace's source need not be cut."""
        return self.source_length is None or len(trace.source_token_ids) <= self.source_length

    def cut(self, trace: Trace) -> Trace:
        """Return a trace cut to the sizes of the signatures; a source keeps its end token."""
        source, fed = trace.source_token_ids, trace.fed_token_ids
        if self.source_length is not None and not self.fits(trace):
            source = (*source[: self.source_length - 1], source[-1])
        # One position is for the last token, which is not fed.
        steps = None if self.target_length is None else max(1, self.target_length - 1)
        return Trace(source, fed[:steps])


def signature_pairs(model: Engine) -> list[SignaturePair]:
    """Return pairs that together have all signatures of a file."""
    if not (isinstance(model, FileEngine) and isinstance(model.sizing, Buckets)):
        return [
            SignaturePair("encode", "decode_single", model, 1),
            SignaturePair("encode", "decode", model, ROWS),
        ]
    encoders, decoders = {}, []
    for bucket in model.sizing.buckets:
        if bucket.signature.name == "encode":
            encoders[bucket.sizes[contract.SOURCE]] = bucket.name
        else:
            decoders.append((bucket.name, bucket.sizes))
    return [
        SignaturePair(
            encoders[sizes[contract.SOURCE]],
            name,
            model.only(sizes[contract.SOURCE], sizes[contract.BEAMS]),
            sizes[contract.BEAMS],
            sizes[contract.SOURCE],
            sizes[contract.CAPACITY],
        )
        for name, sizes in decoders
    ]


def fitting_pairs(pairs: Sequence[SignaturePair], trace: Trace) -> list[SignaturePair]:
    """Return the pairs that a runtime would choose from: the shortest that a source fits."""
    fitting = [pair for pair in pairs if pair.fits(trace)]
    shortest = min((pair.source_length or 0 for pair in fitting), default=0)
    return [pair for pair in fitting if (pair.source_length or 0) == shortest]


def teacher_force(model: Engine, trace: Trace, rows: int = 1) -> TraceOutput:
    """Feed the tokens of a trace to a model one by one.

    Of several rows one is fed the tokens and the others the first of them over and over; every
    step moves the row to the place of another, so that caches must follow.
    """
    fed = trace.fed_token_ids
    state = model.start(trace.source_token_ids, rows, len(fed) + 1)
    cross = model.cross(state) if isinstance(model, FileEngine) else {}
    beam_index = np.arange(-1, rows - 1, dtype=np.int32) % rows
    steps = []
    for position, token_id in enumerate(fed):
        row = position % rows
        token_ids = np.full(rows, fed[0], np.int32)
        token_ids[row] = token_id
        logits, state = model.step(state, token_ids, beam_index)
        steps.append(logits[row].copy())
    return TraceOutput(cross, np.stack(steps))


@dataclasses.dataclass
class ArrayFigures:
    """How far arrays are from what they should be.

    `largest` is the largest absolute error, NaN if one is.
    """

    largest: float = 0.0
    squared_errors: float = 0.0
    squared_spreads: float = 0.0
    values: int = 0

    def add(self, expected: Floats, received: Floats) -> None:
        """Count the values of an array, of any shape, with those that they should be."""
        error = received.astype(np.float64) - expected
        about_mean = expected - expected.mean(axis=-1, keepdims=True, dtype=np.float64)
        self.largest = worst([self.largest, float(np.abs(error).max(initial=0.0))])
        self.squared_errors += float(np.square(error).sum())
        self.squared_spreads += float(np.square(about_mean).sum())
        self.values += error.size

    @property
    def spread(self) -> float:
        """Root mean square of the expected values about the mean of their row, the last axis."""
        return float(np.sqrt(self.squared_spreads / max(self.values, 1)))

    @property
    def relative(self) -> float:
        """Root mean square of the errors over the spread, 0 for nothing."""
        error = float(np.sqrt(self.squared_errors / max(self.values, 1)))
        return error / max(self.spread, TINY)


@dataclasses.dataclass
class StepFigures:
    """How far a file's decode steps are from the float model's along the latter's traces.

    `errors` are those of the logits, `rounded` those of the float model in float32 where it is
    known in float64.
    """

    errors: ArrayFigures = dataclasses.field(default_factory=ArrayFigures)
    rounded: ArrayFigures = dataclasses.field(default_factory=ArrayFigures)
    divergence: float = 0.0
    agreeing: int = 0
    steps: int = 0

    def add(self, expected: Floats, received: Floats, rounded: Floats | None = None) -> None:
        """Count the steps of a trace: logits (steps, vocabulary) of the model and of the file.

        `rounded` are the model's in float32 where those that are expected are in float64.
        """
        self.errors.add(expected, received)
        if rounded is not None:
            self.rounded.add(expected, rounded)
        with np.errstate(invalid="ignore"):  # a file that gives no numbers
            log_p, log_q = log_softmax(expected), log_softmax(received)
        self.divergence += float((np.exp(log_p) * (log_p - log_q)).sum())
        same = expected.argmax(-1) == received.argmax(-1)
        self.agreeing += int(same.sum())
        self.steps += len(same)

    @property
    def kl(self) -> float:
        """Mean Kullback-Leibler divergence of a step, sum p log(p / q), in nats; NaN for a NaN.

        p is the model's distribution of the next token, q the file's.
        """
        return self.divergence / max(self.steps, 1)

    def figures(self) -> dict[str, float]:
        """Return the figures by name.

        `logits` is the largest absolute error of a logit; `spread` and `relative` are those of
        `ArrayFigures`; `top1` is the share of `steps` with the same likeliest token. Where the
        model is known in float64, `rounding` is `relative` over that of the model in float32, whose
        largest error is `float32`.
        """
        figures = {
            "logits": self.errors.largest,
            "spread": self.errors.spread,
            "relative": self.errors.relative,
            "kl": self.kl,
            "top1": self.agreeing / max(self.steps, 1),
            "steps": self.steps,
        }
        if self.rounded.values:
            figures["rounding"] = self.errors.relative / max(self.rounded.relative, ULP)
            figures["float32"] = self.rounded.largest
        return figures


def log_softmax(logits: Floats) -> Floats:
    """Return log-probabilities (steps, vocabulary), float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_probabilities: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_probabilities


def worst(errors: Iterable[float]) -> float:
    """Return the largest of some errors, NaN if one of them is."""
    return float(np.max(list(errors)))
