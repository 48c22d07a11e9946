"""An export compares its tokenizer with the checkpoint's files."""

import dataclasses
import shutil

import pytest
from support.made_up_artifacts import edit_manifest
from support.paths import CASES

from bart_export.artifact.artifact import Artifact
from bart_export.checkpoints import resolve, tokenizer_files
from bart_export.errors import ArtifactError, TokenizerError, VerificationFailed
from bart_export.export.options import TfliteOptions
from bart_export.export.pipeline import export
from bart_export.graph.tokenizer import GraphTokenizer
from bart_export.recipes.table import RECIPES
from bart_export.runtime.generator import Generator
from bart_export.text.added_tokens import AddedToken
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify import saved_model, tokenization
from bart_export.verify.golden import TEXTS

NAMES = ("added-token-in-vocabulary", "added-tokens-json", "add-prefix-space")
OPTIONS = TfliteOptions((RECIPES["float32"],))


def stripped(checkpoint):
    return tuple(dataclasses.replace(token, lstrip=True) for token in checkpoint.added_tokens)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("added-token-in-vocabulary", lambda right: {"merges": right.merges[:-1]}),
        ("added-token-in-vocabulary", lambda right: {"added_tokens": ()}),
        ("added-token-in-vocabulary", lambda right: {"added_tokens": stripped(right)}),
        # An extra token that is in no text of the export.
        ("added-tokens-json", lambda right: {"added_tokens": (AddedToken("the"),)}),
        ("add-prefix-space", lambda right: {"add_prefix_space": False}),
    ],
)
def test_a_wrong_tokenizer_fails_by_name(name, spoil):
    checkpoint = resolve.read(CASES / name)
    tokenization.check_tokenizer(checkpoint, checkpoint.tokenizer(), TEXTS)
    wrong = dataclasses.replace(checkpoint, **spoil(checkpoint)).tokenizer()
    words = rf"files in \S+{name}: token \d+ of '.*received"
    with pytest.raises(VerificationFailed, match=words):
        tokenization.check_tokenizer(checkpoint, wrong, TEXTS)


def test_an_export_with_another_tokenizer_is_not_committed(tmp_path, monkeypatch):
    read = tokenizer_files.read_hugging_face

    def ignoring(directory, vocabulary_size):
        return dataclasses.replace(read(directory, vocabulary_size), add_prefix_space=False)

    monkeypatch.setattr(tokenizer_files, "read_hugging_face", ignoring)
    with pytest.raises(
        VerificationFailed, match=r"^The tokenizer differs.* Nothing was committed\.$"
    ):
        export(str(CASES / "add-prefix-space"), OPTIONS, tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_an_artifact_has_the_settings_that_change_ids(tmp_path):
    preset = shutil.copytree(CASES / "added-token-in-vocabulary", tmp_path / "preset")
    (preset / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    artifact = export(str(preset), OPTIONS, tmp_path / "made")
    stated = artifact.manifest.tokenizer
    assert stated.add_prefix_space is True
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    assert stated.added_tokens == ({"content": "<hl>", **flags, "special": True},)
    tokenizer = resolve.read(preset).tokenizer()
    generator = Generator.from_artifact(artifact.directory)
    text = "a <hl> the in"
    expected = [0, *tokenizer.tokenize(text), 2]
    assert generator.encode(text, truncate=False) == expected
    assert tokenizer.tokenize(" a") == expected[1:2] and 267 in expected
    case = artifact.golden().cases[0]
    assert generator.encode(case.text, truncate=True) == list(case.source_token_ids)


def test_an_artifact_without_such_settings_has_the_tokens_of_bart(symmetric_artifact):
    assert symmetric_artifact.manifest.tokenizer.to_dict().keys() == {"vocabulary", "merges"}
    tokenizer = BartTokenizer.from_artifact(Artifact.open(symmetric_artifact.directory))
    assert not tokenizer.add_prefix_space
    assert len(tokenizer.added_tokens) == 5


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_graph_tokenizer_fails_by_name(name):
    checkpoint = resolve.read(CASES / name)
    right = GraphTokenizer(checkpoint.tokenizer())
    plain = dataclasses.replace(checkpoint, added_tokens=(), add_prefix_space=False)
    wrong = GraphTokenizer(plain.tokenizer())

    def signature(graph):
        def tokenize(text):
            ids, lengths = graph.encode(text, 32)
            return {"encoder_token_ids": ids, "encoder_lengths": lengths}

        return saved_model.tokenize_with({"tokenize": tokenize})

    tokenization.check_signature("saved_model/1", signature(right), checkpoint.tokenizer(), TEXTS)
    with pytest.raises(
        VerificationFailed, match="^saved_model/1 tokenizes differently from Python"
    ):
        tokenization.check_signature(
            "saved_model/1", signature(wrong), checkpoint.tokenizer(), TEXTS
        )


@pytest.mark.parametrize(
    "stated",
    [
        {"add_prefix_space": "yes"},
        {"add_prefix_space": None},
        {"added_tokens": None},
        {"added_tokens": [{"content": "a", "upper": True}]},
        {"added_tokens": [{"content": "<nope>"}]},
    ],
    ids=str,
)
def test_the_tokenizer_settings_of_a_manifest_are_validated(symmetric_artifact, tmp_path, stated):
    shutil.copytree(symmetric_artifact.directory, tmp_path / "made")
    edit_manifest(tmp_path / "made", lambda fields: fields["tokenizer"].update(stated))
    with pytest.raises((ArtifactError, TokenizerError)) as refused:
        BartTokenizer.from_artifact(Artifact.open(tmp_path / "made"))
    assert str(tmp_path / "made") in str(refused.value)
