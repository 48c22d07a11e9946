"""The golden checkpoints' cases: settings to generate with, and what must come out."""

import json
from pathlib import Path

import numpy as np
import pytest

from bart_export.config import GenerationConfig
from bart_export.runtime.search import run, search

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MODELS = ("bart_tiny_symmetric", "bart_tiny_distilled")
# For tests that take TensorFlow: the distilled model has every part that the other has, and more.
EACH_MODEL = (pytest.param(MODELS[0], marks=pytest.mark.slow), MODELS[1])
# What transformers writes into generation_config.json and is not a setting of ours.
FOREIGN = ("transformers_version",)


class GoldenCases:
    """One checkpoint's answers: `forward` teacher-forced, `cases` generated."""

    def __init__(self, name):
        directory = GOLDEN / name
        with np.load(directory / "forward.npz") as arrays:
            self.forward = dict(arrays)
        self.cases = json.loads((directory / "generate.json").read_text())
        defaults = json.loads((directory / "generation_config.json").read_text())
        self.defaults = {key: value for key, value in defaults.items() if key not in FOREIGN}

    def __len__(self):
        return len(self.forward["encoder_token_ids"])

    def source(self, row):
        """Return a row's source token ids, (source,), without padding."""
        real = self.forward["encoder_padding_mask"][row] > 0
        return self.forward["encoder_token_ids"][row][real]

    def settings(self, case):
        """Return the settings of a case; what it does not name is off."""
        parameters = dict(case["parameters"])
        return GenerationConfig(
            **(self.defaults if parameters.pop("defaults", False) else {}), **parameters
        )

    def wrong(self, step, start, tolerance):
        """Return the cases that a model answers otherwise.

        `start(row, generation)` gives the state that `step` begins with; scores may differ by
        `tolerance`. Cases that need the same buffers of an engine follow each other.
        """
        settings = [self.settings(case) for case in self.cases]
        order = sorted(
            range(len(settings)),
            key=lambda number: (self.cases[number]["row"], settings[number].num_beams),
        )
        wrong = []
        for number in order:
            case, generation = self.cases[number], settings[number]
            hypotheses = run(search(step, start(case["row"], generation), generation))
            sequences = padded(hypotheses, generation.pad_token_id)
            scores = [hypothesis.score for hypothesis in hypotheses]
            if sequences != case["sequences"] or not np.allclose(
                scores, case.get("scores", scores), rtol=0, atol=tolerance
            ):
                wrong.append((number, case, sequences, scores))
        return wrong


def padded(hypotheses, pad_token_id):
    """Return the token ids of hypotheses, padded to the length of the longest."""
    longest = max(len(hypothesis.token_ids) for hypothesis in hypotheses)
    return [
        [*hypothesis.token_ids, *[pad_token_id] * (longest - len(hypothesis.token_ids))]
        for hypothesis in hypotheses
    ]
