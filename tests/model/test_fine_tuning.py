"""Fine-tuning from a preset to a preset and an export, without losses."""

import json
import re

import keras_hub
import numpy as np
import pytest
from support.command import printed
from support.edited_checkpoints import copy, edit_json
from support.pages import blocks
from support.paths import CASES, SYMMETRIC

import bart_export
from bart_export import errors
from bart_export.artifact.artifact import Artifact
from bart_export.checkpoints import resolve
from bart_export.checkpoints.resolve import ResolvedPreset
from bart_export.text.added_tokens import AddedToken

GUIDE = "docs/guide/fine_tuning.md"
TEXTS = ("The river rose <hl> two metres<hl> overnight.", " and then, naïve café 文字", "")

# h5py converts Keras' variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def follow(preset, recipe=()):
    """Run the guide's code and commands in the current directory, with a preset in the first's
    place, and return what the commands print."""
    (code,), (commands,) = blocks("python", GUIDE), blocks("sh", GUIDE)
    assert '"bart_mini_en"' in code
    exec(compile(code.replace('"bart_mini_en"', repr(str(preset))), "guide", "exec"), {})
    output = ""
    for line in commands.splitlines():
        program, *arguments = re.findall(r'"([^"]*)"|(\S+)', line)
        given = ["".join(pair) for pair in arguments]
        more = recipe if "--target" in given else ()
        assert "".join(program) == "bart-export"
        output += printed(*given, *more)
    return " ".join(output.split())


@pytest.fixture
def source(tmp_path):
    """A checkpoint with an added token and changed settings."""
    place = copy(tmp_path / "source")
    vocabulary = json.loads((place / "vocab.json").read_text(encoding="utf-8"))
    last = max(vocabulary, key=vocabulary.__getitem__)
    added = {"content": last, "lstrip": True, "special": True}
    settings = {"added_tokens_decoder": {str(vocabulary[last]): added}}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    edit_json(place / "config.json", task_specific_params={"qa": {"num_beams": 3}})
    stated = {"max_length": 12, "num_beams": 2, "eos_token_id": [2, 700]}
    (place / "generation_config.json").write_text(json.dumps(stated))
    return place


def test_the_guide_keeps_tokenizer_and_settings(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = follow(source, ("--recipe", "float32"))
    assert "max_length=12, num_beams=2 from generation_config.json" in printed
    before, after = resolve.read(source), resolve.read(tmp_path / "my_bart")
    assert after.settings.generation == before.settings.generation
    assert after.settings.tasks == before.settings.tasks
    for name in ("vocabulary", "merges", "added_tokens", "encoder_sequence_length"):
        assert getattr(after, name) == getattr(before, name), name
    artifact = Artifact.open(tmp_path / "artifacts/my_bart")
    assert artifact.generation.end_token_ids == (2, 700)
    assert artifact.manifest.config.vocabulary_size == before.config.vocabulary_size
    changed = [
        name for name in before.weights
        if not np.array_equal(before.weights[name], after.weights[name])
    ]  # fmt: skip
    assert {name.rpartition("/")[0].rpartition("/")[2] for name in changed} == {"query", "value"}


@pytest.mark.slow
def test_the_guide_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "from generation_config.json" in follow("bart_mini_en")
    saved = resolve.read(tmp_path / "my_bart")
    embedded = ResolvedPreset("bart_mini_en").checkpoint
    assert saved.generation == embedded.generation
    assert saved.encoder_sequence_length == embedded.encoder_sequence_length == 160


def test_keras_hub_tokenizes_saved_presets_identically(source, tmp_path):
    backbone = bart_export.BartBackbone.from_preset(str(source))
    backbone.save_to_preset(tmp_path / "saved")
    theirs = keras_hub.models.BartTokenizer.from_preset(str(tmp_path / "saved"))
    mine = resolve.read(tmp_path / "saved").tokenizer()
    for text in TEXTS[1:2]:
        assert list(np.asarray(theirs(text))) == mine.tokenize(text)
    added = mine.added_tokens[-1]
    assert added == AddedToken(added.content, lstrip=True, special=True)
    assert mine.token_to_id(added.content) in np.asarray(theirs(f"a{added.content}b"))
    preprocessor = keras_hub.models.BartSeq2SeqLMPreprocessor.from_preset(str(tmp_path / "saved"))
    assert preprocessor.encoder_sequence_length == 64


def test_a_model_has_its_presets_tokenizer():
    case = CASES / "added-tokens-json"
    tokenizer = bart_export.BartBackbone.from_preset(str(case)).tokenizer
    expected = resolve.read(case).tokenizer()
    for text in TEXTS:
        assert tokenizer.encode(text) == expected.encode(text, 1024)
    with pytest.raises(errors.TokenizerError, match="from a preset with a tokenizer"):
        small = {"num_layers": 1, "num_heads": 1, "hidden_dim": 4, "intermediate_dim": 4}
        bart_export.BartBackbone(vocabulary_size=9, **small).tokenizer  # noqa: B018


def test_tokenizer_files_may_be_strings():
    files = [str(SYMMETRIC / name) for name in ("vocab.json", "merges.txt")]
    tokenizer = bart_export.BartTokenizer.from_files(*files)
    assert tokenizer.encode("the river")[0] == tokenizer.start_token_id
    assert len(tokenizer.encode("the river " * 2000, truncate=True)) == 1024


def test_presets_without_settings_are_reported(source, tmp_path):
    """KerasHub saves none."""
    theirs = keras_hub.models.BartBackbone.from_preset(str(source))
    theirs.save_to_preset(str(tmp_path / "saved"))
    theirs = keras_hub.models.BartTokenizer.from_preset(str(source))
    theirs.save_to_preset(str(tmp_path / "saved"))
    notes = ResolvedPreset(str(tmp_path / "saved")).defaults.notes
    assert any(note.startswith("The preset has no generation_config.json") for note in notes)
    assert any(note.startswith("The preset has no preprocessor.json") for note in notes)


def test_padded_embeddings_are_kept_for_training_but_not_exported(tmp_path):
    padded = CASES / "padded-rows-generated"
    backbone = bart_export.BartBackbone.from_preset(str(padded))
    assert backbone.vocabulary_size == 288
    backbone.save_to_preset(tmp_path / "saved")
    assert bart_export.Backbone.from_preset(str(tmp_path / "saved")).vocabulary_size == 288
    saved = resolve.read(tmp_path / "saved")
    assert (saved.config.vocabulary_size, saved.rows_without_token) == (267, 21)
    assert saved.generation.max_length == 16


def test_a_model_can_be_trained_without_a_readable_tokenizer(source, tmp_path):
    (source / "tokenizer.json").write_text("{}")
    backbone = bart_export.BartBackbone.from_preset(str(source))
    backbone.save_to_preset(tmp_path / "saved")
    saved = resolve.read(tmp_path / "saved", tokenizer=False)
    assert saved.generation.max_length == 12
    assert type(backbone) is bart_export.BartBackbone
    with pytest.raises(errors.TokenizerError):
        resolve.read(tmp_path / "saved")
