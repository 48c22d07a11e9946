"""Exported files on LiteRT give transformers' logits, tokens and scores."""

import numpy as np
import pytest
from golden_cases import MODELS, GoldenCases

from bart_export.runtime.engine import CompiledModelEngine

# Largest error of a logit, teacher-forced, by row. The third source of the symmetric checkpoint
# saturates its attention: rounding every weight by half a unit in the last place moves its logits,
# computed in float64, by 7e-5, and any float32 implementation by a few times that.
LOGITS = {"bart_tiny_symmetric": (1e-4, 1e-4, 5e-4), "bart_tiny_distilled": (1e-4, 1e-4, 1e-4)}


@pytest.fixture(scope="module", params=MODELS)
def golden(request):
    return request.param, GoldenCases(request.param)


@pytest.fixture(scope="module")
def engine(request, golden):
    artifact = request.getfixturevalue(golden[0].removeprefix("bart_tiny_") + "_artifact")
    # The models are too small for a second thread to be worth its hand-overs.
    return CompiledModelEngine.from_artifact(artifact, "tflite/float32.tflite", num_threads=1)


def test_teacher_forced_logits_are_those_of_transformers(golden, engine):
    name, cases = golden
    row_of_beam = np.zeros(1, np.int32)
    for row, token_ids in enumerate(cases.forward["decoder_token_ids"]):
        state = engine.start(cases.source(row).tolist(), 1, len(token_ids))
        for position, token in enumerate(token_ids):
            logits, state = engine.step(state, np.array([token], np.int32), row_of_beam)
            np.testing.assert_allclose(
                logits[0], cases.forward["logits"][row, position], rtol=0, atol=LOGITS[name][row]
            )


def test_every_golden_case_token_for_token_and_its_scores(golden, engine):
    _, cases = golden

    def start(row, generation):
        return engine.start(cases.source(row).tolist(), generation.num_beams, generation.max_length)

    wrong = cases.wrong(engine.step, start, tolerance=1e-3)
    assert not wrong, f"{len(wrong)} of {len(cases.cases)} cases differ, the first: {wrong[0]}"
