"""bart_mini_en on emulated ARM processors, compared with this one: `make test-arm` runs this.

BART_EXPORT_ARTIFACT names an artifact of bart_mini_en that has every recipe, BART_EXPORT_ARM the
output of tools/arm_root.py, and BART_EXPORT_LEGACY_PYTHON a Python with tflite-runtime. If they are
set, nothing is skipped. The last test prints the figures for docs/benchmarks.md.
"""

import dataclasses
import itertools
import json
import operator
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bart_export.artifact.artifact import Artifact
from bart_export.recipes.table import DEFAULT, LITERT, RECIPES, TFLITE_RUNTIME
from bart_export.runtime.generator import Generator
from bart_export.text.tokenizer import BartTokenizer, generated_text

if "BART_EXPORT_ARM" not in os.environ:
    pytest.skip("only `make test-arm` prepares emulated processors", allow_module_level=True)

ROOT = Path(__file__).parents[2]
ARTIFACT = Path(os.environ["BART_EXPORT_ARTIFACT"])
ARM = Path(os.environ["BART_EXPORT_ARM"])
PYTHONS = {LITERT: sys.executable, TFLITE_RUNTIME: os.environ["BART_EXPORT_LEGACY_PYTHON"]}
HEADLINES = ROOT / "tests/data/mini_model/headlines_4_beams.jsonl"
ROWS = [json.loads(line) for line in HEADLINES.read_text(encoding="utf-8").splitlines()]
HERE = "this processor"
# (processor, engine) -> recipe -> number of headlines. qemu emulates floats slowly, and a file with
# float16 or weight-only int8 is computed in float32.
RUNS = {
    ("neoverse-n1", LITERT): {
        "dynamic_wi8_afp32": 100, "float32": 8, "float16": 0, "dynamic_wi8_afp32_tensorwise": 8,
        "dynamic_wi4_afp32": 8, "static_wi8_ai8": 8,
    },
    ("cortex-a72", LITERT): {"dynamic_wi8_afp32": 100, "float32": 0, "dynamic_wi4_afp32": 8},
    ("neoverse-n1", TFLITE_RUNTIME): {"float32": 0},
    ("cortex-a15", TFLITE_RUNTIME): {"dynamic_wi8_afp32_tensorwise": 4},
}  # fmt: skip
PAIRS = [(*run, recipe) for run, recipes in RUNS.items() for recipe in recipes]
every_pair = pytest.mark.parametrize(("processor", "engine", "recipe"), PAIRS)

# The share of a recipe's tolerance that another processor may take: float32 kernels add in another
# order, and integer kernels also round activations differently.
SHARE = 1 / 3
SAME_FLOATS = 1e-4
# By how many nats per token an answer may be less likely than that of this processor.
LESS_LIKELY = 0.5


@dataclasses.dataclass(frozen=True)
class Answers:
    """What `answers.py` wrote: pairs of token ids and score, and logits (tokens, vocabulary)."""

    sources: list
    golden: list
    headlines: list
    logits: np.ndarray

    @property
    def all(self):
        return self.golden + self.headlines


def python_of(processor, engine):
    return PYTHONS[engine] if processor == HERE else ARM / f"{processor}-{engine}"


@pytest.fixture(scope="session")
def answers(tmp_path_factory):
    """Return `answers_of(processor, engine, recipe)`; all are computed at once, two at a time."""
    place = tmp_path_factory.mktemp("answers")
    texts = place / "texts.json"
    texts.write_text(json.dumps([row["text"] for row in ROWS]))
    counts = {pair: RUNS[pair[:2]][pair[2]] for pair in PAIRS}
    for _, engine, recipe in PAIRS:
        counts[HERE, engine, recipe] = len(ROWS)

    def compute(pair):
        processor, engine, recipe = pair
        output = place / f"{processor}-{engine}"
        output.mkdir(exist_ok=True)
        command = [python_of(processor, engine), Path(__file__).with_name("answers.py"), ARTIFACT,
                   engine, texts, output, f"{recipe}:{counts[pair]}"]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{pair}: {done.stderr[-2000:]}"
        written = json.loads((output / f"{recipe}.json").read_bytes())
        return Answers(**written, logits=np.load(output / f"{recipe}.npy"))

    with ThreadPoolExecutor(2) as pool:
        computed = dict(zip(counts, pool.map(compute, counts), strict=True))
    return lambda *pair: computed[pair]


def relative_error(logits, expected):
    spread = expected - expected.mean(axis=1, keepdims=True)
    return np.sqrt(np.square(logits - expected).mean() / np.square(spread).mean())


@every_pair
def test_logits_are_those_of_this_processor(answers, processor, engine, recipe):
    there, here = answers(processor, engine, recipe), answers(HERE, engine, recipe)
    floats = RECIPES[recipe].mode == "float" or recipe == "float16"
    bound = SAME_FLOATS if floats else SHARE * RECIPES[recipe].tolerance["relative"]
    assert relative_error(there.logits, here.logits) < bound


@every_pair
def test_answers_are_the_same_or_about_as_likely(answers, processor, engine, recipe):
    there, here = answers(processor, engine, recipe), answers(HERE, engine, recipe)
    assert len(there.golden) == 9
    assert len(there.headlines) == RUNS[processor, engine][recipe]
    losses = list(less_likely(recipe, there, here))
    if RECIPES[recipe].mode == "float":
        assert losses == []
    assert max(losses, default=0) < LESS_LIKELY


def less_likely(recipe, there, here):
    """Yield by how many nats per token each answer that differs is less likely, computed here."""
    with Generator.from_artifact(ARTIFACT, recipe=recipe, engine=LITERT) as generator:
        for source, answer, expected in zip(there.sources, there.all, here.all, strict=False):
            if answer[0] != expected[0]:
                both = (
                    likelihood(generator.engine, source, ids) for ids in (expected[0], answer[0])
                )
                yield operator.sub(*both)


def likelihood(engine, source, token_ids):
    """Return the mean log-probability of an answer's tokens."""
    state, total = engine.start(source, 1, len(token_ids)), 0.0
    for token, following in itertools.pairwise(token_ids):
        logits, state = engine.step(state, np.array([token], np.int32), np.zeros(1, np.int32))
        total += logits[0, following] - np.logaddexp.reduce(logits[0].astype(np.float64))
    return total / (len(token_ids) - 1)


def right_headlines(answers, processor):
    """Return how many of 100 headlines of the default recipe are transformers' in float32."""
    tokenizer = BartTokenizer.from_artifact(Artifact.open(ARTIFACT))
    written = [
        generated_text(tokenizer, ids) for ids, _ in answers(processor, LITERT, DEFAULT).headlines
    ]
    return sum(text == row["headline"] for text, row in zip(written, ROWS, strict=True))


@pytest.mark.parametrize("processor", ["neoverse-n1", "cortex-a72"])
def test_as_many_headlines_of_the_default_recipe_are_right(answers, processor):
    assert abs(right_headlines(answers, processor) - right_headlines(answers, HERE)) <= 4


def test_figures_for_the_documentation(answers, capsys):
    with capsys.disabled():
        print()
        for processor, engine, recipe in PAIRS:
            there, here = answers(processor, engine, recipe), answers(HERE, engine, recipe)
            golden, headlines = (
                f"{sum(a[0] == b[0] for a, b in zip(*pair, strict=False))} of {len(pair[0])}"
                for pair in ((there.golden, here.golden), (there.headlines, here.headlines))
            )
            error, losses = (
                relative_error(there.logits, here.logits),
                less_likely(recipe, there, here),
            )
            assert error > 0, "this is the same processor"
            print(f"| {processor}, {engine} | `{recipe}` | {golden} | {headlines} | {error:.1e} | "
                  f"{max(losses, default=0):.2f} |")  # fmt: skip
        for processor in (HERE, "neoverse-n1", "cortex-a72"):
            print(f"{processor}: {right_headlines(answers, processor)} right headlines")
