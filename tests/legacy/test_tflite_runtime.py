"""An artifact on tflite-runtime 2.14, without TensorFlow: `make test-legacy` runs this.

BART_EXPORT_ARTIFACT names an artifact of bart_mini_en that has every recipe, exported elsewhere. If
the variable is set, nothing is skipped.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from bart_export.artifact.artifact import Artifact
from bart_export.config import GenerationConfig
from bart_export.errors import EngineError
from bart_export.recipes.table import RECIPES, TFLITE_RUNTIME
from bart_export.runtime.generator import Generator
from bart_export.runtime.interpreter import InterpreterBackend, open_interpreter
from bart_export.runtime.search import run, search

if "BART_EXPORT_ARTIFACT" not in os.environ:
    pytest.skip("only `make test-legacy` exports for tflite-runtime", allow_module_level=True)

ARTIFACT = pathlib.Path(os.environ["BART_EXPORT_ARTIFACT"])
RIGHT = {recipe.name: recipe.runtimes for recipe in RECIPES.values()}
# Recipe -> what tflite-runtime says of an operator that it does not have.
UNABLE = {
    "dynamic_wi4_afp32": r"Type not currently supported.*EMBEDDING_LOOKUP",
    "static_wi8_ai16": r"INT16 is unsupported by op Rsqrt",
}
# What rounding to float16 changes a weight by, as a share of it.
FLOAT16_UNIT = 2.0**-11
CASES = json.loads((ARTIFACT / "golden.json").read_bytes())["cases"]


def engine_of(recipe):
    """Return an engine for a recipe's file, past the rules about who may open what."""
    return open_interpreter(
        ARTIFACT / "tflite" / f"{recipe}.tflite", Artifact.open(ARTIFACT).config, num_threads=1
    )


@pytest.fixture(scope="module")
def expected():
    """Return what float32 says, which has a test of its own."""
    return forced_logits(engine_of("float32"))


def forced_logits(engine):
    """Return the logits (tokens, vocabulary) along the answers that the golden file expects."""
    rows = []
    row_of_beam = np.zeros(1, np.int32)
    for case in CASES:
        token_ids = case["reference"]["token_ids"]
        state = engine.start(case["source_token_ids"], 1, len(token_ids))
        for token in token_ids[:-1]:
            logits, state = engine.step(state, np.array([token], np.int32), row_of_beam)
            rows.append(logits[0])
    return np.stack(rows)


def relative_error(logits, expected):
    spread = expected - expected.mean(axis=1, keepdims=True)
    return np.sqrt(np.square(logits - expected).mean() / np.square(spread).mean())


def test_float32_gives_the_golden_answers_token_for_token():
    generator = Generator.from_artifact(ARTIFACT, recipe="float32", engine=TFLITE_RUNTIME)
    assert isinstance(generator.engine.backend, InterpreterBackend)
    for case in CASES:
        generation = GenerationConfig.from_dict(case["generation"])
        state = generator.engine.start(
            case["source_token_ids"], generation.num_beams, generation.max_length
        )
        best = run(search(generation), generator.engine.step, state)[0]
        expected = case["files"]["tflite/float32.tflite"]
        assert list(best.token_ids) == expected["token_ids"]
        assert generator.tokenizer.detokenize(best.token_ids) == expected["text"]
        assert best.score == pytest.approx(expected["score"], abs=1e-3)


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if TFLITE_RUNTIME in RIGHT[name] and name != "float32"]
)
def test_a_recipe_it_may_run_is_computed_within_the_recipes_tolerance(expected, name):
    logits = forced_logits(engine_of(name))
    tolerance = RECIPES[name].tolerance
    # Its kernels round activations more coarsely than LiteRT's, but far within the bounds.
    assert relative_error(logits, expected) < tolerance.get("relative", FLOAT16_UNIT)
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= tolerance["top1"]


@pytest.mark.parametrize("name", [name for name in RECIPES if TFLITE_RUNTIME not in RIGHT[name]])
def test_a_recipe_it_may_not_run_cannot_be_computed_or_comes_out_wrong(expected, name):
    reason = RECIPES[name].refusals[TFLITE_RUNTIME]
    if name in UNABLE:
        with pytest.raises(EngineError, match=UNABLE[name]):
            forced_logits(engine_of(name))
    else:
        assert "silently computes wrong results" in reason
        assert relative_error(forced_logits(engine_of(name)), expected) > 0.5
    with pytest.raises(EngineError, match=re.escape(f"received tflite-runtime 2.14.0: {reason}")):
        Generator.from_artifact(ARTIFACT, recipe=name, engine=TFLITE_RUNTIME)


def test_without_a_recipe_a_file_is_taken_that_this_runtime_computes_rightly():
    right = [name for name in RECIPES if TFLITE_RUNTIME in RIGHT[name]]
    scores = [
        Generator.from_artifact(ARTIFACT, recipe=recipe, engine=TFLITE_RUNTIME)
        .generate(CASES[0]["text"])
        .score
        for recipe in (None, *right)
    ]
    assert scores[0] in scores[1:]


def test_the_command_line_generates_without_a_word_on_standard_error_and_without_tensorflow():
    text = CASES[0]["text"]
    generator = Generator.from_artifact(ARTIFACT, recipe="float32", engine=TFLITE_RUNTIME)
    arguments = ["generate", str(ARTIFACT), text, "--recipe", "float32", "--engine", TFLITE_RUNTIME]
    program = (
        "import sys; sys.modules.update(tensorflow=None, keras=None);"
        f"from bart_export.cli.main import main; main({arguments!r})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip() == generator.generate(text).text
