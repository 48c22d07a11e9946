"""The two files of a byte-level BPE: tokens with their ids, and merges in order of rank.

Paths come in; a checked dictionary and a checked list go out. The module knows how bytes are
spelled as printable symbols and which special tokens a BART has. It does not know how text is
cut, and imports no library, so that every implementation of the BPE can read its tables here.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from bart_export import documents
from bart_export.errors import TokenizerError, shown

LARGEST_FILE = 64 * documents.MEBIBYTE  # a hundred times the files of BART's vocabulary
START, PAD, END, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
SPECIAL_TOKENS = (START, PAD, END, UNKNOWN, MASK)


def byte_symbols() -> tuple[str, ...]:
    """Return the printable character that stands for each byte in tokens and merges.

    GPT-2's spelling (https://github.com/openai/gpt-2/blob/master/src/encoder.py): bytes that
    Latin-1 prints are themselves, the other 68 are numbered upwards from U+0100.
    """
    latin = range(256)
    printable = {byte for byte in latin if 0x20 < byte < 0x7F or byte > 0xA0 and byte != 0xAD}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in latin)


BYTE_SYMBOLS = byte_symbols()


def read_vocabulary(file: Path) -> dict[str, int]:
    """Return {token: id} of a `vocabulary.json` (Hugging Face: `vocab.json`).

    Raises:
        TokenizerError: when the file is missing, is not a JSON object of ids 0 to n-1, or lacks a
            special token or the symbol of a byte.
    """
    try:
        vocabulary = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:  # the latter for absurdly deep nesting
        raise TokenizerError(
            f"{file} must be a JSON object of tokens and ids, received invalid JSON: "
            f"{documents.fault_of(error)}. Copy the file again from its checkpoint."
        ) from None
    return checked_vocabulary(file, vocabulary)


def checked_vocabulary(file: Path, vocabulary: object) -> dict[str, int]:
    """Return the vocabulary that a JSON file holds, or raise TokenizerError."""
    if not isinstance(vocabulary, dict) or {type(id) for id in vocabulary.values()} != {int}:
        raise TokenizerError(
            f"{file} must be a JSON object of tokens and integer ids. "
            "Give the vocabulary.json of a Keras preset or the vocab.json of a Hugging Face model."
        )
    size = len(vocabulary)
    if sorted(vocabulary.values()) != list(range(size)):
        raise TokenizerError(
            f"{file} must number its {size} tokens 0 to {size - 1}, each id once, received ids "
            f"from {shown(min(vocabulary.values()))} to {shown(max(vocabulary.values()))} with "
            "repetitions or gaps. Copy the file again from its checkpoint."
        )
    require(file, vocabulary, SPECIAL_TOKENS, "the special tokens")
    require(file, vocabulary, BYTE_SYMBOLS, "the 256 byte symbols")
    return vocabulary


def read_merges(file: Path) -> list[tuple[str, str]]:
    """Return the pairs of `merges.txt`, the one to merge first first.

    A first line beginning with "#version" is not a merge. Whether the merges fit a vocabulary is
    checked by the tokenizer, which has both.

    Raises:
        TokenizerError: when the file is missing or a line is not two symbols with a space between.
    """
    lines = read_text(file).rstrip("\n").split("\n")
    header = 1 if not lines[0] or lines[0].startswith("#version") else 0
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines[header:])]
    for number, (left, right) in enumerate(merges, start=header + 1):
        if not left or not right or " " in right:
            raise TokenizerError(
                f"{file} must have two symbols with a space between on every line, received "
                f"{shown(lines[number - 1])} on line {number}. Copy the file again from its "
                "checkpoint."
            )
    return merges


def check_merges(
    place: str, vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]
) -> None:
    """Raise TokenizerError unless merges are of tokens, and make tokens.

    `place` is what the line says of where.
    """
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise TokenizerError(
                    f"{place} must merge tokens of the vocabulary, received {shown(token)}, which "
                    "is none. Give the files of one checkpoint."
                )


def require(file: Path, vocabulary: Mapping[str, int], tokens: tuple[str, ...], words: str) -> None:
    """Raise TokenizerError when the vocabulary lacks one of the tokens."""
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise TokenizerError(
            f"{file} must have {words}, {len(missing)} are missing, among them "
            f"{shown(missing[0])}. Give the byte-level BPE vocabulary of a BART."
        )


def read_text(file: Path) -> str:
    """Return the file's text without byte order mark, or raise TokenizerError."""
    try:
        text = documents.read_bounded(file, LARGEST_FILE).decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise TokenizerError(
            f"The tokenizer file {file} cannot be read: {error.strerror}. A BART has a vocabulary "
            "(vocabulary.json or vocab.json) and a merges.txt."
        ) from None
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"The tokenizer file {file} must be UTF-8, received another byte at position "
            f"{error.start}. Copy the file again from its checkpoint."
        ) from None
