"""Teacher forcing: models get the same source and decoder tokens, and their outputs are compared.

Figures are kept as sums, so that memory does not grow with the number of texts.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from bart_export import contract
from bart_export.runtime.batch import Slot
from bart_export.runtime.engine import Decoding, FileEngine
from bart_export.runtime.search import Decode
from bart_export.runtime.sizing import Buckets, IntArray
from bart_export.verify.data import Floats

ROWS = 2  # beams; a single beam has its own signature
DRAFT = 3  # tokens
SOURCES = 3  # decoded together
ULP = 2.0**-23  # float32's relative precision; a smaller error is due to chance
TINY = 1e-30  # avoids division by zero


@dataclasses.dataclass(frozen=True)
class Trace:
    """The token ids that are fed to the encoder and the decoder."""

    source_token_ids: tuple[int, ...]
    fed_token_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TraceOutput:
    """A model's output for a trace.

    `cross` has the tensors of `contract.cross_tensors` by name, (1, heads, source, head_size), if
    the model exposes them; `logits` is (steps, vocabulary).
    """

    cross: Mapping[str, Floats]
    logits: Floats


Teacher = Callable[[Trace], TraceOutput]


@dataclasses.dataclass(frozen=True)
class SignaturePair:
    """The names of an encoder and a decoder signature that together run a trace.

    `rows` is the number of beams, `draft` the number of tokens that are decoded together with the
    one before them, and `sources` the number of traces that are decoded together. The lengths are
    a static build's sizes, or None if dynamic.
    """

    encode: str
    decode: str
    model: FileEngine
    rows: int
    draft: int = 0
    source_length: int | None = None
    target_length: int | None = None
    sources: int = 1

    @property
    def name(self) -> str:
        """The decoder's name in figures."""
        return self.decode if self.sources == 1 else f"{self.decode} of {self.sources} sources"

    def fits(self, trace: Trace) -> bool:
        """Return whether a trace's source fits the encoder."""
        return self.source_length is None or len(trace.source_token_ids) <= self.source_length

    def cut(self, trace: Trace) -> Trace:
        """Return a trace truncated to fit the signatures; a source keeps its end token."""
        source, fed = trace.source_token_ids, trace.fed_token_ids
        if self.source_length is not None and not self.fits(trace):
            source = (*source[: self.source_length - 1], source[-1])
        # The last token needs a position, but is not fed.
        steps = None if self.target_length is None else max(1, self.target_length - 1)
        return Trace(source, fed[:steps])

    def force(self, traces: Sequence[Trace]) -> list[TraceOutput]:
        """Return the outputs for cut traces, in order."""
        if self.sources > 1:
            return teacher_force_together(self.model, traces, self.rows, self.sources)
        return [teacher_force(self.model, trace, self.rows, self.draft) for trace in traces]


def signature_pairs(model: FileEngine) -> list[SignaturePair]:
    """Return pairs that cover all signatures of a file, with one source and with several."""
    if isinstance(model.sizing, Buckets):
        pairs = bucket_pairs(model, model.sizing.buckets)
    else:
        pairs = [
            SignaturePair("encode", "decode_single", model, 1),
            SignaturePair("encode", "decode", model, ROWS),
        ]
        if model.sizing.max_draft:
            pairs.append(SignaturePair("encode", "decode_draft", model, 1, DRAFT))
    return pairs + [
        dataclasses.replace(pair, sources=min(SOURCES, pair.model.sizing.max_sources))
        for pair in pairs
        if pair.model.sizing.max_sources > 1 and not pair.draft
    ]


def bucket_pairs(model: FileEngine, buckets: Sequence[contract.Bucket]) -> list[SignaturePair]:
    """Return a pair for every decoder of a static build."""
    sources = [(bucket.sizes[contract.SOURCE], bucket) for bucket in buckets]
    encoders = {source: each.name for source, each in sources if each.signature.name == "encode"}
    pairs = []
    for source, bucket in sources:
        if bucket.signature.name != "encode":
            rows, longest = bucket.sizes.get(contract.BEAMS, 1), bucket.sizes[contract.CAPACITY]
            draft = bucket.sizes.get(contract.DRAFT, 1) - 1
            only = model.only(source, rows, bucket.sizes.get(contract.SOURCES, 1))
            pair = SignaturePair(encoders[source], bucket.name, only, rows, draft, source, longest)
            pairs.append(pair)
    return pairs


def fitting_pairs(pairs: Sequence[SignaturePair], trace: Trace) -> list[SignaturePair]:
    """Return the pairs with the shortest encoder that fits a source, as a runtime would choose."""
    fitting = [pair for pair in pairs if pair.fits(trace)]
    shortest = min((pair.source_length or 0 for pair in fitting), default=0)
    return [pair for pair in fitting if (pair.source_length or 0) == shortest]


def teacher_force(model: FileEngine, trace: Trace, rows: int = 1, draft: int = 0) -> TraceOutput:
    """Feed the tokens of a trace to a model one by one, or each with the next `draft` tokens.

    With several rows, one gets the tokens and the others repeat the first token. At the next step
    another row gets them, and all rows continue the previous one, to test that caches are copied.
    """
    fed = trace.fed_token_ids
    state = model.start(trace.source_token_ids, rows, len(fed) + 1)
    cross = model.cross(state)
    steps: list[Floats] = []
    while (position := len(steps)) < len(fed):
        row, token_ids, beam_index = rows_of_step(trace, position, rows)
        guess = fed[position + 1 : position + 1 + draft]
        logits, state = model.step(state, token_ids, beam_index, guess)
        steps.extend((logits if draft else logits[row : row + 1]).copy())
    return TraceOutput(cross, np.stack(steps))


def teacher_force_together(
    model: FileEngine, traces: Sequence[Trace], rows: int, sources: int
) -> list[TraceOutput]:
    """Feed the tokens of traces to a model like `teacher_force`, of `sources` traces in each step.

    At most one trace begins with a step, so that all are at different positions.
    """
    batch = model.batch(rows)
    waiting = collections.deque(range(len(traces)))
    running: dict[int, Slot] = {}
    cross: list[Mapping[str, Floats]] = [{} for _ in traces]
    steps: list[list[Floats]] = [[] for _ in traces]
    while waiting or running:
        if waiting and len(running) < sources:
            number = waiting.popleft()
            trace = traces[number]
            running[number] = batch.admit(trace.source_token_ids, len(trace.fed_token_ids) + 1)
        fed = {each: rows_of_step(traces[each], len(steps[each]), rows) for each in running}
        logits = batch.step(
            {slot: Decode(*fed[number][1:], len(steps[number])) for number, slot in running.items()}
        )
        for number, slot in list(running.items()):
            steps[number].append(logits[slot][fed[number][0]].copy())
            if len(steps[number]) == len(traces[number].fed_token_ids):
                cross[number] = model.cross(Decoding(slot, 0))
                batch.release(running.pop(number))
    return [TraceOutput(*each) for each in zip(cross, map(np.stack, steps), strict=True)]


def rows_of_step(trace: Trace, position: int, rows: int) -> tuple[int, IntArray, IntArray]:
    """Return the row with a trace's token, and `token_ids` and `beam_index`, both (rows,)."""
    row, fed = position % rows, trace.fed_token_ids
    token_ids = np.full(rows, fed[0], np.int32)
    token_ids[row] = fed[position]
    return row, token_ids, np.full(rows, (position - 1) % rows, np.int32)


@dataclasses.dataclass
class ArrayFigures:
    """Error statistics of arrays; `largest` is the largest absolute error."""

    largest: float = 0.0
    squared_errors: float = 0.0
    squared_spreads: float = 0.0
    values: int = 0

    def add(self, expected: Floats, received: Floats) -> None:
        """Add an array of any shape."""
        error = received.astype(np.float64) - expected
        about_mean = expected - expected.mean(axis=-1, keepdims=True, dtype=np.float64)
        self.largest = worst([self.largest, float(np.abs(error).max(initial=0.0))])
        self.squared_errors += float(np.square(error).sum())
        self.squared_spreads += float(np.square(about_mean).sum())
        self.values += error.size

    @property
    def spread(self) -> float:
        """Root mean square of the expected values about their mean along the last axis."""
        return float(np.sqrt(self.squared_spreads / max(self.values, 1)))

    @property
    def relative(self) -> float:
        """Root mean square error over the spread."""
        error = float(np.sqrt(self.squared_errors / max(self.values, 1)))
        return error / max(self.spread, TINY)


@dataclasses.dataclass
class StepFigures:
    """Error statistics of a file's decoder steps along the float model's traces.

    `errors` are those of the file's logits; `rounded` are those of the float32 model's logits, if
    the expected logits are float64.
    """

    errors: ArrayFigures = dataclasses.field(default_factory=ArrayFigures)
    rounded: ArrayFigures = dataclasses.field(default_factory=ArrayFigures)
    divergence: float = 0.0
    agreeing: int = 0
    steps: int = 0

    def add(self, expected: Floats, received: Floats, rounded: Floats | None = None) -> None:
        """Add the logits (steps, vocabulary) of a trace.

        `rounded` are the model's float32 logits if the expected ones are float64.
        """
        self.errors.add(expected, received)
        if rounded is not None:
            self.rounded.add(expected, rounded)
        with np.errstate(invalid="ignore"):  # NaN logits
            log_p, log_q = log_softmax(expected), log_softmax(received)
        self.divergence += float((np.exp(log_p) * (log_p - log_q)).sum())
        self.agreeing += int((expected.argmax(-1) == received.argmax(-1)).sum())
        self.steps += len(expected)

    def figures(self) -> dict[str, float]:
        """Return the figures by name.

        `logits` is the largest absolute error of a logit; `spread` and `relative` are as in
        `ArrayFigures`; `kl` is the mean Kullback-Leibler divergence, sum p log(p / q), in nats per
        step, where p is the model's next-token distribution and q the file's; `top1` is the share
        of `steps` with the same most likely token. If the expected logits are float64, `rounding`
        is `relative` divided by that of the float32 model, whose largest error is `float32`. NaN
        propagates to every error.
        """
        figures = {
            "logits": self.errors.largest,
            "spread": self.errors.spread,
            "relative": self.errors.relative,
            "kl": self.divergence / max(self.steps, 1),
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
    """Return the largest error, or NaN if any is NaN."""
    return float(np.max(list(errors)))
