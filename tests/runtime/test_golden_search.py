"""Search over a real decoder gives what transformers' generate() gives, case for case."""

import numpy as np
import pytest
from golden_cases import GOLDEN, MODELS, GoldenCases
from numpy_bart import NumpyBart


class Golden(GoldenCases):
    def __init__(self, name):
        super().__init__(name)
        self.model = NumpyBart(GOLDEN / name)
        self.starts = [
            self.model.start(self.model.encode(self.source(row))) for row in range(len(self))
        ]


@pytest.fixture(scope="module", params=MODELS)
def golden(request):
    return Golden(request.param)


def test_the_numpy_decoder_gives_the_golden_logits(golden):
    answers = golden.forward["logits"]
    for row, token_ids in enumerate(golden.forward["decoder_token_ids"]):
        state = golden.starts[row]
        for position, token in enumerate(token_ids):
            logits, state = golden.model.step(state, np.array([token]), np.array([0]))
            np.testing.assert_allclose(logits[0], answers[row, position], atol=1e-4, rtol=1e-4)


def test_every_golden_case_token_for_token(golden):
    wrong = golden.wrong(
        golden.model.step, lambda row, generation: golden.starts[row], tolerance=1e-4
    )
    assert not wrong, f"{len(wrong)} of {len(golden.cases)} cases differ, the first: {wrong[0]}"
