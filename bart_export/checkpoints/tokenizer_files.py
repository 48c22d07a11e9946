"""A checkpoint's tokenizer, from any of the files that tokenizers of BART are kept in.

Two tables and what changes ids beside them: added tokens and `add_prefix_space`. Where files of a
Hugging Face directory disagree, what transformers takes counts: a tokenizer.json before vocab.json
and merges.txt, and tokenizer_config.json before either. What asks for more than a byte-level BPE
is refused by name.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from bart_export.checkpoints.files import JsonObject, read_json
from bart_export.errors import TokenizerError, shown
from bart_export.text.added_tokens import AddedToken, read_added_tokens
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
Stated = TypeVar("Stated", bool, list[object], JsonObject)

# Of a Keras preset's tokenizer.json, beside KerasHub's own words: added tokens with all they say.
ADDED_TOKENS = "bart_export_added_tokens"

# What a tokenizer.json must say for its tables to be all there is to its model.
PLAIN_BPE: dict[str, object] = {
    "type": "BPE",
    "dropout": 0.0,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "byte_fallback": False,
    "ignore_merges": False,
}
# Which of BART's tokens each of transformers' names must stand for.
NAMED = {
    "bos_token": START,
    "cls_token": START,
    "eos_token": END,
    "sep_token": END,
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "mask_token": MASK,
}
OTHERS = ("additional_special_tokens", "extra_special_tokens")  # transformers 4's word, 5's
# Classes of transformers that put <s> and </s> around GPT-2's tokens, without "Fast" at the end.
CLASSES = ("BartTokenizer", "RobertaTokenizer", "LEDTokenizer", "PreTrainedTokenizer",
           "TokenizersBackend")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TokenizerTables:
    """What a `BartTokenizer` is made of, by the names that `Checkpoint` has for it."""

    vocabulary: dict[str, int] = dataclasses.field(default_factory=dict)
    merges: Merges = ()
    added_tokens: tuple[AddedToken, ...] = ()
    add_prefix_space: bool = False


def read_keras(directory: Path, vocabulary_size: int) -> TokenizerTables:
    """Read `assets/tokenizer/` of a Keras preset, and what its `tokenizer.json` says beside it.

    Raises:
        TokenizerError: when a file is missing or is not what it should be, or the model has fewer
            than its tokens.
    """
    assets, path = directory / "assets" / "tokenizer", directory / "tokenizer.json"
    vocabulary = read_vocabulary(assets / "vocabulary.json")
    merges = tuple(read_merges(assets / "merges.txt"))
    check_merges(str(assets / "merges.txt"), vocabulary, merges)
    stored = read_optional(path)
    settings = stored.get("config", {})
    if not isinstance(settings, dict):
        raise TokenizerError(f"{path} must hold a config object, received {shown(settings)}.")
    if settings.get("sequence_length") is not None:
        raise TokenizerError(
            f"{path} must not pad what it tokenizes, received sequence_length="
            f"{shown(settings['sequence_length'])}; expected null."
        )
    added = Added(vocabulary)
    for token in stated(path, settings, "unsplittable_tokens", []):
        if token not in SPECIAL_TOKENS:
            added.put(path, token)
    for token in stated(path, stored, ADDED_TOKENS, []):
        added.put(path, token)
    require_rows(directory, vocabulary, vocabulary_size)
    prefixed = stated(path, settings, "add_prefix_space", False)
    return TokenizerTables(vocabulary, merges, tuple(added.tokens.values()), prefixed)


def read_hugging_face(directory: Path, vocabulary_size: int) -> TokenizerTables:
    """Read a `tokenizer.json`, or else `vocab.json` and `merges.txt`, and the files beside them.

    Raises:
        TokenizerError: when files are missing, are not what they should be, or ask for more than a
            byte-level BPE, or the model has fewer than its tokens.
    """
    config, whole = directory / "tokenizer_config.json", directory / "tokenizer.json"
    vocab, merges_file = directory / "vocab.json", directory / "merges.txt"
    settings, stored = read_optional(config), read_optional(whole)
    prefixed = False
    if whole.is_file():
        path = whole
        vocabulary, merges = read_model(whole, stored)
        prefixed = read_splitter(whole, stored)
        require_ends(whole, stored.get("post_processor"))
    elif vocab.is_file() and merges_file.is_file():
        path, vocabulary = vocab, read_json(vocab, TokenizerError)
        merges = tuple(read_merges(merges_file))
    else:
        raise TokenizerError(
            f"{directory} holds neither tokenizer.json nor vocab.json with merges.txt. Save the "
            "tokenizer beside the model: tokenizer.save_pretrained(directory)."
        )
    added = Added(vocabulary)
    for token in stated(whole, stored, "added_tokens", []):
        added.put(whole, token)
    if "added_tokens_decoder" not in settings:
        read_older(directory, added)
    read_named(config, settings, added)
    decoder: JsonObject = stated(config, settings, "added_tokens_decoder", {})
    for number, token in decoder.items():
        added.put(config, token, int(number) if str(number).isdecimal() else number)
    refuse_settings(config, settings, stored, added)
    vocabulary = checked_vocabulary(path, added.vocabulary)
    check_merges(str(whole if stored else merges_file), vocabulary, merges)
    require_rows(directory, vocabulary, vocabulary_size)
    return TokenizerTables(
        vocabulary,
        merges,
        tuple(added.tokens.values()),
        stated(config, settings, "add_prefix_space", prefixed),
    )


def read_optional(path: Path) -> JsonObject:
    """Return the JSON object in a file, an empty one where there is none."""
    return read_json(path, TokenizerError) if path.is_file() else {}


class Added:
    """The added tokens of a checkpoint while its files are read; what is put last counts."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.vocabulary = vocabulary
        self.tokens: dict[str, AddedToken] = {}

    def put(self, path: Path, stored: object, number: object = None, **flags: bool) -> None:
        """Take a token as a file describes it, with the id that it or `number` says, if any."""
        fields = {"content": stored} if isinstance(stored, str) else stored
        if isinstance(fields, dict):
            number = fields.get("id", number)
            fields = {key: value for key, value in fields.items() if key not in ("id", "__type")}
            fields |= flags
        token = read_added_tokens(f"Added tokens in {path}", [fields])[0]
        known = self.vocabulary.get(token.content, number)
        if type(known) is not int or number not in (None, known):
            raise TokenizerError(
                f"{path} must give the added token {shown(token.content)} an id that its "
                f"vocabulary does not contradict, received {shown(number)} where the vocabulary "
                f"has {shown(known)}. Save the tokenizer again: "
                "tokenizer.save_pretrained(directory)."
            )
        self.vocabulary[token.content] = known
        self.tokens[token.content] = token


def read_older(directory: Path, added: Added) -> None:
    """Take what transformers wrote into files of their own before 4.34."""
    path, named = directory / "added_tokens.json", directory / "special_tokens_map.json"
    special = read_optional(named)
    listed = str([special.get(name) for name in (*NAMED, *OTHERS)])
    for content, number in read_optional(path).items():
        if content not in added.tokens:
            kind = content in listed
            added.put(path, content, number, special=kind, normalized=not kind)
    read_named(named, special, added)


def read_named(path: Path, settings: JsonObject, added: Added) -> None:
    """Take the special tokens that a file of transformers names.

    Raises:
        TokenizerError: for another token in the place of one of BART's.
    """
    for name, expected in NAMED.items():
        stored = settings.get(name)
        content = stored.get("content") if isinstance(stored, dict) else stored
        if content not in (None, expected):
            raise TokenizerError(
                f"{path} must name {shown(expected)} as {name}, which BART was trained with, "
                f"received {shown(content)}."
            )
        if isinstance(stored, dict):
            added.put(path, stored, special=True)
    for name in OTHERS:
        stored = settings.get(name)
        listed = {name: list(stored.values())} if isinstance(stored, dict) else settings
        for token in stated(path, listed, name, []):
            known = added.tokens.get(token) if isinstance(token, str) else None
            added.put(path, dataclasses.asdict(known) if known else token, special=True)


def read_model(path: Path, stored: JsonObject) -> tuple[dict[str, int], Merges]:
    """Return vocabulary and merges of the `tokenizers` library's JSON file."""
    model = stored.get("model")
    if not isinstance(model, dict):
        raise TokenizerError(f"{path} must hold a model, received {shown(model)}.")
    for name, accepted in PLAIN_BPE.items():
        if model.get(name) not in (accepted, None):
            raise TokenizerError(
                f"{path} must hold a plain byte-level BPE, received {name}={shown(model[name])}."
            )
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict):
        raise TokenizerError(f"{path} must hold a vocabulary, received {shown(vocabulary)}.")
    if not isinstance(merges, list):
        raise TokenizerError(f"{path} must hold a list of merges, received {shown(merges)}.")
    return vocabulary, tuple(split_merge(path, merge) for merge in merges)


def read_splitter(path: Path, stored: JsonObject) -> bool:
    """Return `add_prefix_space` of the one way of splitting that BART has."""
    splitter = stored.get("pre_tokenizer")
    if (
        not isinstance(splitter, dict)
        or splitter.get("type") != "ByteLevel"
        or not splitter.get("use_regex", True)
    ):
        raise TokenizerError(
            f"{path} must split text with ByteLevel and its regular expression as BART does, "
            f"received {shown(splitter)}."
        )
    if stored.get("normalizer"):
        raise TokenizerError(
            f"{path} must not normalize text, received {shown(stored['normalizer'])}."
        )
    return stated(path, splitter, "add_prefix_space", False)


def require_ends(path: Path, processor: object) -> None:
    """Require that a post-processor puts `<s>` and `</s>` around a text, or none is there."""
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
                require_ends(path, step)
            return
    raise TokenizerError(
        f"{path} must put {START} and {END} around a text as BART does, received the "
        f"post-processor {shown(processor)}."
    )


def refuse_settings(path: Path, settings: JsonObject, stored: JsonObject, added: Added) -> None:
    """Refuse what a tokenizer_config.json or a tokenizer.json asks for and is not implemented."""
    name = str(settings.get("tokenizer_class") or CLASSES[0]).removesuffix("Fast")
    if name not in CLASSES:
        raise TokenizerError(
            f"{path} must name a tokenizer like {CLASSES[0]}, received tokenizer_class="
            f"{shown(settings['tokenizer_class'])}."
        )
    cut = stored.get("truncation")
    sides = settings.get("truncation_side"), isinstance(cut, dict) and cut.get("direction")
    if any(str(side).lower() == "left" for side in sides):
        raise TokenizerError(
            f"{path.parent} cuts long texts at their beginning (truncation_side left); expected "
            "right. Take the setting out if that is not what the model was trained with."
        )
    own = [each.content for each in added.tokens.values() if each.content not in SPECIAL_TOKENS]
    if settings.get("split_special_tokens") and any(added.tokens[each].special for each in own):
        raise TokenizerError(
            f"{path} must not split special tokens, received split_special_tokens=true and the "
            f"special token {shown(own[0])}."
        )


WORDS = {bool: "state {} as true or false", list: "hold a list of {}", dict: "hold an object {}"}


def stated(path: Path, settings: JsonObject, name: str, default: Stated) -> Stated:
    """Return a setting of the default's type, the default where a file does not state it."""
    value = settings.get(name)
    if value is None:
        return default
    kind = type(default)
    if not isinstance(value, kind):
        words = WORDS[kind].format(name)
        raise TokenizerError(f"{path} must {words}, received {shown(value)}.")
    return value


def split_merge(path: Path, merge: object) -> tuple[str, str]:
    """Return one merge, which `tokenizers` writes as a pair or, before 0.20, as "left right"."""
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)]:
            return left, right
    raise TokenizerError(f"{path} must hold pairs of tokens as merges, received {shown(merge)}.")


def require_rows(directory: Path, vocabulary: Mapping[str, int], vocabulary_size: int) -> None:
    """Require that every token has a row in the embedding.

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
