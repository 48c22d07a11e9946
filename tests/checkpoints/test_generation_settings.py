"""Generation settings of checkpoints."""

import pytest
from support.edited_checkpoints import edit_json
from support.paths import DISTILLED, SYMMETRIC

from bart_export.checkpoints import resolve
from bart_export.config import GenerationConfig
from bart_export.errors import CheckpointError


def settings(directory):
    return resolve.read(directory, weights=False).generation


def test_settings_come_from_generation_config_json():
    assert settings(DISTILLED) == GenerationConfig(
        max_length=22,
        min_length=6,
        num_beams=4,
        length_penalty=2.0,
        no_repeat_ngram_size=3,
        early_stopping=True,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
    )
    assert settings(SYMMETRIC) == GenerationConfig()  # left out: transformers' defaults


def test_settings_of_older_checkpoints_come_from_config_json(directory):
    (directory / "generation_config.json").unlink()
    stated = {"num_beams": 4, "max_length": 142, "min_length": 56, "length_penalty": 2.0}
    edit_json(
        directory / "config.json",
        **stated,
        force_bos_token_to_be_generated=True,
        forced_eos_token_id=...,
        task_specific_params={"summarization": {"num_beams": 6, "max_length": 99}},
    )
    forced = {"forced_bos_token_id": 0, "forced_eos_token_id": 2}
    assert settings(directory) == GenerationConfig(**stated, **forced)


def test_config_json_supplies_only_missing_token_ids(directory):
    edit_json(directory / "config.json", num_beams=7, decoder_start_token_id=0)
    edit_json(directory / "generation_config.json", decoder_start_token_id=...)
    found = settings(directory)
    assert (found.num_beams, found.decoder_start_token_id) == (1, 0)


@pytest.mark.parametrize(
    ("stated", "means"),
    [
        ({"eos_token_id": [2]}, {"eos_token_id": 2}),
        ({"eos_token_id": [2, 5]}, {"eos_token_id": (2, 5)}),
        ({"max_new_tokens": 30}, {"max_length": 31}),
        ({"max_new_tokens": 30, "max_length": 99}, {"max_length": 31}),
        ({"min_new_tokens": 5}, {"min_length": 6}),
        ({"num_beams": None, "top_p": None}, {}),
        ({"early_stopping": "never"}, {"early_stopping": "never"}),
        ({"num_beam_groups": 1, "diversity_penalty": 0.0, "bad_words_ids": None}, {}),
        ({"typical_p": 0.5}, {}),
        ({"_from_model_config": True, "transformers_version": "4.0", "use_cache": True}, {}),
    ],
)
def test_stored_settings_are_converted(directory, stated, means):
    edit_json(directory / "generation_config.json", **stated)
    assert settings(directory) == GenerationConfig(**means)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"bad_words_ids": [[5]]}, "bad_words_ids=[[5]], which is not implemented"),
        ({"suppress_tokens": [7]}, "suppress_tokens=[7]"),
        ({"num_beam_groups": 2, "diversity_penalty": 0.5}, "diversity_penalty=0.5, num_beam_g"),
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6"),
        ({"encoder_no_repeat_ngram_size": 3}, "encoder_no_repeat_ngram_size=3"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p=0.5"),
        ({"eos_token_id": [2, -5]}, "eos_token_id must be an integer of at least 0, received [2,"),
        ({"num_beams": 0}, "num_beams must be an integer of at least 1"),
        ({"num_beams": "4"}, "num_beams must be an integer"),
        ({"length_penalty": "long"}, "length_penalty must be a finite number"),
        ({"do_sample": True, "num_beams": 4}, "needs num_beams=1"),
        ({"eos_token_id": [2, 1024]}, "eos_token_id must be a token id from 0 to 1023"),
        ({"early_stopping": "maybe"}, 'must be true, false or "never", received "maybe"'),
        ({"num_beams": 10**9}, "num_beams must be at most"),
        ({"max_new_tokens": [3]}, "max_new_tokens"),
    ],
)
def test_unusable_settings_are_rejected(directory, stated, said):
    edit_json(directory / "generation_config.json", **stated)
    with pytest.raises(CheckpointError) as refused:
        settings(directory)
    assert said in str(refused.value)
    assert "generation_config.json" in str(refused.value)
