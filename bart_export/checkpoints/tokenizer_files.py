"""Reads a checkpoint's tokenizer: vocabulary, merges, added tokens and `add_prefix_space`.

If the files of a Hugging Face directory disagree, the precedence is that of transformers:
tokenizer_config.json, then tokenizer.json, then vocab.json and merges.txt. Settings that a
byte-level BPE does not have raise an error.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from bart_export.checkpoints.files import JsonObject, read_json
from bart_export.errors import TokenizerError, shown
from bart_export.text.added_tokens import AddedToken, read_added_tokens
from bart_export.text.tokenizer import BartTokenizer
from bart_export.text.vocabulary import (
    END,
    MASK,
    PAD,
    SPECIAL_TOKENS,
    START,
    UNKNOWN,
    check_merges,
    checked_vocabulary,
    read_merges,
    read_vocabulary,
)

Merges = tuple[tuple[str, str], ...]
Setting = TypeVar("Setting", bool, list[object], JsonObject)

# This package's key in a Keras preset's tokenizer.json, for all attributes of added tokens.
ADDED_TOKENS = "bart_export_added_tokens"

# The model settings of a tokenizer.json without extensions to BPE.
PLAIN_BPE: dict[str, object] = {
    "type": "BPE",
    "dropout": 0.0,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "byte_fallback": False,
    "ignore_merges": False,
}
# transformers' name of a special token → BART's token.
SPECIAL_NAMES = {
    "bos_token": START,
    "cls_token": START,
    "eos_token": END,
    "sep_token": END,
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "mask_token": MASK,
}
EXTRA_SPECIAL = ("additional_special_tokens", "extra_special_tokens")  # transformers 4 and 5
# transformers' classes that put <s> and </s> around GPT-2's tokens, without the suffix "Fast".
CLASSES = ("BartTokenizer", "RobertaTokenizer", "LEDTokenizer", "PreTrainedTokenizer",
           "TokenizersBackend")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TokenizerTables:
    """What a checkpoint's files say about its tokenizer."""

    # Byte-level BPE tokens and added tokens → ids.
    vocabulary: Mapping[str, int] = dataclasses.field(default_factory=dict)
    merges: Merges = ()  # in order of rank
    added_tokens: tuple[AddedToken, ...] = ()
    add_prefix_space: bool = False

    def tokenizer(self) -> BartTokenizer:
        """Return the checkpoint's tokenizer."""
        return BartTokenizer(
            dict(self.vocabulary),
            list(self.merges),
            self.added_tokens,
            add_prefix_space=self.add_prefix_space,
        )


def read_keras(directory: Path, vocabulary_size: int) -> TokenizerTables:
    """Read a Keras preset's `assets/tokenizer/` and `tokenizer.json`, or raise TokenizerError."""
    assets, path = directory / "assets" / "tokenizer", directory / "tokenizer.json"
    vocabulary = read_vocabulary(assets / "vocabulary.json")
    merges = tuple(read_merges(assets / "merges.txt"))
    check_merges(str(assets / "merges.txt"), vocabulary, merges)
    stored = read_optional(path)
    settings = stored.get("config", {})
    if not isinstance(settings, dict):
        raise TokenizerError(f"config in {path} must be an object, received {shown(settings)}.")
    if settings.get("sequence_length") is not None:
        raise TokenizerError(
            f"sequence_length in {path} must be null, because padding is not supported, received "
            f"{shown(settings['sequence_length'])}."
        )
    added = AddedTokenTable(vocabulary)
    for token in read_setting(path, settings, "unsplittable_tokens", []):
        if token not in SPECIAL_TOKENS:
            added.put(path, token)
    for token in read_setting(path, stored, ADDED_TOKENS, []):
        added.put(path, token)
    require_rows(directory, vocabulary, vocabulary_size)
    prefixed = read_setting(path, settings, "add_prefix_space", False)
    return TokenizerTables(vocabulary, merges, tuple(added.tokens.values()), prefixed)


def read_hugging_face(directory: Path, vocabulary_size: int) -> TokenizerTables:
    """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`, and the other tokenizer files.

    Raises:
        TokenizerError: if files are missing or invalid, if they have settings that a byte-level BPE
            does not have, or if an id is not below `vocabulary_size`.
    """
    config, tokenizer = directory / "tokenizer_config.json", directory / "tokenizer.json"
    vocab, merges_file = directory / "vocab.json", directory / "merges.txt"
    settings, stored = read_optional(config), read_optional(tokenizer)
    prefixed = False
    if tokenizer.is_file():
        path = tokenizer
        vocabulary, merges = read_model(tokenizer, stored)
        prefixed = read_pre_tokenizer(tokenizer, stored)
        require_post_processor(tokenizer, stored.get("post_processor"))
    elif vocab.is_file() and merges_file.is_file():
        path, vocabulary = vocab, read_json(vocab, TokenizerError)
        merges = tuple(read_merges(merges_file))
    else:
        raise TokenizerError(
            f"{directory} has neither tokenizer.json nor vocab.json with merges.txt. Save the "
            "tokenizer next to the model: tokenizer.save_pretrained(directory)."
        )
    added = AddedTokenTable(vocabulary)
    for token in read_setting(tokenizer, stored, "added_tokens", []):
        added.put(tokenizer, token)
    if "added_tokens_decoder" not in settings:
        read_legacy_files(directory, added)
    read_special_tokens(config, settings, added)
    decoder: JsonObject = read_setting(config, settings, "added_tokens_decoder", {})
    for number, token in decoder.items():
        added.put(config, token, int(number) if str(number).isdecimal() else number)
    refuse_settings(config, settings, stored, added)
    vocabulary = checked_vocabulary(path, added.vocabulary)
    check_merges(str(tokenizer if stored else merges_file), vocabulary, merges)
    require_rows(directory, vocabulary, vocabulary_size)
    return TokenizerTables(
        vocabulary,
        merges,
        tuple(added.tokens.values()),
        read_setting(config, settings, "add_prefix_space", prefixed),
    )


def read_optional(path: Path) -> JsonObject:
    """Return the JSON object in a file, or an empty one if it does not exist."""
    return read_json(path, TokenizerError) if path.is_file() else {}


class AddedTokenTable:
    """The added tokens of a checkpoint, collected file by file; later ones replace earlier ones."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.vocabulary = vocabulary
        self.tokens: dict[str, AddedToken] = {}

    def put(self, path: Path, stored: object, number: object = None, **flags: bool) -> None:
        """Add a token as stored in a file; its id, if any, is part of it or given as `number`."""
        fields = {"content": stored} if isinstance(stored, str) else stored
        if isinstance(fields, dict):
            number = fields.get("id", number)
            fields = {key: value for key, value in fields.items() if key not in ("id", "__type")}
            fields |= flags
        token = read_added_tokens(f"Added tokens in {path}", [fields])[0]
        known = self.vocabulary.get(token.content, number)
        if type(known) is not int or number not in (None, known):
            raise TokenizerError(
                f"The id of the added token {shown(token.content)} in {path} must be an integer "
                f"and the same as in the vocabulary, received {shown(number)} and "
                f"{shown(self.vocabulary.get(token.content))}. Save the tokenizer again: "
                "tokenizer.save_pretrained(directory)."
            )
        self.vocabulary[token.content] = known
        self.tokens[token.content] = token


def read_legacy_files(directory: Path, added: AddedTokenTable) -> None:
    """Add the tokens in the separate files that transformers wrote before 4.34."""
    path, named = directory / "added_tokens.json", directory / "special_tokens_map.json"
    special = read_optional(named)
    listed = str([special.get(name) for name in (*SPECIAL_NAMES, *EXTRA_SPECIAL)])
    for content, number in read_optional(path).items():
        if content not in added.tokens:
            kind = content in listed
            added.put(path, content, number, special=kind, normalized=not kind)
    read_special_tokens(named, special, added)


def read_special_tokens(path: Path, settings: JsonObject, added: AddedTokenTable) -> None:
    """Add the special tokens in transformers' settings; others than BART's raise TokenizerError."""
    for name, expected in SPECIAL_NAMES.items():
        stored = settings.get(name)
        content = stored.get("content") if isinstance(stored, dict) else stored
        if content not in (None, expected):
            raise TokenizerError(
                f"{name} in {path} must be {shown(expected)}, which BART was trained with, "
                f"received {shown(content)}."
            )
        if isinstance(stored, dict):
            added.put(path, stored, special=True)
    for name in EXTRA_SPECIAL:
        stored = settings.get(name)
        listed = {name: list(stored.values())} if isinstance(stored, dict) else settings
        for token in read_setting(path, listed, name, []):
            known = added.tokens.get(token) if isinstance(token, str) else None
            added.put(path, dataclasses.asdict(known) if known else token, special=True)


def read_model(path: Path, stored: JsonObject) -> tuple[dict[str, int], Merges]:
    """Return the vocabulary and the merges in a tokenizer.json."""
    model = stored.get("model")
    if not isinstance(model, dict):
        raise TokenizerError(f"{path} must have a model, received {shown(model)}.")
    for name, accepted in PLAIN_BPE.items():
        if model.get(name) not in (accepted, None):
            raise TokenizerError(
                f"{path} must have a plain byte-level BPE, received {name}={shown(model[name])}."
            )
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict):
        raise TokenizerError(f"{path} must have a vocabulary, received {shown(vocabulary)}.")
    if not isinstance(merges, list):
        raise TokenizerError(f"{path} must have a list of merges, received {shown(merges)}.")
    return vocabulary, tuple(split_merge(path, merge) for merge in merges)


def read_pre_tokenizer(path: Path, stored: JsonObject) -> bool:
    """Require BART's pre-tokenizer and no normalizer; return `add_prefix_space`."""
    splitter = stored.get("pre_tokenizer")
    if (
        not isinstance(splitter, dict)
        or splitter.get("type") != "ByteLevel"
        or not splitter.get("use_regex", True)
    ):
        raise TokenizerError(
            f"{path} must have BART's pre-tokenizer, ByteLevel with its regular expression, "
            f"received {shown(splitter)}."
        )
    if stored.get("normalizer"):
        raise TokenizerError(
            f"{path} must not normalize text, received {shown(stored['normalizer'])}."
        )
    return read_setting(path, splitter, "add_prefix_space", False)


def require_post_processor(path: Path, processor: object) -> None:
    """Require that a post-processor, if there is one, puts `<s>` and `</s>` around a text."""
    match processor:
        case None | {"type": "ByteLevel"}:
            return
        case {
            "type": "RobertaProcessing" | "BertProcessing",
            "cls": [str(first), _],
            "sep": [str(last), _],
        } if (first, last) == (START, END):
            return
        case {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": str(first)}},
                {"Sequence": {"id": "A"}},
                {"SpecialToken": {"id": str(last)}},
            ],
        } if (first, last) == (START, END):
            return
        case {"type": "Sequence", "processors": [*steps]}:
            for step in steps:
                require_post_processor(path, step)
            return
    raise TokenizerError(
        f"{path} must have a post-processor that puts {START} and {END} around a text, received "
        f"{shown(processor)}."
    )


def refuse_settings(
    path: Path, settings: JsonObject, stored: JsonObject, added: AddedTokenTable
) -> None:
    """Raise TokenizerError for settings of a tokenizer's JSON files that are not implemented."""
    name = str(settings.get("tokenizer_class") or CLASSES[0]).removesuffix("Fast")
    if name not in CLASSES:
        raise TokenizerError(
            f"tokenizer_class in {path} must be compatible with {CLASSES[0]}, received "
            f"{shown(settings['tokenizer_class'])}."
        )
    truncation = stored.get("truncation")
    sides = (
        settings.get("truncation_side"),
        isinstance(truncation, dict) and truncation.get("direction"),
    )
    if any(str(side).lower() == "left" for side in sides):
        raise TokenizerError(
            f"truncation_side in {path.parent} must be right, received left. Remove the setting if "
            "the model was not trained with it."
        )
    custom = [each.content for each in added.tokens.values() if each.content not in SPECIAL_TOKENS]
    if settings.get("split_special_tokens") and any(added.tokens[each].special for each in custom):
        raise TokenizerError(
            f"split_special_tokens in {path} must be false, because {shown(custom[0])} is a "
            "special token, received true."
        )


WORDS = {bool: "true or false", list: "a list", dict: "an object"}


def read_setting(path: Path, settings: JsonObject, name: str, default: Setting) -> Setting:
    """Return a setting of the default's type, or the default if the file does not have it."""
    value = settings.get(name)
    if value is None:
        return default
    kind = type(default)
    if not isinstance(value, kind):
        raise TokenizerError(f"{name} in {path} must be {WORDS[kind]}, received {shown(value)}.")
    return value


def split_merge(path: Path, merge: object) -> tuple[str, str]:
    """Return a merge, which `tokenizers` writes as a pair or, before 0.20, as "left right"."""
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)]:
            return left, right
    raise TokenizerError(f"Merges in {path} must be pairs of tokens, received {shown(merge)}.")


def require_rows(directory: Path, vocabulary: Mapping[str, int], vocabulary_size: int) -> None:
    """Raise TokenizerError unless every token has a row in the embedding.

    The only exception is a trailing `<mask>`: bart_large_en_cnn is stored with 50,264 rows and a
    vocabulary of 50,265.
    """
    beyond = [token for token, number in vocabulary.items() if number >= vocabulary_size]
    if beyond and not (beyond == [MASK] and vocabulary[MASK] == vocabulary_size):
        raise TokenizerError(
            f"The tokenizer's ids in {directory} must be below the model's vocabulary_size="
            f"{vocabulary_size}, received {max(vocabulary.values())}. Use the tokenizer the model "
            "was trained with."
        )
