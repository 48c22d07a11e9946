"""Vocabulary and merges, from any of the files that tokenizers of BART are kept in.

Flows in: a checkpoint directory. Flows out: `{token: id}` and the merges as "left right" lines, as
values, so that a checkpoint that only has Hugging Face's `tokenizer.json` is as good as any. It
tokenizes nothing and knows no weights.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bart_export.checkpoints.files import read_json, read_text
from bart_export.errors import TokenizerError

Tokenizer = tuple[dict[str, int], tuple[str, ...]]

MASK = "<mask>"

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
    return read_pair(assets / "vocabulary.json", assets / "merges.txt")


def read_hugging_face(directory: Path) -> Tokenizer:
    """Read `vocab.json` and `merges.txt`, or a `tokenizer.json` that says the same.

    Raises:
        TokenizerError: when files are missing, are not what they should be, or ask for more than a
            byte-level BPE.
    """
    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    whole = directory / "tokenizer.json"
    if vocabulary.is_file() and merges.is_file():
        tokenizer = read_pair(vocabulary, merges)
        check_added(directory / "added_tokens.json", tokenizer[0], read_added)
        return tokenizer
    if whole.is_file():
        return read_whole(whole)
    raise TokenizerError(
        f"{directory} holds neither vocab.json with merges.txt nor tokenizer.json. Save the "
        "tokenizer beside the model: tokenizer.save_pretrained(directory)."
    )


def read_pair(vocabulary_file: Path, merges_file: Path) -> Tokenizer:
    """Read a vocabulary in JSON and a file of merges, one a line, `#version` lines skipped."""
    vocabulary = checked_vocabulary(vocabulary_file, read_json(vocabulary_file, TokenizerError))
    lines = read_text(merges_file, TokenizerError).split("\n")
    merges = [line.rstrip("\r") for line in lines if line.strip()]
    if merges and merges[0].startswith("#version"):
        merges = merges[1:]
    return vocabulary, checked_merges(merges_file, merges)


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
    lines = [" ".join(map(str, pair)) if isinstance(pair, list) else pair for pair in merges]
    check_added(path, vocabulary, lambda path: {
        token.get("content"): token.get("id") for token in stored.get("added_tokens") or ()
    })  # fmt: skip
    return vocabulary, checked_merges(path, lines)


def read_added(path: Path) -> dict[str, int]:
    """Read `added_tokens.json`, which most checkpoints do not have."""
    return read_json(path, TokenizerError) if path.is_file() else {}


def check_added(
    path: Path, vocabulary: Mapping[str, int], read: Callable[[Path], Mapping[Any, Any]]
) -> None:
    """Check that tokens added to the tokenizer are in its vocabulary already."""
    unknown = [token for token, number in read(path).items() if vocabulary.get(token) != number]
    if unknown:
        raise TokenizerError(
            f"{path} adds the token {unknown[0]!r}, which is not in the vocabulary and which a "
            "byte-level BPE cannot make of text. Only BART's own special tokens are supported."
        )


def checked_vocabulary(path: Path, vocabulary: object) -> dict[str, int]:
    """Return the vocabulary, once it is known to give each token an id of its own."""
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise TokenizerError(f"{path} must hold a vocabulary, a JSON object of tokens and ids.")
    for token, number in vocabulary.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise TokenizerError(
                f"{path} must give ids from 0 up, received {number!r} ({token!r})."
            )
    if len(set(vocabulary.values())) != len(vocabulary):
        raise TokenizerError(f"{path} gives the same id to different tokens.")
    return vocabulary


def checked_merges(path: Path, merges: list[Any]) -> tuple[str, ...]:
    """Return the merges, once each is known to be a pair."""
    for line in merges:
        if not isinstance(line, str) or len(line.split(" ")) != 2:
            raise TokenizerError(f"{path} must hold pairs of tokens, received {line!r}.")
    return tuple(merges)


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
