"""What an artifact generates with, and the lines that say whose these settings are."""

import dataclasses

import pytest
from support.edited_checkpoints import CASES, copy, edit_json

from bart_export import presets
from bart_export.checkpoints import resolve
from bart_export.checkpoints.resolve import resolve_preset
from bart_export.config import GenerationConfig
from bart_export.errors import CheckpointError, ConfigurationError

TASKS = CASES / "task-specific-params"


@pytest.fixture
def directory(tmp_path):
    return copy(tmp_path / "bart")


def defaults(directory, task=None):
    found = resolve_preset(str(directory), task).defaults
    assert all("\n" not in note for note in found.notes)
    return found


def test_a_length_beyond_the_positions_is_brought_within_them():
    found = defaults(CASES / "max-length-beyond-positions")
    assert found.generation.max_length == 32
    line = "max_length=41 of generation_config.json is beyond the model's 32 positions; it is 32."
    assert line in found.notes
    assert found.notes[0].startswith("Settings: max_length=41 from generation_config.json; nobody")


def test_a_shortest_length_beyond_the_positions_is_brought_within_them(directory):
    lengths = {"max_length": 142, "min_length": 100}
    edit_json(directory / "generation_config.json", **lengths)
    generation = defaults(directory).generation
    assert (generation.min_length, generation.max_length) == (64, 64)


def test_a_shortest_length_above_a_longest_that_nobody_states_is_lowered(directory):
    edit_json(directory / "generation_config.json", min_length=56)
    found = defaults(directory)
    assert found.generation.min_length == found.generation.max_length == 20
    assert any(note.startswith("min_length=56 is above max_length=20") for note in found.notes)


def test_settings_of_a_task_are_left_alone_with_a_line_unless_asked_for():
    found = defaults(TASKS)
    assert found.generation == GenerationConfig(forced_eos_token_id=2)
    assert "nobody states max_length=20, min_length=0, num_beams=1" in found.notes[0]
    assert any("--task summarization takes them" in note for note in found.notes)


def test_settings_of_a_task_are_those_of_config_json():
    found = defaults(TASKS, "summarization")
    assert found.generation == GenerationConfig(
        num_beams=4,
        max_length=30,
        min_length=10,
        length_penalty=2.0,
        early_stopping=True,
        forced_eos_token_id=2,
    )
    assert found.notes[0].startswith(
        "Settings: max_length=30, min_length=10, num_beams=4, length_penalty=2.0, "
        "early_stopping=true from config.json for summarization; nobody states "
    )
    assert not any("--task" in note for note in found.notes)


def test_a_task_goes_before_generation_config_json(directory):
    edit_json(directory / "generation_config.json", num_beams=3, no_repeat_ngram_size=2)
    edit_json(directory / "config.json", task_specific_params={"qa": {"num_beams": 5}})
    generation = defaults(directory, "qa").generation
    assert (generation.num_beams, generation.no_repeat_ngram_size) == (5, 2)
    assert defaults(directory).generation.num_beams == 3


@pytest.mark.parametrize(
    ("tasks", "said", "error"),
    [
        (..., 'received "qa". It has: none', ConfigurationError),
        ("qa", 'received "qa". It has: none', ConfigurationError),
        ({"qa": 3, "sum": {}}, 'received "qa". It has: sum', ConfigurationError),
        ({"qa": {"num_beams": "4"}}, "num_beams must be an integer", CheckpointError),
        ({"qa": {"eos_token_id": 5000}}, "eos_token_id must be in 0 to 1023", CheckpointError),
        ({"qa": {"bad_words_ids": [[5]]}}, "bad_words_ids=[[5]]", CheckpointError),
    ],
)
def test_a_task_that_cannot_be_followed_is_refused(directory, tasks, said, error):
    edit_json(directory / "config.json", task_specific_params=tasks)
    with pytest.raises(error) as refused:
        defaults(directory, "qa")
    assert said in str(refused.value)
    assert "config.json" in str(refused.value)


def test_a_prefix_that_is_not_put_before_texts_is_told(directory):
    assert any('the prefix " ", which' in note for note in defaults(TASKS).notes)
    tasks = {"summarization": {"prefix": "summarize: "}}
    edit_json(directory / "config.json", prefix="", task_specific_params=tasks)
    assert not any("the prefix" in note for note in defaults(directory).notes)
    told = defaults(directory, "summarization").notes
    (note,) = (note for note in told if 'the prefix "summarize: ", which' in note)
    assert note.endswith('nor does the artifact. For what a pipeline writes begin each text with '
                         '"summarize: ".')  # fmt: skip


def test_what_the_checkpoint_states_goes_before_what_is_known(tmp_path):
    known = presets.PRESETS["bart_large_en_cnn"].generation
    source = resolve.Source("kaggle://keras/bart/keras/bart_large_en_cnn", "3", tmp_path, known)
    stating = resolve.read(copy(tmp_path / "stating"))
    config = dataclasses.replace(stating.config, max_sequence_length=1024)
    stating = dataclasses.replace(stating, config=config)
    silent = dataclasses.replace(stating, settings=None)
    assert resolve.defaults(source, stating).generation == stating.generation
    assert resolve.defaults(source, silent).generation == known
    line = resolve.defaults(source, silent).notes[0]
    assert "max_length=142, min_length=56, num_beams=4" in line
    assert line.endswith("from the preset's original checkpoint.")
    nothing = resolve.Source("mine", None, tmp_path, None)
    found = resolve.defaults(nothing, silent)
    assert found.generation == GenerationConfig()
    assert found.notes[0].startswith("Settings: nobody states max_length=20, min_length=0")


def test_the_embedded_preset_states_its_own():
    source = resolve.find("bart_mini_en")
    checkpoint = resolve.read(source.directory)
    found = resolve.defaults(source, checkpoint)
    assert found.generation == checkpoint.generation
    assert len(found.notes) == 1
