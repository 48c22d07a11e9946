"""Exported files on LiteRT give transformers' logits, tokens and scores."""

import numpy as np
import pytest
from support.golden_cases import MODELS, GoldenCases

from bart_export.runtime.engines import open_engine


@pytest.fixture(scope="module", params=MODELS)
def golden(request):
    return request.param, GoldenCases(request.param)


@pytest.fixture(scope="module")
def engine(request, golden):
    artifact = request.getfixturevalue(golden[0].removeprefix("bart_tiny_") + "_artifact")
    # The models are too small for a second thread to be worth its hand-overs.
    return open_engine(artifact, "tflite/float32.tflite", num_threads=1)


def test_teacher_forced_logits_are_those_of_transformers(golden, engine):
    _, cases = golden
    row_of_beam = np.zeros(1, np.int32)
    for row, token_ids in enumerate(cases.forward["decoder_token_ids"]):
        state = engine.start(cases.source(row).tolist(), 1, len(token_ids))
        steps = []
        for token in token_ids:
            logits, state = engine.step(state, np.array([token], np.int32), row_of_beam)
            steps.append(logits[0].copy())
        cases.assert_close("logits", [steps], [row])


def test_every_golden_case_token_for_token_and_its_scores(golden, engine):
    _, cases = golden

    def start(row, generation):
        return engine.start(cases.source(row).tolist(), generation.num_beams, generation.max_length)

    wrong = cases.wrong(engine.step, start)
    assert not wrong, f"{len(wrong)} of {len(cases.cases)} cases differ, the first: {wrong[0]}"
