"""Greedy search, multinomial sampling and beam search, as Hugging Face's `generate()` has them.

A search is an iterator of events. It asks for logits with `Decode`, says with `Settled` which
tokens are certain, and ends with `Finished`. It calls no model and holds no caches, so that one
loop can run one search (`drive`, `run`) or many side by side. The semantics are those of
transformers 4.57.
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError
from bart_export.runtime.logits import (
    FloatArray,
    IntArray,
    Totals,
    forced_token,
    greedy_choice,
    largest,
    log_normalizers,
    processors,
    sampled_choice,
)

State = TypeVar("State")

# (state, token ids (beams,), beam_index (beams,)) -> (logits (beams, vocabulary), new state).
# beam_index[k] is the beam whose caches beam k continues, applied before the step. The state (a
# decoder's caches) is a value: what one step returns goes into the next.
Step = Callable[[State, IntArray, IntArray], tuple[FloatArray, State]]


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A finished sequence: its tokens, from the start token to the end token if that was reached,
    and its score.

    Beam search scores `sum_logprobs / generated_length ** length_penalty`, Hugging Face's
    `sequences_scores`. Greedy search and sampling score the sum of the log-probabilities that the
    model, before any processor or filter, gave to the tokens. Forced tokens count 0.
    """

    token_ids: tuple[int, ...]
    score: float


@dataclasses.dataclass
class Decode:
    """A request for the logits that follow one more token of every beam.

    Beam k continues beam `beam_index[k]` of the request before, and then has `token_ids[k]`, both
    int32 (beams,). Who runs the search sets `logits`, float32 (beams, vocabulary), before the next
    event; the search changes them in place.
    """

    token_ids: IntArray
    beam_index: IntArray
    logits: FloatArray = dataclasses.field(init=False)


@dataclasses.dataclass(frozen=True)
class Settled:
    """The tokens that are now certain to follow in the best sequence, whatever later steps say."""

    token_ids: list[int]


@dataclasses.dataclass(frozen=True)
class Finished:
    """The hypotheses, best first."""

    hypotheses: list[Hypothesis]


Search = Iterator[Decode | Settled | Finished]


def search(generation: GenerationConfig) -> Search:
    """Search for the best sequences.

    There is a `Settled` after every step: in greedy search and for a single sample with the token
    that was chosen; in beam search often with none and then several; among several samples with
    everything at the end. Put together, they are `token_ids[1:]` of the first hypothesis. The last
    event is `Finished` with `num_return_sequences` hypotheses; fewer only where the settings leave
    fewer sequences.

    Every `Decode` has `num_beams` rows, when sampling `num_return_sequences` rows that are
    independent samples. There are no more than needed.

    Raises:
        EngineError: for logits that are NaN or infinite.
        ConfigurationError: when the settings forbid every token.
    """
    return beam_search(generation) if generation.num_beams > 1 else token_search(generation)


def drive(search: Search, step: Step[State], state: State) -> Iterator[Settled | Finished]:
    """Run a search with a step function from its first state; yield the events that are news."""
    for event in search:
        if isinstance(event, Decode):
            event.logits, state = step(state, event.token_ids, event.beam_index)
        else:
            yield event


def run(search: Search, step: Step[State], state: State) -> list[Hypothesis]:
    """Run a search to its end and return the hypotheses; see `drive`."""
    hypotheses: list[Hypothesis] = []
    for event in drive(search, step, state):
        if isinstance(event, Finished):
            hypotheses = event.hypotheses
    return hypotheses


def token_search(generation: GenerationConfig) -> Search:
    """Choose one token a step for each of some independent rows: greedy search and sampling."""
    rows = generation.num_return_sequences
    choose = sampled_choice(generation) if generation.do_sample else greedy_choice
    process = processors(generation)
    rescores = generation.repetition_penalty != 1.0
    ends = generation.end_token_ids

    sequences = first_tokens(generation, rows)
    beam_index = np.arange(rows, dtype=np.int32)
    lengths = [generation.max_length] * rows
    scores = [0.0] * rows
    running = list(range(rows))
    for length in range(1, generation.max_length):
        forced = forced_token(generation, length)
        if forced is None or length + 1 < generation.max_length:
            decode = Decode(sequences[:, length - 1].copy(), beam_index)
            yield decode
        if forced is not None:
            sequences[running, length] = forced
        else:
            logits = decode.logits
            normalizers = log_normalizers(logits)
            unprocessed = logits.copy() if rescores else logits
            for processor in process:
                processor(sequences[:, :length], logits, np.zeros_like(normalizers))
            for row in running:
                token = choose(logits[row])
                if logits[row, token] == -np.inf:
                    raise no_token_left(length)
                sequences[row, length] = token
                scores[row] += float(unprocessed[row, token] - normalizers[row])
        for row in running:
            if sequences[row, length] in ends:
                lengths[row] = length + 1
        running = [row for row in running if lengths[row] > length + 1]
        yield Settled([int(sequences[0, length])] if rows == 1 else [])
        if not running:
            break
    hypotheses = [
        Hypothesis(tuple(sequences[row, : lengths[row]].tolist()), scores[row])
        for row in range(rows)
    ]
    hypotheses.sort(key=SCORE, reverse=True)
    if rows > 1:
        yield Settled(list(hypotheses[0].token_ids[1:]))
    yield Finished(hypotheses)


def beam_search(generation: GenerationConfig) -> Search:
    """Keep the `num_beams` best unfinished sequences and, apart from them, the best finished ones.

    Where Hugging Face gives a score of -1e9 to beams that do not exist yet, ours have -inf and are
    never finished: a vocabulary smaller than the number of beams gives no false hypotheses.
    """
    beams = generation.num_beams
    process = processors(generation)
    divisors = length_divisors(generation)
    count = (1 + len(generation.end_token_ids)) * beams  # of candidates

    sequences = first_tokens(generation, beams)
    beam_index = np.arange(beams, dtype=np.int32)
    totals = np.full(beams, -np.inf)  # sums of log-probabilities, best first
    totals[0] = 0.0  # all beams start equal: only the first exists
    finished: list[Hypothesis] = []  # at most num_beams, best first
    settled = 1
    for length in range(1, generation.max_length):
        forced = forced_token(generation, length)
        last = length + 1 == generation.max_length
        if forced is None or not last:
            decode = Decode(sequences[:, length - 1].copy(), beam_index)
            yield decode
        if forced is not None:
            rows, tokens, sums = np.arange(beams), np.full(beams, forced), totals
        else:
            logits = decode.logits
            normalizers = log_normalizers(logits)
            for processor in process:
                processor(sequences[:, :length], logits, normalizers)
            # Each beam can end in so many ways, so num_beams of the candidates can go on.
            rows, tokens, sums = largest(logits, totals - normalizers, count)

        possible = sums > -np.inf
        ends = possible & (last | np.isin(tokens, generation.end_token_ids))
        # Candidates beyond num_beams are there to go on; as endings they are not good enough.
        for place in np.flatnonzero(ends[:beams]):
            token_ids = (*sequences[rows[place], :length].tolist(), int(tokens[place]))
            finished.append(Hypothesis(token_ids, float(sums[place]) / divisors[length]))
        finished.sort(key=SCORE, reverse=True)  # among equals the older stays ahead
        del finished[beams:]

        goes_on = np.flatnonzero(possible & ~ends)[:beams]
        if goes_on.size == 0:
            break
        absent = beams - goes_on.size  # beams that no candidate is left for
        places = np.append(goes_on, np.repeat(goes_on[:1], absent))
        beam_index = rows[places].astype(np.int32)
        sequences = sequences[beam_index]
        sequences[:, length] = tokens[places]
        totals = np.append(sums[goes_on], np.full(absent, -np.inf))
        if len(finished) == beams and not may_improve(
            float(totals[0]), length, finished[-1].score, divisors, generation
        ):
            break

        contenders = sequences[:, settled : length + 1]
        rivals = []
        if finished:
            contenders = contenders[may_win(totals, length, finished[0].score, divisors)]
            rivals.append(list(finished[0].token_ids[settled:]))
        certain = common_prefix(contenders.tolist() + rivals)
        settled += len(certain)
        yield Settled(certain)
    if not finished:
        raise no_token_left(length)
    yield Settled(list(finished[0].token_ids[settled:]))
    yield Finished(finished[: generation.num_return_sequences])


def may_improve(
    total: float,
    length: int,
    worst_score: float,
    divisors: list[float],
    generation: GenerationConfig,
) -> bool:
    """Say whether beam search goes on once `num_beams` hypotheses are finished.

    `total` is that of the best beam after `length` generated tokens, `worst_score` the lowest score
    among the finished. `early_stopping=True` never goes on; False takes the beam's score as if it
    ended now, which longer sequences may exceed; "never" the best score that it can still reach.
    """
    if generation.early_stopping is True:
        return False
    if generation.early_stopping == "never" and generation.length_penalty > 0:
        length = generation.max_length - 1
    return total / divisors[length] > worst_score


def may_win(
    totals: Totals, length: int, best_score: float, divisors: list[float]
) -> npt.NDArray[np.bool_]:
    """Say of each beam, after `length` generated tokens, whether it can end above `best_score`.

    Log-probabilities are never above 0, so a total never grows. Dividing by the largest divisor
    ahead gives the best score within reach.
    """
    within_reach = max(divisors[length + 1], divisors[-1])
    return totals > best_score * within_reach - ROUNDING


# What sums of log-probabilities may grow by rounding alone.
ROUNDING = 1e-6
SCORE = operator.attrgetter("score")


def common_prefix(sequences: list[list[int]]) -> list[int]:
    """Return the tokens that all sequences begin with: those of the first and last in order."""
    pairs = zip(min(sequences), max(sequences), strict=False)
    return [token for token, other in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]


def first_tokens(generation: GenerationConfig, rows: int) -> IntArray:
    """Return sequences (rows, max_length) that hold the start token, then padding."""
    sequences = np.full((rows, generation.max_length), generation.pad_token_id, dtype=np.int32)
    sequences[:, 0] = generation.decoder_start_token_id
    return sequences


def length_divisors(generation: GenerationConfig) -> list[float]:
    """Return length ** length_penalty for each number of generated tokens up to the last.

    Kept within the range of float64, so that no penalty, however extreme, divides by 0.
    """
    lengths = np.maximum(np.arange(generation.max_length, dtype=np.float64), 1)
    with np.errstate(over="ignore"):
        divisors: list[float] = np.clip(lengths**generation.length_penalty, 1e-300, 1e300).tolist()
    return divisors


def no_token_left(length: int) -> ConfigurationError:
    """Return the error for settings under which no sequence can go on."""
    return ConfigurationError(
        f"Expected at least one token that may follow the first {length}, but every one is "
        f"forbidden. Lower no_repeat_ngram_size or min_length, or set a lower max_length."
    )
