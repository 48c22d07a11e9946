"""Correct files of random checkpoints are accepted, and wrong ones are not.

The larger the spread of the weights, the larger the rounding errors: from 1e-7 of the logits'
spread, half a unit in the last place, to 2e-5.
"""

import dataclasses
import re
import types

import numpy as np
import pytest
from support.golden_cases import GOLDEN, MODELS, GoldenCases
from support.judged_models import (
    Judged,
    position_one_off,
    swap_rows,
    triple_one_scale,
    triple_the_scales,
    wrong_epsilon,
)

from bart_export.checkpoints import keras_preset, resolve, weight_names
from bart_export.errors import VerificationFailed
from bart_export.model import BartBackbone
from bart_export.recipes.table import ROUNDING, with_bounds
from bart_export.verify import golden
from bart_export.verify.reference import Float64Reference, KerasReference
from bart_export.verify.traces import Trace

SPREADS = np.geomspace(0.02, 0.5, 10)


def random_preset(directory, spread, seed):
    """Write a checkpoint with normal weights, and a logits bias for even seeds."""
    tiny = resolve.read(GOLDEN / MODELS[0])
    config = dataclasses.replace(tiny.config, final_logits_bias=seed % 2 == 0)
    weights = {}
    for number, weight in enumerate(weight_names.weights(config)):
        values = np.random.default_rng((seed, number)).standard_normal(weight.shape, np.float32)
        center = 1 if weight.name.endswith("gamma") else 0
        weights[weight.name] = center + values * np.float32(spread)
    keras_preset.write(
        directory,
        config,
        weights,
        generation=tiny.generation,
        vocabulary=dict(tiny.vocabulary),
        merges=list(tiny.merges),
    )
    return directory


def judge_rows(directory, spread, seed):
    """Check correct files of a random checkpoint, and some with wrong rows; return it judged."""
    judged = Judged(random_preset(directory / "preset", float(spread), seed))
    base = judged.float_file(directory / "float32.tflite")
    int8 = judged.quantized(base)
    gate = judged.gate(base)
    for file in (base, int8):
        gate.check(file, judged.asked)

    for harm in (triple_the_scales, triple_one_scale, swap_rows):
        wrong = judged.changed(int8, harm, directory / "wrong.tflite")
        with pytest.raises(VerificationFailed, match="the error of the worst row"):
            gate.check(wrong, judged.asked)
    wrong = judged.changed(base, swap_rows, directory / "wrong.tflite")
    with pytest.raises(VerificationFailed, match="the error of the worst row"):
        judged.gate(wrong).check(wrong, judged.asked)
    return judged


def test_large_activations_neither_fail_nor_hide_wrong_rows(tmp_path):
    judge_rows(tmp_path, 0.35, seed=8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", (*range(0, 10, 3), 8))
def test_files_are_judged_correctly_at_any_spread(tmp_path, seed):
    judged = judge_rows(tmp_path, SPREADS[seed], seed)
    for harm in (wrong_epsilon, position_one_off):
        with pytest.MonkeyPatch.context() as patch:
            harm(patch)
            wrong = judged.float_file(tmp_path / "wrong.tflite")
        with pytest.raises(VerificationFailed, match="in units of Keras' float32 error"):
            judged.gate(wrong).check(wrong, judged.asked)


@pytest.mark.parametrize("name", MODELS)
def test_the_float64_reference_gives_the_golden_logits(name):
    cases = GoldenCases(name)
    backbone = BartBackbone.from_preset(str(GOLDEN / name))
    truth, keras = Float64Reference(backbone), KerasReference(backbone)
    for row, fed in enumerate(cases.forward["decoder_token_ids"]):
        trace = Trace(tuple(cases.source(row).tolist()), tuple(fed.tolist()))
        seen, rounded = truth.teacher_force(trace), keras.teacher_force(trace)
        assert truth.teacher_force(trace) is seen
        assert seen.logits.dtype == np.float64
        # The golden logits are float32, with an error of 5e-7 at 12.
        np.testing.assert_allclose(seen.logits, cases.forward["logits"][row], rtol=0, atol=2e-6)
        assert seen.cross.keys() == rounded.cross.keys()
        for tensor, values in seen.cross.items():
            assert values.dtype == np.float64
            bound = 100 * cases.allowed("encoder_sequence_output")[row].item()
            np.testing.assert_allclose(rounded.cross[tensor], values, rtol=0, atol=bound)


def test_a_tolerance_applies_to_the_float_file_of_other_recipes(tiny, base, int8):
    def gate(bound):
        recipe = with_bounds(base.recipe, {"rounding": bound})
        return tiny.gate(dataclasses.replace(base, recipe=recipe))

    words = r"of Keras' float32 error, must be at most 0\.001.*--tolerance rounding=(\S+)\.( |$)"
    with pytest.raises(VerificationFailed, match=words) as error:
        gate(0.001).check(int8, tiny.asked)
    accepting = float(re.search(words, str(error.value))[1])
    assert 0.001 < accepting < ROUNDING
    gate(accepting).check(int8, tiny.asked)


def test_only_a_near_tie_may_change_an_exact_answer(tiny, base):
    """Either of two tokens is accepted if their logits differ by less than the rounding error."""
    question = tiny.asked.questions[0]
    assert question.setting == "greedy"
    one_token = dataclasses.replace(question.generation, max_length=2)
    tokenizer = tiny.info.tokenizer
    with base.open() as model:
        answer = golden.ask(model, tokenizer, question)
        question = dataclasses.replace(question, generation=one_token)

        def repeats(gap, noise):
            def step(state, token_ids, beam_index):
                logits, state = model.step(state, token_ids, beam_index)
                logits[:, 700] = logits.max(-1) - gap
                return logits, state

            tied = types.SimpleNamespace(config=model.config, start=model.start, step=step)
            first = golden.ask(tied, tokenizer, question)
            assert first.token_ids == answer.token_ids[:2]
            expected = [answer.token_ids[0], 700]
            return golden.matches(tied, tokenizer, question, first, expected, noise)

        assert repeats(1e-6, 1e-4)
        assert not repeats(1e-2, 1e-4)
        assert not repeats(1e-6, 0.0)
