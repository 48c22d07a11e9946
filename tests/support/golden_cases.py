"""The golden checkpoints' cases: settings, and the expected results."""

import functools
import json

import numpy as np
import pytest

from bart_export.config import GenerationConfig
from bart_export.runtime.search import run, search
from support.numpy_bart import NumpyBart
from support.paths import GOLDEN

MODELS = ("bart_tiny_symmetric", "bart_tiny_distilled")
# For slow tests: the distilled model has all parts of the other one, and more.
EACH_MODEL = (pytest.param(MODELS[0], marks=pytest.mark.slow), MODELS[1])
# Fields of generation_config.json that are not settings.
FOREIGN = ("transformers_version",)

# Bound of float32's error, in units of `sensitivity`. Correct implementations reached 5.4: NumPy,
# Keras and the graphs with AVX, AVX2 and AVX-512, with and without oneDNN.
TIMES = 16
COPIES = 8


def preset_of(artifact):
    """Return the preset of a test's artifact; a manifest names a directory without its path."""
    preset = artifact.manifest.preset
    return str(GOLDEN / preset) if preset.startswith("./") else preset


@functools.cache
def sensitivity(name):
    """Return the largest change of each output of `forward.npz`, (rows, 1, 1), if weights change.

    Each weight changes by up to half a unit in the last place, the minimal error of float32, and
    everything is computed in float64. So the result is the same on every processor and depends on
    the checkpoint's conditioning (the third source of the symmetric one saturates its attention).
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
    """A checkpoint's expected outputs: `forward` with teacher forcing, `cases` generated."""

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
        """Return the bound of float32's error in an output, (rows, 1, 1)."""
        return TIMES * sensitivity(self.name)[output]

    def assert_close(self, output, received, row=slice(None)):
        """Compare an output of `forward`, or some of its rows, with the golden one.

        Padding positions of the encoder's output are ignored.
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
        """Return the settings of a case; features that it does not name are disabled."""
        parameters = dict(case["parameters"])
        return GenerationConfig(
            **(self.defaults if parameters.pop("defaults", False) else {}), **parameters
        )

    def same(self, case, sequences, scores):
        """Return whether tokens and scores equal a case's.

        Golden cases have the same tokens in float32 and float64.
        """
        generation = self.settings(case)
        real = np.not_equal(case["sequences"], generation.pad_token_id)
        # A sum of log-probabilities, each with the error of a logit, over a power of the length.
        lengths = np.count_nonzero(real, axis=-1) ** (1 - generation.length_penalty)
        error = np.abs(scores - np.asarray(case.get("scores", scores)))
        allowed = self.allowed("logits")[case["row"]].item() * lengths
        return sequences == case["sequences"] and (error <= allowed).all()

    def wrong(self, step, start):
        """Return the cases with other results.

        `start(row, generation)` returns the initial state for `step`. Cases are sorted by the
        buffers that an engine needs.
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
