"""Comparison of a tokenizer with the `tokenizers` library on the same checkpoint files.

Other checks use one tokenizer for both models, so they would not notice a wrong one. The files are
not read with `checkpoints.tokenizer_files`: the library opens tokenizer.json itself, and is given
only the settings in the other files.
"""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.tokenizer_files import ADDED_TOKENS
from bart_export.errors import VerificationFailed, shown
from bart_export.text.tokenizer import BartTokenizer
from bart_export.text.vocabulary import MASK, SPECIAL_TOKENS

BART = tuple(AddedToken(token, lstrip=token == MASK, normalized=False) for token in SPECIAL_TOKENS)

PROBED = 100  # maximum number of added tokens that are tested
PROBES = (
    "{0}",
    "one {0} two",
    "one{0}two",
    " {0} {0}\n{0}{0}!",
    "A word before it. {0} And after.",
)


def check_tokenizer(checkpoint: Checkpoint, tokenizer: BartTokenizer, texts: Sequence[str]) -> None:
    """Compare a tokenizer's ids with the library's, on texts and on short texts with added tokens.

    Raises:
        VerificationFailed: for the first text with different ids.
    """
    try:
        library = library_tokenizer(checkpoint)
    except Exception as error:  # `tokenizers` raises plain Exception
        raise VerificationFailed(
            f"The tokenizers library cannot open the tokenizer of {checkpoint.directory}: "
            f"{shown(str(error))}."
        ) from error
    decoder = library.get_added_tokens_decoder()
    added = [decoder[number].content for number in sorted(decoder, reverse=True)]
    for text in probing_texts(texts, added):
        require_ids(
            f"The tokenizer differs from the files in {checkpoint.directory}",
            text,
            library.encode(text, add_special_tokens=False).ids,
            tokenizer.tokenize(text, special_tokens=True),
        )


def check_signature(
    name: str,
    token_ids: Callable[[Sequence[str]], Sequence[Sequence[int]]],
    tokenizer: BartTokenizer,
    texts: Sequence[str],
) -> None:
    """Compare the ids of a SavedModel's `tokenize` signature with a tokenizer's, on such texts.

    Raises:
        VerificationFailed: for the first text with different ids.
    """
    contents = [token.content for token in tokenizer.added_tokens]
    probes = probing_texts(texts, [token for token in contents if token not in SPECIAL_TOKENS])
    for text, received in zip(probes, token_ids(probes), strict=True):
        expected = tokenizer.encode(text, max(len(received), 2), truncate=True)
        require_ids(f"{name} tokenizes differently from Python", text, expected, received)


def probing_texts(texts: Sequence[str], added: Sequence[str]) -> list[str]:
    """Return texts, plus lower-case, blank and short ones, and some with added tokens."""
    probes = [probe.format(token) for token in added[:PROBED] for probe in PROBES]
    return [*texts, *(text.lower() for text in texts), "", " ", " one", *probes]


def require_ids(problem: str, text: str, expected: Sequence[int], received: Sequence[int]) -> None:
    """Raise VerificationFailed for the first id of a text that differs."""
    for place, pair in enumerate(itertools.zip_longest(expected, received)):
        if pair[0] != pair[1]:
            wanted, given = ("missing" if token_id is None else token_id for token_id in pair)
            raise VerificationFailed(
                f"{problem}: token {place} of {text!r} must be {wanted}, received {given}."
            )


def library_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Return a checkpoint's tokenizer as the library builds it from the files."""
    directory = checkpoint.directory
    path, assets = directory / "tokenizer.json", directory / "assets" / "tokenizer"
    if checkpoint.format == "keras":
        tokenizer = bpe_tokenizer(assets / "vocabulary.json", assets / "merges.txt")
        stored = read_json(path)
        settings = stored.get("config", {})
        plain = [
            {"content": token, "normalized": False}
            for token in settings.get("unsplittable_tokens") or ()
            if token not in SPECIAL_TOKENS
        ]
        added = [AddedToken(**token) for token in stored.get(ADDED_TOKENS) or plain]
    else:
        settings = read_json(directory / "tokenizer_config.json")
        if path.is_file():
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
            add_missing(tokenizer, BART)
        else:
            tokenizer = bpe_tokenizer(directory / "vocab.json", directory / "merges.txt")
        decoder = settings.get("added_tokens_decoder")
        if decoder is None:
            add_missing(tokenizer, map(AddedToken, read_json(directory / "added_tokens.json")))
            add_named(tokenizer, read_json(directory / "special_tokens_map.json"))
        add_named(tokenizer, settings)
        added = [AddedToken(**token) for _, token in sorted((decoder or {}).items())]
    tokenizer.add_tokens(added)
    if settings.get("add_prefix_space") is not None:
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=settings["add_prefix_space"])
    return tokenizer


def add_missing(tokenizer: Tokenizer, tokens: Iterable[AddedToken]) -> None:
    """Add the tokens that are not yet among a tokenizer's added tokens."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for token in tokens if token.content not in known])


def add_named(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Add the special tokens in a settings file of transformers."""
    for name, stored in settings.items():
        if name.endswith("_token") and isinstance(stored, dict):
            flags = {key: value for key, value in stored.items() if key not in ("__type", "id")}
            tokenizer.add_tokens([AddedToken(**flags | {"special": True})])
        elif name in ("additional_special_tokens", "extra_special_tokens"):
            for other in stored.values() if isinstance(stored, dict) else stored or ():
                if isinstance(other, dict):
                    add_named(tokenizer, {"other_token": other})
                else:
                    add_missing(tokenizer, [AddedToken(other, normalized=False)])


def bpe_tokenizer(vocabulary: pathlib.Path, merges: pathlib.Path) -> Tokenizer:
    """Return a tokenizer with the given vocabulary and merges, and BART's special tokens."""
    lines = merges.read_text(encoding="utf-8-sig").split("\n")
    split = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
    pairs = [(left, right) for left, _, right in split]
    tokenizer = Tokenizer(BPE(dict(read_json(vocabulary)), pairs))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    add_missing(tokenizer, BART)
    return tokenizer


def read_json(path: pathlib.Path) -> Mapping[str, Any]:
    """Return the object in a JSON file, or an empty one if the file is missing."""
    stored: Mapping[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return stored
