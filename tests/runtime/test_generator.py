"""The Generator: its results, streams and errors."""

import dataclasses
import gc
import json
from pathlib import Path

import numpy as np
import pytest

from bart_export.config import TEXT_OPTIONS
from bart_export.errors import BartExportError, ConfigurationError, InputError
from bart_export.runtime.generator import Generator

CASES = Path(__file__).parents[1] / "data/cases"
HEADLINES = Path(__file__).parents[1] / "data/mini_model/headlines_4_beams.jsonl"
ROWS = [json.loads(line) for line in HEADLINES.read_text(encoding="utf-8").splitlines()]
TEXTS = [row["text"] for row in ROWS]
SHORT = min(TEXTS, key=len)
# Of other scripts and characters of several bytes, which a random continuation breaks apart.
MIXED = "Überraschung: 文字 and a 🐈 — naïve café, in " + SHORT


@pytest.fixture(scope="module")
def generator(mini_artifact):
    return Generator.from_artifact(mini_artifact.directory, recipe="float32", num_threads=1)


SETTINGS = [
    {},
    {"num_beams": 1},
    {"num_beams": 2, "early_stopping": False, "length_penalty": 2.0},
    {"num_beams": 3, "early_stopping": "never", "no_repeat_ngram_size": 0, "max_length": 40},
    {"num_beams": 1, "min_length": 30, "max_length": 40},
    {"num_beams": 4, "min_length": 20, "repetition_penalty": 1.5},
    {"num_beams": 1, "do_sample": True, "seed": 1, "top_k": 0, "max_length": 60},
    {"num_beams": 1, "do_sample": True, "seed": 2, "temperature": 3.0, "min_length": 50,
     "max_length": 60},
    {"num_beams": 1, "do_sample": True, "seed": 3, "num_return_sequences": 3},
    {"max_length": 2},
]  # fmt: skip


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
@pytest.mark.parametrize("text", [SHORT, MIXED], ids=["plain", "mixed"])
def test_pieces_of_a_stream_are_the_generated_text(generator, text, parameters):
    pieces = list(generator.stream(text, **parameters))
    assert "".join(pieces) == generator.generate(text, **parameters).text
    assert all(pieces)


def test_a_stream_that_ends_within_a_character_gives_what_is_left(generator, mini_artifact):
    vocabulary = json.loads(mini_artifact.path("tokenizer/vocabulary.json").read_bytes())
    first_of_four = vocabulary["\N{LATIN SMALL LETTER ETH}"]  # stands for the byte F0
    parameters = {
        "num_beams": 1, "max_length": 2, "forced_bos_token_id": first_of_four,
        "forced_eos_token_id": None,
    }  # fmt: skip
    assert generator.generate(SHORT, **parameters).text == "\N{REPLACEMENT CHARACTER}"
    assert list(generator.stream(SHORT, **parameters)) == ["\N{REPLACEMENT CHARACTER}"]


def test_settings_are_the_artifacts_and_a_call_goes_on_top(generator):
    assert generator.generation.num_beams == 4
    plain = generator.generate(SHORT)
    assert plain.token_ids == generator.generate(SHORT, num_beams=4, max_length=32).token_ids
    assert len(generator.generate(SHORT, max_length=6).token_ids) == 6
    assert len(generator.generate(SHORT).token_ids) == len(plain.token_ids)


def test_a_result_says_what_it_is_made_of(generator):
    result = generator.generate(SHORT, num_return_sequences=3)
    assert len(result.sequences) == 3
    assert result.sequences[0].text == result.text
    scores = [sequence.score for sequence in result.sequences]
    assert scores == sorted(scores, reverse=True)
    assert len({sequence.token_ids for sequence in result.sequences}) == 3
    for sequence in result.sequences:
        shown = generator.tokenizer.detokenize(sequence.token_ids)
        assert sequence.text == shown.removeprefix(" ")
    assert list(result.source_token_ids) == generator.tokenizer.encode(SHORT, 160)
    assert result.token_ids[0] == generator.generation.decoder_start_token_id
    timings = result.timings
    assert timings.tokens == len(result.token_ids) - 1
    assert timings.encode > 0
    assert timings.tokens_per_second == timings.tokens / timings.decode > 0


def test_a_text_does_not_begin_with_the_space_that_says_that_a_word_begins(generator):
    ids = generator.tokenizer.vocabulary
    parameters = {
        "num_beams": 1, "max_length": 3, "forced_bos_token_id": ids["Ġa"],
        "forced_eos_token_id": ids["Ġthe"],
    }  # fmt: skip
    assert generator.generate(SHORT, **parameters).text == "a the"
    assert "".join(generator.stream(SHORT, **parameters)) == "a the"


def test_a_mask_in_a_text_is_a_token_when_it_is_asked_for(generator):
    text = (CASES / "mask-infilling/text.txt").read_text(encoding="utf-8").strip()
    mask = generator.tokenizer.mask_token_id
    plain = generator.generate(text, max_length=8)
    filled = generator.generate(text, special_tokens=True, max_length=8)
    before, after = text.split(" <mask>")
    tokenize = generator.tokenizer.tokenize
    assert list(filled.source_token_ids) == [0, *tokenize(before), mask, *tokenize(after), 2]
    assert mask not in plain.source_token_ids
    pieces = generator.stream(text, special_tokens=True, max_length=8)
    assert "".join(pieces) == filled.text


def test_several_texts_give_a_result_each(generator):
    together = generator.generate([SHORT, MIXED, SHORT])
    assert [one.token_ids for one in together] == [
        generator.generate(text).token_ids for text in (SHORT, MIXED, SHORT)
    ]
    assert generator.generate([]) == []


def test_a_text_too_long_is_an_error_unless_it_may_be_cut(generator):
    text = " ".join(TEXTS)
    with pytest.raises(InputError, match="160"):
        generator.generate(text)
    with pytest.raises(InputError, match="160"):
        generator.stream(text)
    cut = generator.generate(text, truncate=True)
    assert len(cut.source_token_ids) == 160
    assert cut.source_token_ids[-1] == generator.tokenizer.end_token_id
    assert "".join(generator.stream(text, truncate=True)) == cut.text
    short = generator.generate(SHORT, truncate=True)
    streamed = [generator.stream(one, truncate=True).drain() for one in (text, SHORT)]
    assert [one.truncated for one in (cut, short, *streamed)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({"num_beam": 2}, ConfigurationError, "Did you mean num_beams"),
        ({"max_length": 513}, InputError, "512 positions, received 513"),
        ({"top_k": 5}, ConfigurationError, "do_sample=true"),
        ({"num_return_sequences": 5}, ConfigurationError, "num_beams"),
        ({"eos_token_id": 8192, "min_length": 5}, ConfigurationError, "eos_token_id .* 0 to 8191"),
        ({"decoder_start_token_id": 9999}, ConfigurationError, "decoder_start_token_id"),
        ({"forced_bos_token_id": 9999}, ConfigurationError, "forced_bos_token_id"),
    ],
)
def test_parameters_out_of_range_are_refused(generator, parameters, error, words):
    with pytest.raises(error, match=words):
        generator.generate(SHORT, **parameters)
    with pytest.raises(error, match=words):
        list(generator.stream(SHORT, **parameters))


@pytest.mark.parametrize("value", ["yes", "", 1, 0.0, None, np.True_, np.array([1, 2])])
def test_an_option_that_is_no_bool_is_refused(generator, value):
    for name in TEXT_OPTIONS:
        for use in (generator.generate, generator.stream, lambda it, **options:
                    generator.generate_iter([it], **options)):  # fmt: skip
            with pytest.raises(ConfigurationError, match=f"^{name} must be true or false, rec"):
                use(SHORT, **{name: value})
    with pytest.raises(ConfigurationError, match="^return_exceptions must be true or false, rec"):
        generator.generate_iter([SHORT], return_exceptions=value)


WRONG = (b"x", 1.5, True, -1, 10**5000, np.array([1, 2]), ["float32"])


@pytest.mark.parametrize(
    "name", ["tokenizer", "engine", "generation", "encoder_sequence_length", "source",
             "max_batch_size", "memory_budget"],
)  # fmt: skip
def test_a_generator_is_made_of_what_it_needs(generator, name):
    parts = dict(tokenizer=generator.tokenizer, engine=generator.engine,
                 generation=generator.generation, encoder_sequence_length=160)  # fmt: skip
    for value in (*WRONG, None):
        with pytest.raises(ConfigurationError, match=f"^{name} must be .*, received "):
            Generator(**{**parts, name: value})


@pytest.mark.parametrize("name", ["location", "revision", "recipe", "shapes", "engine"])
def test_an_artifact_is_opened_with_names(mini_artifact, name):
    for value in WRONG:
        with pytest.raises(ConfigurationError, match=rf"{name}\b.* must be .*, received "):
            Generator.from_artifact(**{"location": mini_artifact.directory, name: value})
    with pytest.raises(BartExportError):
        Generator.from_artifact(**{"location": mini_artifact.directory, name: "a\0b"})


def test_the_scalars_of_numpy_are_numbers(generator):
    settings = dict(num_beams=2, max_new_tokens=8, length_penalty=0.5, repetition_penalty=1.25)
    scalars = {
        name: np.float64(value) if isinstance(value, float) else np.uint8(value)
        for name, value in settings.items()
    }
    found, expected = (generator.generate(SHORT, **each) for each in (scalars, settings))
    assert found == dataclasses.replace(expected, timings=found.timings)
    parts = generator.tokenizer, generator.engine, generator.generation, np.int64(160)
    other = Generator(*parts, max_batch_size=np.uint8(4), memory_budget=np.int64(9))
    assert type(other.scheduler.max_batch_size) is type(other.scheduler.memory_budget) is int


@pytest.mark.parametrize(
    "token_ids",
    [[], [0, 8192, 2], [-1], [0] * 513, None, 5, "ab", [1.5], [[1], []], [[0, "a"]], [2**70],
     [0, True, 2], np.array(5), np.ones(3)],
)  # fmt: skip
def test_source_ids_the_model_cannot_take_are_refused(generator, token_ids):
    with pytest.raises(InputError):
        generator.generate_ids(token_ids)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
def test_source_ids_may_be_an_array(generator, dtype):
    ids = [0, 8, 9, 10, 2]
    result = generator.generate_ids(np.array(ids, dtype), max_length=8)
    assert result == dataclasses.replace(
        generator.generate_ids(ids, max_length=8), timings=result.timings
    )
    assert json.dumps(result.source_token_ids) == "[0, 8, 9, 10, 2]"
    both = generator.generate_ids(np.array([ids, ids], dtype), max_length=8)
    assert [each.token_ids for each in both] == [result.token_ids] * 2


@pytest.mark.parametrize("text", [[b"bytes"], b"bytes", {"a": 1}, None, 5, 1.5, [None], [["a"]],
                                  np.array(4), np.array([4])])  # fmt: skip
def test_a_text_that_is_none_is_refused(generator, text):
    with pytest.raises(InputError, match="must be a str"):
        generator.generate(text)
    with pytest.raises(InputError, match="must be a str"):
        generator.stream(text)


def resident_bytes():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_memory_stays_flat_over_many_generations(generator):
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")

    def generate(times):
        for number in range(times):
            generator.generate(
                TEXTS[number % 50],
                truncate=True,
                num_beams=1 + number % 4,
                max_length=3 + number % 8,
            )

    generate(60)
    before = resident_bytes()
    generate(200)
    # A set of buffers is megabytes: one left behind at each resize would be hundreds.
    assert resident_bytes() - before < 20e6
