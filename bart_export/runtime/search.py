"""Greedy search, sampling and beam search, with the semantics of `generate()` in transformers 4.57.

A search is an iterator of events: `Decode` requests logits, `Settled` reports final tokens, and
`Finished` is the last. It calls no model and has no caches, so that one loop can run one search
(`drive`, `run`) or several at the same time.
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError
from bart_export.runtime.drafts import PromptLookup
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

# (state, token ids (beams,), beam_index (beams,)) -> (logits (beams, vocabulary), next state).
# Beam k continues the caches of beam beam_index[k]. The state stands for the decoder's caches.
Step = Callable[[State, IntArray, IntArray], tuple[FloatArray, State]]


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A finished sequence with its start and end tokens, and its score as in `Result`.

    In beam search, that is Hugging Face's `sequences_scores`. Forced tokens have log-probability 0.
    """

    token_ids: tuple[int, ...]
    score: float


@dataclasses.dataclass
class Decode:
    """A request for the logits after one more token per beam.

    Beam k continues beam `beam_index[k]` of the previous request with `token_ids[k]`, both int32
    (beams,). `position` is the number of preceding tokens. The caller must set `logits`, float32
    (beams, vocabulary), before the next event; the search modifies them in place.

    `draft` are guesses of a single beam's next tokens. The caller may also return the logits after
    the first of them, float32 (1 + verified, vocabulary). After a wrong guess, the search requests
    its position again.
    """

    token_ids: IntArray
    beam_index: IntArray
    position: int = 0
    draft: tuple[int, ...] = ()
    logits: FloatArray = dataclasses.field(init=False)


@dataclasses.dataclass(frozen=True)
class Settled:
    """The next tokens of the best sequence, which no later step can change."""

    token_ids: list[int]


@dataclasses.dataclass(frozen=True)
class Finished:
    """The hypotheses, best first."""

    hypotheses: list[Hypothesis]


Search = Iterator[Decode | Settled | Finished]


def search(generation: GenerationConfig, source: Sequence[int] = ()) -> Search:
    """Search for the best sequences; `source` are the source's token ids, for drafts.

    A `Settled` follows every step. In beam search many have no tokens; with several samples, only
    the last one has any. Joined, the tokens are `token_ids[1:]` of the first hypothesis.
    The last event is `Finished` with `num_return_sequences` hypotheses, or fewer if the settings
    allow fewer sequences.

    A `Decode` has `num_beams` rows, or when sampling `num_return_sequences` independent rows.

    Raises:
        EngineError: if a logit is NaN or infinite.
        ConfigurationError: if the settings forbid every token.
    """
    return beam_search(generation) if generation.num_beams > 1 else token_search(generation, source)


def drive(search: Search, step: Step[State], state: State) -> Iterator[Settled | Finished]:
    """Run a search with a step function and an initial state; yield all events but `Decode`."""
    for event in search:
        if isinstance(event, Decode):
            event.logits, state = step(state, event.token_ids, event.beam_index)
        else:
            yield event


def run(search: Search, step: Step[State], state: State) -> list[Hypothesis]:
    """Run a search and return its hypotheses; see `drive`."""
    hypotheses: list[Hypothesis] = []
    for event in drive(search, step, state):
        if isinstance(event, Finished):
            hypotheses = event.hypotheses
    return hypotheses


def token_search(generation: GenerationConfig, source: Sequence[int]) -> Search:
    """Run greedy search or sampling: one token per step in each of several independent rows."""
    max_tokens = 0 if generation.do_sample else generation.prompt_lookup_num_tokens
    lookup = PromptLookup(source, max_tokens) if max_tokens and len(source) else None
    decode, place = None, 0  # the latest request, and the row of its logits for the next token
    rows = generation.num_return_sequences
    choose = sampled_choice(generation) if generation.do_sample else greedy_choice
    process = processors(generation)
    rescores = generation.repetition_penalty != 1.0
    ends = generation.end_token_ids

    sequences = initial_sequences(generation, rows)
    beam_index = np.arange(rows, dtype=np.int32)
    lengths = [generation.max_length] * rows
    scores = [0.0] * rows
    zeros = np.zeros(rows, np.float32)
    running = list(range(rows))
    for length in range(1, generation.max_length):
        forced = forced_token(generation, length)
        drafted = decode.draft[place : len(decode.logits) - 1] if decode and lookup else ()
        if drafted and drafted[0] == sequences[0, length - 1]:
            place += 1
        elif forced is None or length + 1 < generation.max_length:
            draft = lookup.draft() if lookup else ()
            decode = Decode(sequences[:, length - 1].copy(), beam_index, length - 1, draft)
            place = 0
            yield decode
        if forced is not None:
            sequences[running, length] = forced
        else:
            assert decode is not None
            logits = decode.logits[place : place + 1] if lookup else decode.logits
            normalizers = log_normalizers(logits)
            unprocessed = logits.copy() if rescores else logits
            for processor in process:
                processor(sequences[:, :length], logits, zeros)
            for row in running:
                token = choose(logits[row])
                if logits[row, token] == -np.inf:
                    raise no_token_left(length)
                sequences[row, length] = token
                scores[row] += float(unprocessed[row, token] - normalizers[row])
        for row in running:
            if sequences[row, length] in ends:
                lengths[row] = length + 1
        if lookup is not None:
            lookup.add(int(sequences[0, length]))
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
    """Run beam search: keep the `num_beams` best unfinished and the best finished sequences.

    Unused beams have a total of -inf instead of Hugging Face's -1e9, and are never finished, so
    that a vocabulary smaller than the number of beams yields no spurious hypotheses.
    """
    beams = generation.num_beams
    process = processors(generation)
    divisors = length_divisors(generation)
    count = (1 + len(generation.end_token_ids)) * beams  # candidates per step

    sequences = initial_sequences(generation, beams)
    beam_index = np.arange(beams, dtype=np.int32)
    totals = np.full(beams, -np.inf)  # sums of log-probabilities, best first
    totals[0] = 0.0  # all beams start equal, so only the first is used
    finished: list[Hypothesis] = []  # at most num_beams, best first
    settled = 1
    for length in range(1, generation.max_length):
        forced = forced_token(generation, length)
        last = length + 1 == generation.max_length
        if forced is None or not last:
            decode = Decode(sequences[:, length - 1].copy(), beam_index, length - 1)
            yield decode
        if forced is not None:
            rows, tokens, sums = np.arange(beams), np.full(beams, forced), totals
        else:
            logits = decode.logits
            normalizers = log_normalizers(logits)
            for processor in process:
                processor(sequences[:, :length], logits, normalizers)
            # A beam has one candidate per end token, so at least num_beams candidates continue.
            rows, tokens, sums = largest(logits, totals - normalizers, count)

        going_on: list[tuple[int, int, float]] = []
        candidates = zip(rows.tolist(), tokens.tolist(), sums.tolist(), strict=True)
        for place, (row, token, total) in enumerate(candidates):
            if total == -np.inf:
                break
            if not last and token not in generation.end_token_ids:
                going_on.append((row, token, total))
            # Candidates after the first num_beams may continue, but not finish.
            elif place < beams:
                token_ids = (*sequences[row, :length].tolist(), token)
                finished.append(Hypothesis(token_ids, total / divisors[length]))
        finished.sort(key=SCORE, reverse=True)  # stable: among equal scores, the older wins
        del finished[beams:]
        if not going_on:
            break
        unused = max(0, beams - len(going_on))
        going_on = going_on[:beams] + going_on[:1] * unused
        beam_index = np.array([row for row, _, _ in going_on], np.int32)
        sequences = sequences[beam_index]
        sequences[:, length] = [token for _, token, _ in going_on]
        totals = np.array([total for _, _, total in going_on])
        totals[beams - unused :] = -np.inf
        if len(finished) == beams and not may_improve(
            float(totals[0]), length, finished[-1].score, divisors, generation
        ):
            break

        contenders = sequences[:, settled : length + 1]
        rivals = []
        if finished:
            contenders = contenders[may_win(totals, length, finished[0].score, divisors)]
            rivals.append(list(finished[0].token_ids[settled:]))
        agreed = common_prefix(contenders.tolist() + rivals)
        settled += len(agreed)
        yield Settled(agreed)
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
    """Return whether beam search continues once `num_beams` hypotheses are finished.

    `total` is the best beam's after `length` generated tokens. `early_stopping=True` stops; False
    compares the score that the beam would have if it ended now; "never" compares the highest score
    that it can reach.
    """
    if generation.early_stopping is True:
        return False
    if generation.early_stopping == "never" and generation.length_penalty > 0:
        length = generation.max_length - 1
    return total / divisors[length] > worst_score


def may_win(
    totals: Totals, length: int, best_score: float, divisors: list[float]
) -> npt.NDArray[np.bool_]:
    """Return which beams, after `length` generated tokens, can still exceed `best_score`.

    Totals never grow; the largest remaining divisor gives the highest score.
    """
    divisor = max(divisors[length + 1], divisors[-1])
    return totals > best_score * divisor - ROUNDING


ROUNDING = 1e-6  # the most by which rounding can increase a sum of log-probabilities
SCORE = operator.attrgetter("score")


def common_prefix(sequences: list[list[int]]) -> list[int]:
    """Return the longest common prefix: that of the first and the last sequence when sorted."""
    pairs = zip(min(sequences), max(sequences), strict=False)
    return [token for token, other in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]


def initial_sequences(generation: GenerationConfig, rows: int) -> IntArray:
    """Return sequences (rows, max_length) of the start token and padding."""
    sequences = np.full((rows, generation.max_length), generation.pad_token_id, dtype=np.int32)
    sequences[:, 0] = generation.decoder_start_token_id
    return sequences


def length_divisors(generation: GenerationConfig) -> list[float]:
    """Return length ** length_penalty for each length, clipped so that no divisor is 0."""
    lengths = np.maximum(np.arange(generation.max_length, dtype=np.float64), 1)
    with np.errstate(over="ignore"):
        divisors: list[float] = np.clip(lengths**generation.length_penalty, 1e-300, 1e300).tolist()
    return divisors


def no_token_left(length: int) -> ConfigurationError:
    """Return the error for settings that forbid every token."""
    return ConfigurationError(
        f"Expected at least one token that may follow the first {length}, but all are forbidden. "
        "Set no_repeat_ngram_size to 0, or lower min_length or max_length."
    )
