"""Drafts in greedy search: guesses from the source that change no result."""

import pytest

from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError
from bart_export.recipes.table import LITERT
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.drafts import PromptLookup
from bart_export.runtime.interpreter import open_interpreter
from bart_export.runtime.scheduler import Scheduler, Task

SOURCE = [0, 5, 9, 13, 21, 8, 8, 30, 2]
GREEDY = dict(
    max_length=40, decoder_start_token_id=2, bos_token_id=0, pad_token_id=1, eos_token_id=39
)


@pytest.fixture(scope="module", params=["compiled", "interpreter"])
def engine(request, roomy_file, roomy_config):
    if request.param == "compiled":
        return open_compiled_model(roomy_file, roomy_config, num_threads=1)
    return open_interpreter(roomy_file, roomy_config, num_threads=1, interpreter=LITERT)


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
        at = len(lookup.texts[1]) + 1
        return DRAFTS[kind](expected.token_ids, at)

    monkeypatch.setattr(PromptLookup, "draft", draft)
    found, steps = generate(engine, prompt_lookup_num_tokens=10, **settings)
    assert found.token_ids == expected.token_ids
    assert found.score == pytest.approx(expected.score, abs=1e-3)
    passes = {"right": -(-usual // 5), "up to the end": 1}
    assert steps == passes.get(kind, steps)
    assert (steps == usual) == (kind in ("wrong", "now and then"))


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


def test_drafts_begin_once_guesses_are_right_and_end_once_they_are_wrong():
    found = lookup([5, 9])
    assert found.draft() == ()
    found.add(13)
    found.add(21)
    assert found.draft() == (8, 8, 30, 2)
    for other in (35, 36, 37, 38):
        found.add(5)
        found.add(other)
    found.add(5)
    assert found.guess == [9, 13, 21, 8, 8, 30, 2]
    assert found.draft() == ()


def test_a_number_of_tokens_out_of_range_is_refused():
    with pytest.raises(ConfigurationError, match="prompt_lookup_num_tokens must be at most 64"):
        GenerationConfig(prompt_lookup_num_tokens=65)
