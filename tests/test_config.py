"""Generation settings, the parameters that change them, and their errors."""

import json

import numpy as np
import pytest

from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import ConfigurationError, last_words, shown

CNN = GenerationConfig(max_length=142, min_length=56, num_beams=4, num_return_sequences=4)


def refusal(make, **values):
    with pytest.raises(ConfigurationError) as refused:
        make(**values)
    line = str(refused.value)
    assert len(line) < 500
    return line


def test_a_limit_that_a_call_leaves_alone_yields_to_what_it_asks():
    assert CNN.replace(max_length=8).min_length == 8
    assert CNN.replace(max_length=60).min_length == 56
    assert CNN.replace(num_beams=2).num_return_sequences == 2
    sampled = GenerationConfig(num_return_sequences=4, do_sample=True)
    assert sampled.replace(num_beams=1).num_return_sequences == 4


def test_limits_that_a_call_states_itself_must_agree():
    assert "min_length=9 and max_length=8" in refusal(CNN.replace, max_length=8, min_length=9)
    assert "min_length=200 and max_length=142" in refusal(CNN.replace, min_length=200)
    more = {"num_beams": 2, "num_return_sequences": 3}
    assert "num_return_sequences=3, num_beams=2" in refusal(CNN.replace, **more)


def test_new_tokens_do_not_count_the_start_token():
    assert CNN.replace(max_new_tokens=8) == CNN.replace(max_length=9)
    assert CNN.replace(max_new_tokens=99, min_new_tokens=7).min_length == 8
    assert CNN.replace(max_new_tokens=None) == CNN
    assert "set the same length" in refusal(CNN.replace, max_new_tokens=8, max_length=9)
    for wrong in (0, True, "8", 2.5):
        assert "max_new_tokens must be an integer" in refusal(CNN.replace, max_new_tokens=wrong)


def test_several_end_tokens_are_a_list_in_json_and_a_single_one_is_a_number():
    several = GenerationConfig(eos_token_id=[2, 50, 2])
    assert several.end_token_ids == (2, 50)
    stored = json.loads(json.dumps(several.to_dict()))
    assert stored["eos_token_id"] == [2, 50]
    assert stored == several.to_dict()
    assert GenerationConfig.from_dict(stored) == several
    assert hash(several) != hash(CNN)
    single = GenerationConfig(eos_token_id=[2])
    assert single == GenerationConfig()
    assert single.to_dict()["eos_token_id"] == 2
    for wrong in ([], [2, "5"], [True], [-1], "2", {"2": 2}):
        assert "eos_token_id must be an integer" in refusal(GenerationConfig, eos_token_id=wrong)


HUGE = 10**5000
SIZES = {"vocabulary_size": 9, "num_layers": 1, "num_heads": 1, "hidden_dim": 8}


WRONG = (
    HUGE, -HUGE, 10**400, float("nan"), float("inf"), "4", [], {}, b"2", np.array([1, 2]), np.True_,
)  # fmt: skip


@pytest.mark.parametrize("name", GenerationConfig().to_dict())
def test_no_value_of_a_generation_breaks_more_than_its_line(name):
    for wrong in WRONG:
        assert f"{name} must be" in refusal(GenerationConfig, **{name: wrong})


@pytest.mark.parametrize("name", BartConfig(**SIZES, intermediate_dim=8).to_dict())
def test_no_value_of_an_architecture_breaks_more_than_its_line(name):
    for wrong in WRONG:
        assert f"{name} must be" in refusal(
            BartConfig, **{**SIZES, "intermediate_dim": 8, name: wrong}
        )


@pytest.mark.parametrize("values", [None, 5, "ab", [1], [("max_length", 5)], {1: 2}])
@pytest.mark.parametrize("config", [BartConfig, GenerationConfig])
def test_a_configuration_is_made_from_a_mapping_of_names(config, values):
    assert "must be a mapping of names to values, received" in refusal(
        config.from_dict, values=values
    )


def test_the_scalars_of_numpy_become_pythons():
    given = {"num_beams": np.int64(4), "eos_token_id": [np.uint8(2), 3], "seed": np.int32(7),
             "length_penalty": np.float32(0.5), "top_p": np.float64(0.5)}  # fmt: skip
    made = GenerationConfig(**given).to_dict()
    assert {name: made[name] for name in given} == {
        "num_beams": 4, "eos_token_id": [2, 3], "seed": 7, "length_penalty": 0.5, "top_p": 0.5,
    }  # fmt: skip
    changed = GenerationConfig(num_beams=4, num_return_sequences=4).replace(
        max_new_tokens=np.uint8(255), num_beams=np.int64(2)
    )
    assert (changed.max_length, changed.num_return_sequences) == (256, 2)
    architecture = {name: np.int64(size) for name, size in SIZES.items()}
    sizes = BartConfig(**architecture, intermediate_dim=8, dropout=np.float32(0.5)).to_dict()
    for value in (*made.values(), *changed.to_dict().values(), *sizes.values()):
        assert type(value) in (int, float, bool, str, list, type(None))


def test_values_are_shown_as_json_writes_them():
    assert [shown(value) for value in (True, None, {"a": "ü"}, 1e400)] == [
        "true", "null", '{"a": "ü"}', "Infinity",
    ]  # fmt: skip
    assert shown("\ud800\n") == '"\\ud800\\n"'
    assert shown("\x9b2J\u2028\u202e") == '"\\u009b2J\\u2028\\u202e"'
    assert shown(HUGE) == shown(object()).replace("object", "int") == "a value of type int"
    assert shown(np.True_) == f"a value of type numpy.{type(np.True_).__name__}"
    assert len(shown("x" * 5000)) < 200


@pytest.mark.parametrize(
    ("said", "exit_code", "words"),
    [
        ("Traceback:\n  File\nbart_export.errors.ArtifactError: x is bad.\n", 1, "x is bad."),
        ("Error: x: no such file.\n", 2, "x: no such file."),
        ("KeyError: 'x'", 1, "KeyError: 'x'"),  # an unexpected error
        ("", 3, "exit code 3"),
        ("half a line", -11, "it was killed by SIGSEGV"),
    ],
)
def test_what_a_process_said_last_has_no_class_of_ours(said, exit_code, words):
    assert last_words(said, exit_code) == words
