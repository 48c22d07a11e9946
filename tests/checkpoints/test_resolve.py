"""Resolving preset names, and the default settings of artifacts."""

import dataclasses
import json
import re

import pytest
from support.edited_checkpoints import copy, edit_json
from support.paths import CASES

from bart_export import presets
from bart_export.checkpoints import resolve, weight_names
from bart_export.checkpoints.resolve import ResolvedPreset
from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import CheckpointError, ConfigurationError, PresetError

TASKS = CASES / "task-specific-params"


def defaults(directory, task=None):
    found = ResolvedPreset(str(directory), task).defaults
    assert all("\n" not in note for note in found.notes)
    return found


def test_max_length_is_limited_to_the_positions():
    found = defaults(CASES / "max-length-beyond-positions")
    assert found.generation.max_length == 32
    assert found.notes[0].startswith("Settings: max_length=41 from generation_config.json; ")
    assert any("the model's 32 positions; it is lowered to 32." in note for note in found.notes)


@pytest.mark.parametrize(
    ("stated", "lengths"),
    [({"max_length": 142, "min_length": 100}, (64, 64)), ({"min_length": 56}, (20, 20))],
)
def test_min_length_is_limited_to_max_length(directory, stated, lengths):
    edit_json(directory / "generation_config.json", **stated)
    found = defaults(directory)
    assert (found.generation.min_length, found.generation.max_length) == lengths
    lowered = [note.startswith("min_length=56 is above max_length=20") for note in found.notes]
    assert any(lowered) == (stated == {"min_length": 56})


def test_task_settings_are_only_reported_by_default():
    found = defaults(TASKS)
    assert found.generation == GenerationConfig(forced_eos_token_id=2)
    assert "max_length=20, min_length=0, num_beams=1" in found.notes[0]
    assert any("Use --task summarization" in note for note in found.notes)


def test_task_settings_come_from_config_json():
    found = defaults(TASKS, "summarization")
    assert found.generation == GenerationConfig(
        num_beams=4, max_length=30, min_length=10, length_penalty=2.0, early_stopping=True,
        forced_eos_token_id=2,
    )  # fmt: skip
    assert found.notes[0].startswith(
        "Settings: max_length=30, min_length=10, num_beams=4, length_penalty=2.0, "
        "early_stopping=true from config.json for summarization; "
    )
    assert not any("--task" in note for note in found.notes)


def test_task_settings_override_generation_config_json(directory):
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
        (
            {"qa": {"eos_token_id": 5000}},
            "eos_token_id must be a token id from 0 to 1023",
            CheckpointError,
        ),
        ({"qa": {"bad_words_ids": [[5]]}}, "bad_words_ids=[[5]]", CheckpointError),
    ],
)
def test_unusable_tasks_are_rejected(directory, tasks, said, error):
    edit_json(directory / "config.json", task_specific_params=tasks)
    with pytest.raises(error) as refused:
        defaults(directory, "qa")
    assert said in str(refused.value)
    assert "config.json" in str(refused.value)


def test_a_prefix_that_is_ignored_is_reported(directory):
    assert any('the prefix " ", which' in note for note in defaults(TASKS).notes)
    tasks = {"summarization": {"prefix": "summarize: "}}
    edit_json(directory / "config.json", prefix="", task_specific_params=tasks)
    assert not any("the prefix" in note for note in defaults(directory).notes)
    told = defaults(directory, "summarization").notes
    (note,) = (note for note in told if 'the prefix "summarize: ", which' in note)
    assert note.endswith('begin each text with "summarize: ".')


def test_checkpoint_settings_take_precedence_over_the_registry(tmp_path):
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
    assert found.notes[0].startswith("Settings: max_length=20, min_length=0")


def test_the_embedded_preset_needs_no_network_and_has_settings():
    source = resolve.find("bart_mini_en")
    checkpoint = resolve.read(source.directory)
    count = sum(values.size for values in checkpoint.weights.values())
    assert count == presets.PRESETS["bart_mini_en"].parameters
    found = resolve.defaults(source, checkpoint)
    assert found.generation == checkpoint.generation
    assert len(found.notes) == 1


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("bart_base_en", (50265, 6, 12, 768, 3072)),
        ("bart_large_en", (50265, 12, 16, 1024, 4096)),
        ("bart_large_en_cnn", (50264, 12, 16, 1024, 4096)),
    ],
)
def test_registered_parameter_counts_match_the_architectures(name, sizes):
    words = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
    config = BartConfig(**dict(zip(words, sizes, strict=True)))
    assert presets.PRESETS[name].parameters == weight_names.parameter_count(config)


def test_presets_take_precedence_over_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bart_mini_en").mkdir()
    (tmp_path / "mine").mkdir()
    assert resolve.find("bart_mini_en").directory == presets.ASSETS / "bart_mini_en"
    for typed in ("./bart_mini_en", "mine", str(tmp_path / "mine"), (tmp_path / "mine").as_uri()):
        source = resolve.find(typed)
        name = f"./{typed.rpartition('/')[2]}"
        assert (source.handle, source.revision, source.generation) == (name, None, None)
        assert source.directory.samefile(tmp_path / name)


@pytest.mark.parametrize(
    "preset",
    [
        "", "nowhere", "kaggle://org/model", "kaggle://org/model/pytorch/variant",
        "kaggle://org/model/keras/variant/newest", "kaggle://../../keras/variant", "hf://model",
        "hf://org/model/file", "hf://org/../model", "hf://o/m@../../x", "gs://bucket/model",
        "file:///nowhere", "x" * 5000, "x/" * 2500, "o/../zz/../yy", "\0", "a\nb", "\ud800",
    ],
)  # fmt: skip
def test_unknown_presets_are_rejected_with_the_accepted_forms(preset):
    with pytest.raises(PresetError, match="Unknown preset") as refused:
        resolve.find(preset)
    line = str(refused.value)
    assert len(line.encode()) < 1500
    assert json.dumps(preset)[:100].rstrip('"') in line
    for form in ("bart_large_en_cnn", "kaggle://org/model/keras/", "hf://org/model@", "directory"):
        assert form in line


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("bart_large_cnn", "Did you mean bart_large_en_cnn?"),
        ("facebook/bart-large-cnn", "Did you mean hf://facebook/bart-large-cnn?"),
        ("./my_bart", "There is no such directory."),
        (__file__, "It is a file."),
    ],
)
def test_unknown_presets_get_a_hint(typed, hint):
    with pytest.raises(PresetError, match=f"\\. {re.escape(hint)} Expected"):
        resolve.find(typed)
