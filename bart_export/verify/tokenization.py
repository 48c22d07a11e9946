"""A tokenizer held to its checkpoint's own files, read by the `tokenizers` library itself.

Both models of a comparison get their ids from one tokenizer, so that a wrong one goes unseen there.
Here the checkpoint's files are read again, in another way than by `checkpoints.tokenizer_files`:
the library opens a tokenizer.json itself, and is told what stands in the files beside it.
"""

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

PROBED = 100  # added tokens that get texts of their own
PROBES = (
    "{0}",
    "one {0} two",
    "one{0}two",
    " {0} {0}\n{0}{0}!",
    "A word before it. {0} And after.",
)


def check_tokenizer(checkpoint: Checkpoint, tokenizer: BartTokenizer, texts: Sequence[str]) -> None:
    """Compare the ids of texts, and of some around each added token.

    Raises:
        VerificationFailed: for the first text that has other ids.
    """
    try:
        library = library_tokenizer(checkpoint)
    except Exception as error:  # `tokenizers` has no class of its own for this
        raise VerificationFailed(
            f"The tokenizers library cannot open the tokenizer of {checkpoint.directory}: "
            f"{shown(str(error))}. Nothing was committed."
        ) from error
    decoder = library.get_added_tokens_decoder()
    added = [decoder[number].content for number in sorted(decoder, reverse=True)]
    for text in probing_texts(texts, added):
        require_ids(
            f"The tokenizer does not say what the files in {checkpoint.directory} say",
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
    """Compare the ids that the `tokenize` of a SavedModel, by its name, gives for such texts.

    Raises:
        VerificationFailed: for the first text that has other ids.
    """
    own = [token.content for token in tokenizer.added_tokens if token.content not in SPECIAL_TOKENS]
    asked = probing_texts(texts, own)
    for text, received in zip(asked, token_ids(asked), strict=True):
        expected = tokenizer.encode(text, max(len(received), 2), truncate=True)
        require_ids(f"{name} does not tokenize as Python does", text, expected, received)


def probing_texts(texts: Sequence[str], added: Sequence[str]) -> list[str]:
    """Return texts, and some that begin in all ways or have an added token."""
    around = [probe.format(token) for token in added[:PROBED] for probe in PROBES]
    return [*texts, *(text.lower() for text in texts), "", " ", " one", *around]


def require_ids(problem: str, text: str, expected: Sequence[int], received: Sequence[int]) -> None:
    """Raise VerificationFailed when a text has other ids than expected."""
    pairs = enumerate(zip((*expected, -1), (*received, -1), strict=False))
    place = next((number for number, (wanted, given) in pairs if wanted != given), None)
    if place is not None:
        raise VerificationFailed(
            f"{problem}: of {text!r} token {place} must be {[*expected[place : place + 1]]}, "
            f"received {[*received[place : place + 1]]}. Nothing was committed."
        )


def library_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Return a checkpoint's tokenizer as the library makes it of the files."""
    directory = checkpoint.directory
    path, assets = directory / "tokenizer.json", directory / "assets" / "tokenizer"
    if checkpoint.format == "keras":
        tokenizer = of_tables(assets / "vocabulary.json", assets / "merges.txt")
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
            tokenizer = of_tables(directory / "vocab.json", directory / "merges.txt")
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
    """Add those tokens that are not added tokens yet."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for token in tokens if token.content not in known])


def add_named(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Add the special tokens that a file of transformers names."""
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


def of_tables(vocabulary: pathlib.Path, merges: pathlib.Path) -> Tokenizer:
    """Return the tokenizer of a vocabulary, merges and the special tokens of BART."""
    lines = merges.read_text(encoding="utf-8-sig").split("\n")
    split = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
    pairs = [(left, right) for left, _, right in split]
    tokenizer = Tokenizer(BPE(dict(read_json(vocabulary)), pairs))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    add_missing(tokenizer, BART)
    return tokenizer


def read_json(path: pathlib.Path) -> Mapping[str, Any]:
    """Return the object in a JSON file, an empty one of a file that is missing."""
    stored: Mapping[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return stored
