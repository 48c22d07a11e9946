"""Search over a real decoder gives what transformers' generate() gives, case for case."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy_bart import NumpyBart

from bart_export.config import GenerationConfig
from bart_export.runtime.search import run, search

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MODELS = ("bart_tiny_symmetric", "bart_tiny_distilled")
# What transformers writes into generation_config.json and is not a setting of ours.
FOREIGN = ("transformers_version",)


class Golden:
    def __init__(self, name):
        directory = GOLDEN / name
        self.model = NumpyBart(directory)
        self.forward = np.load(directory / "forward.npz")
        self.cases = json.loads((directory / "generate.json").read_text())
        defaults = json.loads((directory / "generation_config.json").read_text())
        self.defaults = {key: value for key, value in defaults.items() if key not in FOREIGN}
        self.starts = [self.model.start(self.encode(row)) for row in range(len(self.sources))]

    @property
    def sources(self):
        return self.forward["encoder_token_ids"]

    def encode(self, row):
        return self.model.encode(self.sources[row][self.forward["encoder_padding_mask"][row] > 0])

    def settings(self, case):
        parameters = dict(case["parameters"])
        return GenerationConfig(
            **(self.defaults if parameters.pop("defaults", False) else {}), **parameters
        )


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
    wrong = []
    for number, case in enumerate(golden.cases):
        generation = golden.settings(case)
        hypotheses = run(search(golden.model.step, golden.starts[case["row"]], generation))
        longest = max(len(hypothesis.token_ids) for hypothesis in hypotheses)
        sequences = [
            [
                *hypothesis.token_ids,
                *[generation.pad_token_id] * (longest - len(hypothesis.token_ids)),
            ]
            for hypothesis in hypotheses
        ]
        scores = [hypothesis.score for hypothesis in hypotheses]
        if sequences != case["sequences"] or not np.allclose(
            scores, case.get("scores", scores), rtol=0, atol=1e-4
        ):
            wrong.append((number, case, sequences, scores))
    assert not wrong, f"{len(wrong)} of {len(golden.cases)} cases differ, the first: {wrong[0]}"
