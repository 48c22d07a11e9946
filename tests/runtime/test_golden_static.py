"""Static builds give transformers' tokens and scores, from every bucket that a case fits in."""

import numpy as np
import pytest
from support.golden_cases import GOLDEN, MODELS, GoldenCases

from bart_export.checkpoints import resolve
from bart_export.contract import StaticShapes
from bart_export.convert import tflite
from bart_export.graph.parameters import InferenceParameters
from bart_export.runtime.compiled_model import open_compiled_model

# Sources have 20, 13 and 8 tokens: padded little, padded much, not padded. Cases have 1, 2 and 4
# beams and at most 24 tokens, so that all of them fit.
SHAPES = StaticShapes(source_lengths=(8, 24), target_length=24, num_beams=(1, 4))
SAMPLE = 11  # every so many cases are asked of a bucket larger than they need


@pytest.fixture(scope="module", params=MODELS)
def golden(request):
    return request.param, GoldenCases(request.param)


@pytest.fixture(scope="module")
def engine(golden, tmp_path_factory):
    checkpoint = resolve.read(GOLDEN / golden[0])
    config = checkpoint.config
    weights = InferenceParameters(config, lambda name: np.asarray(checkpoint.weights[name]))
    path = tmp_path_factory.mktemp("static") / f"{golden[0]}.tflite"
    tflite.write_float(weights, path, SHAPES)
    return open_compiled_model(path, config, tflite.buckets(config, SHAPES), num_threads=1)


def wrong_cases(cases, engine):
    def start(row, generation):
        return engine.start(cases.source(row).tolist(), generation.num_beams, generation.max_length)

    return cases.wrong(engine.step, start)


def test_every_golden_case_token_for_token_and_its_scores(golden, engine):
    _, cases = golden
    wrong = wrong_cases(cases, engine)
    assert not wrong, f"{len(wrong)} of {len(cases.cases)} cases differ, the first: {wrong[0]}"


def test_a_larger_bucket_than_needed_gives_the_same(golden, engine):
    name, _ = golden
    cases = GoldenCases(name)
    cases.cases = cases.cases[::SAMPLE]
    wrong = wrong_cases(cases, engine.only(SHAPES.source_lengths[-1], SHAPES.num_beams[-1]))
    assert not wrong, f"{len(wrong)} of {len(cases.cases)} cases differ, the first: {wrong[0]}"
