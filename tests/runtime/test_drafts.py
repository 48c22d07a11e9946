"""Drafts in greedy search: guesses from the source that change no result."""

import json
from pathlib import Path

import pytest

from bart_export import contract
from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.errors import ConfigurationError
from bart_export.recipes.table import LITERT
from bart_export.runtime.batch import Batch
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.drafts import PromptLookup
from bart_export.runtime.generator import Generator
from bart_export.runtime.interpreter import open_interpreter
from bart_export.runtime.scheduler import Scheduler, Task

HEADLINES = Path(__file__).parents[2] / "tools/mini_model/test.jsonl"
SOURCE = [0, 5, 9, 13, 21, 8, 8, 30, 2]
GREEDY = dict(
    max_length=40, decoder_start_token_id=2, bos_token_id=0, pad_token_id=1, eos_token_id=39
)


# The last draft exceeds the capacity of a cache.
SHAPES = StaticShapes((8, 16), GREEDY["max_length"], (1, 2), draft_length=5)


@pytest.fixture(scope="module")
def static_file(roomy_parameters, tmp_path_factory):
    from bart_export.convert import tflite

    path = tmp_path_factory.mktemp("roomy_drafts") / "float32.static.tflite"
    tflite.write_float(roomy_parameters, path, SHAPES)
    return path


@pytest.fixture(scope="module", params=["compiled", "interpreter", "static", "static interpreter"])
def engine(request, roomy_file, static_file, roomy_config):
    static = "static" in request.param
    file, shapes = (static_file, SHAPES) if static else (roomy_file, None)
    opened = file, roomy_config, contract.tflite_buckets(roomy_config, shapes)
    if "interpreter" in request.param:
        return open_interpreter(*opened, num_threads=1, interpreter=LITERT)
    return open_compiled_model(*opened, num_threads=1)


def generate(engine, **settings):
    """Return the hypothesis of a greedy search and the number of steps."""
    scheduler = Scheduler(engine)
    task = scheduler.submit(Task(SOURCE, GenerationConfig(**GREEDY | settings)))
    steps = 0
    while not task.ended:
        scheduler.step()
        steps += 1
    return task.hypotheses[0], steps


DRAFTS = {
    "wrong": lambda expected, at: (3, 4, 5) if expected[at : at + 1] != (3,) else (4,),
    "right": lambda expected, at: expected[at : at + 4],
    "half right": lambda expected, at: (*expected[at : at + 1 + at % 3], 3, 4),
    "now and then": lambda expected, at: (3, 4, 5, 6) if at % 3 == 0 else (),
    "up to the end": lambda expected, at: expected[at:],
}


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 2}, {"min_length": 30}], ids=str)
@pytest.mark.parametrize("kind", DRAFTS)
def test_whatever_is_drafted_the_result_is_greedy_searchs(engine, kind, settings, monkeypatch):
    expected, usual = generate(engine, **settings)

    def draft(lookup):
        at = len(lookup.generated) + 1
        return DRAFTS[kind](expected.token_ids, at)

    monkeypatch.setattr(PromptLookup, "draft", draft)
    found, steps = generate(engine, prompt_lookup_num_tokens=10, **settings)
    assert found.token_ids == expected.token_ids
    assert found.score == pytest.approx(expected.score, abs=1e-3)
    most = min(usual, 1 + engine.sizing.max_draft)
    passes = {"right": -(-usual // 5), "up to the end": -(-usual // most)}
    assert steps == passes.get(kind, steps)
    assert (steps == usual) == (kind in ("wrong", "now and then"))


@pytest.mark.parametrize("engine", ["static"], indirect=True)
def test_a_static_build_drafts_only_with_one_beam_and_a_bucket_for_it(engine):
    sizing = engine.sizing
    bucket = sizing.decode_draft(sizing.decode(1, len(SOURCE), 1, 20), 3)
    assert bucket.name == "decode_draft_16"
    assert bucket.sizes == {"source": 16, "draft": 5, "capacity": 40}
    assert [engine.only(16, beams).sizing.max_draft for beams in (1, 2)] == [4, 0]
    for shapes in (StaticShapes((8,), 40, (1,)), StaticShapes((8,), 40, (2,), draft_length=5)):
        buckets = contract.tflite_buckets(engine.config, shapes)
        assert not [bucket for bucket in buckets if bucket.signature.name == "decode_draft"]


def test_a_bucket_for_drafts_is_no_longer_than_an_output():
    shapes = StaticShapes((8,), 24, (1,))
    lengths = [shapes.drafting(tokens).draft_length for tokens in (0, 1, 10, 64)]
    assert lengths == [0, 2, 11, 23]


def lookup(generated, max_tokens=10):
    found = PromptLookup(SOURCE, max_tokens)
    for token_id in generated:
        found.add(token_id)
    return found


@pytest.mark.parametrize(
    ("generated", "guess"),
    [
        ([], []),
        ([5], [9, 13, 21, 8, 8, 30, 2]),
        ([7], []),
        ([5, 9], [13, 21, 8, 8, 30, 2]),
        ([8, 30], [2]),
        ([30, 2], []),
        ([7, 11, 12, 7, 11], [12, 7, 11]),
        ([5, 9, 7, 5, 9], [13, 21, 8, 8, 30, 2]),
        ([21, 8, 8], [30, 2]),
    ],
)
def test_a_guess_is_what_followed_in_the_source_or_else_in_the_text(generated, guess):
    assert lookup(generated).guess == guess


def test_a_guess_is_at_most_as_long_as_asked():
    assert lookup([5, 9], 3).guess == [13, 21, 8]


def test_drafts_grow_with_right_guesses_and_end_with_wrong_ones():
    found = lookup([5, 9])
    assert found.draft() == ()
    found.add(13)
    assert found.draft() == (21, 8, 8)
    found.add(21)
    assert found.draft() == (8, 8, 30, 2)
    for other in (35, 36, 37, 38):
        found.add(5)
        found.add(other)
    found.add(5)
    assert found.guess == [9, 13, 21, 8, 8, 30, 2]
    assert found.draft() == ()


def test_a_vocabulary_beyond_unicode_can_be_looked_up():
    found = PromptLookup([2**30, 2**30 + 1, 5], 10)
    found.add(2**30)
    assert found.guess == [2**30 + 1, 5]


def test_a_number_of_tokens_out_of_range_is_refused():
    with pytest.raises(ConfigurationError, match="prompt_lookup_num_tokens must be at most 64"):
        GenerationConfig(prompt_lookup_num_tokens=65)


@pytest.mark.slow
def test_drafts_change_no_headline(mini_artifact, monkeypatch):
    lines = HEADLINES.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(texts) == 775
    generator = Generator.from_artifact(mini_artifact.directory, recipe="float32", num_threads=1)
    passes, step = [], Batch.step

    def counted(batch, requests):
        passes[-1] += 1
        return step(batch, requests)

    monkeypatch.setattr(Batch, "step", counted)
    found = []
    for tokens in (0, 10):
        settings = dict(truncate=True, num_beams=1, prompt_lookup_num_tokens=tokens)
        passes.append(0)
        found.append([generator.generate(text, **settings).token_ids for text in texts])
    assert found[0] == found[1]
    assert passes[1] < passes[0]
    together = generator.generate(texts, **settings)
    assert [result.token_ids for result in together] == found[0]
