"""Vocabulary and merges, from any of the files that tokenizers of BART are kept in.

Flows in: a checkpoint directory. Flows out: `{token: id}` and the pairs to merge, as values, so
that a checkpoint that only has Hugging Face's `tokenizer.json` is as good as any. It
tokenizes nothing and knows no weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bart_export.checkpoints.files import read_json
from bart_export.errors import TokenizerError
from bart_export.text.vocabulary import (
    MASK,
    checked_vocabulary,
    read_merges,
    read_vocabulary,
)

Tokenizer = tuple[dict[str, int], tuple[tuple[str, str], ...]]

# What a tokenizer.json must say for vocabulary and merges to be all there is to it.
PLAIN_BPE: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("type", ("BPE", None)),
    ("continuing_subword_prefix", ("", None)),
    ("end_of_word_suffix", ("", None)),
    ("byte_fallback", (False, None)),
    ("ignore_merges", (False, None)),
)


def read_keras(directory: Path) -> Tokenizer:
    """Read `assets/tokenizer/` of a Keras preset.

    Raises:
        TokenizerError: when a file is missing or is not what it should be.
    """
    assets = directory / "assets" / "tokenizer"
    vocabulary = read_vocabulary(assets / "vocabulary.json")
    return vocabulary, tuple(read_merges(assets / "merges.txt"))


def read_hugging_face(directory: Path) -> Tokenizer:
    """Read `vocab.json` and `merges.txt`, or a `tokenizer.json` that says the same.

    Raises:
        TokenizerError: when files are missing, are not what they should be, or ask for more than a
            byte-level BPE.
    """
    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    whole = directory / "tokenizer.json"
    if vocabulary.is_file() and merges.is_file():
        tokens = read_vocabulary(vocabulary)
        added = directory / "added_tokens.json"
        if added.is_file():
            check_added(added, tokens, read_json(added, TokenizerError))
        return tokens, tuple(read_merges(merges))
    if whole.is_file():
        return read_whole(whole)
    raise TokenizerError(
        f"{directory} holds neither vocab.json with merges.txt nor tokenizer.json. Save the "
        "tokenizer beside the model: tokenizer.save_pretrained(directory)."
    )


def read_whole(path: Path) -> Tokenizer:
    """Read vocabulary and merges out of the `tokenizers` library's JSON file."""
    stored = read_json(path, TokenizerError)
    model = stored.get("model")
    if not isinstance(model, dict):
        raise TokenizerError(f"{path} must hold a model, received {model!r}.")
    for name, accepted in PLAIN_BPE:
        if model.get(name) not in accepted:
            raise TokenizerError(
                f"{path} must hold a plain byte-level BPE, received {name}={model[name]!r}."
            )
    splitter = stored.get("pre_tokenizer") or {}
    if splitter.get("type") != "ByteLevel" or splitter.get("add_prefix_space"):
        raise TokenizerError(
            f"{path} must split text with ByteLevel and add_prefix_space=false as BART does, "
            f"received {splitter!r}."
        )
    if stored.get("normalizer"):
        raise TokenizerError(f"{path} must not normalize text, received {stored['normalizer']!r}.")
    vocabulary = checked_vocabulary(path, model.get("vocab"))
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError(f"{path} must hold a list of merges, received {merges!r}.")
    added = stored.get("added_tokens") or []
    check_added(path, vocabulary, {token.get("content"): token.get("id") for token in added})
    return vocabulary, tuple(split_merge(path, merge) for merge in merges)


def check_added(path: Path, vocabulary: Mapping[str, int], added: Mapping[Any, Any]) -> None:
    """Check that tokens added to the tokenizer are in its vocabulary already."""
    unknown = [token for token, number in added.items() if vocabulary.get(token) != number]
    if unknown:
        raise TokenizerError(
            f"{path} adds the token {unknown[0]!r}, which is not in the vocabulary and which a "
            "byte-level BPE cannot make of text. Only BART's own special tokens are supported."
        )


def split_merge(path: Path, merge: object) -> tuple[str, str]:
    """Return one merge, which `tokenizers` writes as a pair or, before 0.20, as "left right"."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
        raise TokenizerError(f"{path} must hold pairs of tokens as merges, received {merge!r}.")
    return pair[0], pair[1]


def check_fits(directory: Path, vocabulary: Mapping[str, int], vocabulary_size: int) -> None:
    """Check that every token has a row in the embedding.

    The one exception is a trailing `<mask>`: bart_large_en_cnn is stored with 50,264 rows and a
    vocabulary of 50,265.

    Raises:
        TokenizerError: when the model cannot look up a token of its tokenizer.
    """
    beyond = [token for token, number in vocabulary.items() if number >= vocabulary_size]
    if beyond and not (beyond == [MASK] and vocabulary[MASK] == vocabulary_size):
        raise TokenizerError(
            f"The tokenizer in {directory} has ids up to {max(vocabulary.values())}, beyond the "
            f"model's vocabulary_size={vocabulary_size}. Use the tokenizer the model was trained "
            "with."
        )
