import itertools

import numpy as np
import pytest
from support.made_up_models import END, START, VOCABULARY, log_softmax, logits_after, made_up_step

from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError, EngineError
from bart_export.runtime.search import drive, run, search

IDS = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": 0, "bos_token_id": 2}


def settings(**parameters):
    return GenerationConfig(**{"max_length": 12, **IDS, **parameters})


def generate(model, **parameters):
    return run(search(settings(**parameters)), made_up_step(model), None)


def stream(step, generation):
    """Return the settled tokens of each step, and the hypotheses."""
    *settled, finished = drive(search(generation), step, None)
    return [event.token_ids for event in settled], finished.hypotheses


def every_sequence(seed, max_length, length_penalty, allowed, ends=(END,)):
    """Return (score, tokens) of all possible sequences, best first."""
    found = []

    def extend(tokens, total):
        row = log_softmax(logits_after(tokens, seed))
        for token in range(VOCABULARY):
            if allowed((*tokens, token)):
                longer, score = (*tokens, token), total + row[token]
                if token in ends or len(longer) == max_length:
                    found.append((score / len(tokens) ** length_penalty, longer))
                else:
                    extend(longer, score)

    extend((START,), 0.0)
    return sorted(found, reverse=True)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
def test_enough_beams_find_every_sequence_in_order(length_penalty):
    for seed in range(3):
        expected = every_sequence(seed, 5, length_penalty, allowed=lambda tokens: True)
        hypotheses = generate(
            seed,
            max_length=5,
            num_beams=800,
            num_return_sequences=800,
            length_penalty=length_penalty,
            early_stopping="never",
        )
        assert [hypothesis.token_ids for hypothesis in hypotheses] == [row[1] for row in expected]
        np.testing.assert_allclose(
            [hypothesis.score for hypothesis in hypotheses], [row[0] for row in expected], rtol=1e-5
        )


def test_each_of_several_end_tokens_ends_a_sequence():
    ends = (END, 4)

    def allowed(tokens):
        return tokens[-1] not in ends or len(tokens) > 3

    expected = every_sequence(3, 5, 1.0, allowed, ends)
    many = {"max_length": 5, "num_beams": 500, "num_return_sequences": 500}
    hypotheses = generate(3, eos_token_id=list(ends), min_length=3, **many)
    assert [hypothesis.token_ids for hypothesis in hypotheses] == [row[1] for row in expected]
    assert {hypothesis.token_ids[-1] for hypothesis in hypotheses} >= set(ends)
    lasts = {generate(seed, eos_token_id=ends)[0].token_ids[-1] for seed in range(20)}
    assert lasts == set(ends)


def test_as_many_candidates_are_looked_at_as_let_every_beam_go_on():
    """transformers keeps (1 + end tokens) * num_beams candidates of a step."""
    logits = np.array([[-9, 3, 2, 1, 0, -1], [-9, 3, 2, 1, 0, -1]], np.float32)
    asked = []

    def step(state, token_ids, beam_index):
        asked.append(token_ids.tolist())
        return logits.copy(), state

    ends = {"eos_token_id": [1, 2], "early_stopping": "never", "length_penalty": 5.0}
    run(search(settings(num_beams=2, max_length=4, **ends)), step, None)
    # Of the second step's best, three end; with 2 * num_beams one beam would have no successor.
    assert asked == [[0, 0], [3, 4], [3, 4]]


def test_greedy_search_takes_the_likeliest_token_and_adds_up_log_probabilities():
    for seed in range(20):
        tokens, total = (START,), 0.0
        while len(tokens) < 12 and tokens[1:][-1:] != (END,):
            row = log_softmax(logits_after(tokens, seed))
            tokens, total = (*tokens, int(row.argmax())), total + row.max()
        (hypothesis,) = generate(seed)
        assert hypothesis.token_ids == tokens
        assert hypothesis.score == pytest.approx(total, abs=1e-5)


def test_the_repetition_penalty_changes_the_choice_but_not_the_score_of_a_token():
    for seed in range(20):
        (hypothesis,) = generate(seed, repetition_penalty=3.0)
        total = sum(
            log_softmax(logits_after(hypothesis.token_ids[:length], seed))[token]
            for length, token in enumerate(hypothesis.token_ids)
            if length
        )
        assert hypothesis.score == pytest.approx(total, abs=1e-5)


MANY_SETTINGS = [
    {"num_beams": beams, "early_stopping": stopping, "length_penalty": penalty, **more}
    for beams in (2, 3, 5)
    for stopping in (True, False, "never")
    for penalty in (-0.5, 0.0, 1.0, 2.0)
    for more in ({}, {"min_length": 4, "no_repeat_ngram_size": 2}, {"repetition_penalty": 1.5})
]


def test_settled_tokens_are_those_of_the_best_sequence():
    early = 0
    for seed, parameters in enumerate([*MANY_SETTINGS, {}, {"do_sample": True, "seed": 1}] * 3):
        for sharpness in (1.0, 4.0):
            generation = settings(forced_eos_token_id=END if seed % 2 else None, **parameters)
            steps, hypotheses = stream(made_up_step(seed, sharpness=sharpness), generation)
            settled = list(itertools.chain.from_iterable(steps))
            assert settled == list(hypotheses[0].token_ids[1:])
            early += len(list(itertools.chain.from_iterable(steps[:-1]))) / max(1, len(settled))
    assert early / (6 * len(MANY_SETTINGS)) > 0.6  # most tokens do not wait for the end


def test_a_settled_token_stands_whatever_the_model_says_later():
    for seed, parameters in enumerate(MANY_SETTINGS):
        generation = settings(**parameters)
        known = made_up_step(seed, sharpness=3.0)
        steps, _ = stream(known, generation)
        for turn in range(2, len(steps), 2):
            for other in range(2):
                changed = made_up_step(1000 + other, sharpness=3.0)

                def step(state, token_ids, beam_index, turn=turn, changed=changed, known=known):
                    position = len(state[0]) if state else 0
                    return (changed if position >= turn else known)(state, token_ids, beam_index)

                again, hypotheses = stream(step, generation)
                assert again[:turn] == steps[:turn]
                settled = tuple(itertools.chain.from_iterable(steps[:turn]))
                assert hypotheses[0].token_ids[1 : len(settled) + 1] == settled


def test_several_samples_are_the_best_first_and_each_ends_once():
    generation = settings(do_sample=True, num_return_sequences=8, seed=5, max_length=30)
    steps, hypotheses = stream(made_up_step(1), generation)
    scores = [hypothesis.score for hypothesis in hypotheses]
    assert len(hypotheses) == 8 and scores == sorted(scores, reverse=True)
    assert list(itertools.chain.from_iterable(steps)) == list(hypotheses[0].token_ids[1:])
    for hypothesis in hypotheses:
        ended = END in hypothesis.token_ids
        assert ended or len(hypothesis.token_ids) == 30
        assert not ended or hypothesis.token_ids.index(END) == len(hypothesis.token_ids) - 1


def test_num_return_sequences_only_decides_how_many_hypotheses_come_back():
    for seed in range(10):
        four = generate(seed, num_beams=4, num_return_sequences=4)
        assert len({hypothesis.token_ids for hypothesis in four}) == 4
        assert generate(seed, num_beams=4, num_return_sequences=2) == four[:2]


def test_fewer_hypotheses_come_back_where_there_are_fewer_sequences():
    hypotheses = generate(
        1,
        max_length=3,
        num_beams=4,
        num_return_sequences=4,
        forced_bos_token_id=2,
        forced_eos_token_id=END,
    )
    assert [hypothesis.token_ids for hypothesis in hypotheses] == [(START, 2, END)]
    assert hypotheses[0].score == 0.0


@pytest.mark.parametrize("parameters", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 0}])
def test_the_forced_last_token_needs_no_step(parameters):
    calls = []
    generation = settings(min_length=6, max_length=6, forced_eos_token_id=END, **parameters)
    hypotheses = run(search(generation), made_up_step(2, calls=calls), None)
    assert len(calls) == 4
    assert len(hypotheses[0].token_ids) == 6 and hypotheses[0].token_ids[-1] == END


@pytest.mark.parametrize("parameters", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 0}])
def test_closing_a_search_stops_the_steps(parameters):
    calls = []
    generation = settings(min_length=12, **parameters)
    running = drive(search(generation), made_up_step(2, calls=calls), None)
    next(running), next(running)
    running.close()
    assert len(calls) == 2
    assert next(running, None) is None and len(calls) == 2


@pytest.mark.parametrize("parameters", [{"num_beams": 3}, {"do_sample": True, "seed": 0}])
def test_the_state_is_handed_on_unseen_and_the_number_of_beams_stays(parameters):
    class Opaque:
        __slots__ = ()

    states, shapes = [Opaque()], set()

    def step(state, token_ids, beam_index):
        assert state is states[-1]
        states.append(Opaque())
        shapes.add((token_ids.shape, beam_index.shape, token_ids.dtype, beam_index.dtype))
        return logits_after([len(states)], 4)[None].repeat(len(token_ids), axis=0), states[-1]

    run(search(settings(num_return_sequences=3, **parameters)), step, states[0])
    assert len(states) > 3
    assert shapes == {((3,), (3,), np.dtype("int32"), np.dtype("int32"))}


@pytest.mark.parametrize("parameters", [{}, {"num_beams": 3}, {"no_repeat_ngram_size": 2}])
def test_a_step_may_hand_out_the_same_buffer_every_time(parameters):
    for seed in range(10):
        inner = made_up_step(seed)
        buffer = np.empty((parameters.get("num_beams", 1), VOCABULARY), np.float32)

        def step(state, token_ids, beam_index, inner=inner, buffer=buffer):
            buffer[:], state = inner(state, token_ids, beam_index)
            return buffer, state

        assert run(search(settings(**parameters)), step, None) == generate(seed, **parameters)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("parameters", [{}, {"num_beams": 3}, {"do_sample": True}])
def test_broken_logits_end_the_search_at_once(parameters, broken):
    calls = []
    inner = made_up_step(0, calls=calls)

    def step(state, token_ids, beam_index):
        logits, state = inner(state, token_ids, beam_index)
        logits[-1, 4] = broken if len(calls) == 3 else logits[-1, 4]
        return logits, state

    with pytest.raises(EngineError, match="finite logits"):
        run(search(settings(min_length=12, **parameters)), step, None)
    assert len(calls) == 3


@pytest.mark.parametrize("parameters", [{}, {"num_beams": 3}, {"do_sample": True}])
def test_settings_that_forbid_every_token_are_an_error(parameters):
    generation = settings(no_repeat_ngram_size=1, min_length=12, **parameters)
    with pytest.raises(ConfigurationError, match="follow the first 5"):
        run(search(generation), made_up_step(0), None)


@pytest.mark.parametrize("length_penalty", [1e6, -1e6])
def test_extreme_length_penalties_do_no_harm(length_penalty):
    hypotheses = generate(0, num_beams=3, length_penalty=length_penalty, early_stopping="never")
    assert np.isfinite(hypotheses[0].score)


def test_equal_logits_go_to_the_lower_token_and_the_lower_beam():
    def step(state, token_ids, beam_index):
        return np.zeros((len(token_ids), VOCABULARY), np.float32), state

    (greedy,) = run(search(settings(max_length=4)), step, None)
    assert greedy.token_ids == (0, 0, 0, 0)
    beams = settings(max_length=4, num_beams=2, min_length=4, num_return_sequences=2)
    best, second = run(search(beams), step, None)
    assert (best.token_ids, second.token_ids) == ((0, 0, 0, 0), (0, 0, 0, 2))


def test_beams_that_can_only_equal_the_finished_hypotheses_are_not_continued():
    calls = []

    def step(state, token_ids, beam_index):
        calls.append(token_ids)
        return np.zeros((len(token_ids), VOCABULARY), np.float32), state

    best, *_ = run(search(settings(num_beams=2)), step, None)
    assert best.token_ids == (START, END)  # every sequence scores -log(6)
    assert len(calls) == 2
