"""The golden checkpoints' cases: settings to generate with, and what must come out."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from bart_export.config import GenerationConfig
from bart_export.runtime.search import run, search
from support.numpy_bart import NumpyBart

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MODELS = ("bart_tiny_symmetric", "bart_tiny_distilled")
# For tests that take TensorFlow: the distilled model has every part that the other has, and more.
EACH_MODEL = (pytest.param(MODELS[0], marks=pytest.mark.slow), MODELS[1])
# What transformers writes into generation_config.json and is not a setting of ours.
FOREIGN = ("transformers_version",)

# How far float32 may move an answer, in units of `sensitivity`: right implementations were seen at
# up to 5.4: NumPy, Keras and the graphs with AVX, AVX2 and AVX-512, with oneDNN and without.
TIMES = 16
COPIES = 8


@functools.cache
def sensitivity(name):
    """Return how far a golden checkpoint's answers move with its weights.

    Each weight is moved by up to half a unit in the last place, the least that float32 costs, and
    everything is computed in float64: the figures are the same on every processor, and follow the
    checkpoint's own conditioning (the third source of the symmetric one saturates its attention).
    For each output of `forward.npz` the largest movement of a number in a row, (rows, 1, 1).
    """
    golden, random = GoldenCases(name), np.random.default_rng(0)
    models = [NumpyBart(GOLDEN / name, np.float64)]
    models += [NumpyBart(GOLDEN / name, np.float64, random) for _ in range(COPIES)]
    moved = {output: [] for output in OUTPUTS}
    for row, decoder_token_ids in enumerate(golden.forward["decoder_token_ids"]):
        answers = [model.forward(golden.source(row), decoder_token_ids) for model in models]
        for output, (right, *others) in zip(OUTPUTS, zip(*answers, strict=True), strict=True):
            moved[output].append(max(np.abs(other - right).max() for other in others))
    return {output: np.reshape(values, (-1, 1, 1)) for output, values in moved.items()}


OUTPUTS = ("encoder_sequence_output", "decoder_sequence_output", "logits")


class GoldenCases:
    """One checkpoint's answers: `forward` teacher-forced, `cases` generated."""

    def __init__(self, name):
        self.name, directory = name, GOLDEN / name
        with np.load(directory / "forward.npz") as arrays:
            self.forward = dict(arrays)
        self.cases = json.loads((directory / "generate.json").read_text())
        defaults = json.loads((directory / "generation_config.json").read_text())
        self.defaults = {key: value for key, value in defaults.items() if key not in FOREIGN}

    def __len__(self):
        return len(self.forward["encoder_token_ids"])

    def allowed(self, output):
        """Return how far float32 may move the numbers of an output, (rows, 1, 1)."""
        return TIMES * sensitivity(self.name)[output]

    def assert_close(self, output, received, row=slice(None)):
        """Hold an output of `forward`, or some rows of it, to the golden one.

        Padding of the encoder's output may hold anything.
        """
        error = np.abs(np.asarray(received, np.float64) - self.forward[output][row])
        if output == "encoder_sequence_output":
            error *= self.forward["encoder_padding_mask"][row][..., None]
        share = (error / self.allowed(output)[row]).max()
        assert share <= 1, f"{output} is off by {share:.2f} times what is allowed"

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

    def same(self, case, sequences, scores):
        """Return whether a case was answered token for token, with the scores that it has.

        Only cases whose tokens float32 and float64 agree on are golden.
        """
        generation = self.settings(case)
        real = np.not_equal(case["sequences"], generation.pad_token_id)
        # A sum of log-probabilities, each about as far off as a logit, over a power of the length.
        lengths = np.count_nonzero(real, axis=-1) ** (1 - generation.length_penalty)
        error = np.abs(scores - np.asarray(case.get("scores", scores)))
        allowed = self.allowed("logits")[case["row"]].item() * lengths
        return sequences == case["sequences"] and (error <= allowed).all()

    def wrong(self, step, start):
        """Return the cases that a model answers otherwise.

        `start(row, generation)` gives the state that `step` begins with. Cases that need the same
        buffers of an engine follow each other.
        """
        settings = [self.settings(case) for case in self.cases]
        order = sorted(
            range(len(settings)),
            key=lambda number: (self.cases[number]["row"], settings[number].num_beams),
        )
        wrong = []
        for number in order:
            case, generation = self.cases[number], settings[number]
            hypotheses = run(search(generation), step, start(case["row"], generation))
            sequences = padded(hypotheses, generation.pad_token_id)
            scores = [hypothesis.score for hypothesis in hypotheses]
            if not self.same(case, sequences, scores):
                wrong.append((number, case, sequences, scores))
        return wrong


def padded(hypotheses, pad_token_id):
    """Return the token ids of hypotheses, padded to the length of the longest."""
    longest = max(len(hypothesis.token_ids) for hypothesis in hypotheses)
    return [
        [*hypothesis.token_ids, *[pad_token_id] * (longest - len(hypothesis.token_ids))]
        for hypothesis in hypotheses
    ]
