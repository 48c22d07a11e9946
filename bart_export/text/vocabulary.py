"""The two files of a byte-level BPE: token ids, and merges by rank.

Bytes are written as printable symbols.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from bart_export import documents
from bart_export.errors import TokenizerError, shown

LARGEST_FILE = 64 * documents.MEBIBYTE  # a hundred times BART's own files
START, PAD, END, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
SPECIAL_TOKENS = (START, PAD, END, UNKNOWN, MASK)


def byte_symbols() -> tuple[str, ...]:
    """Return the printable character for each byte in tokens and merges.

    As in GPT-2 (https://github.com/openai/gpt-2/blob/master/src/encoder.py), bytes that are
    printable in Latin-1 stand for themselves; the other 68 are numbered from U+0100.
    """
    latin = range(256)
    printable = {byte for byte in latin if 0x20 < byte < 0x7F or byte > 0xA0 and byte != 0xAD}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in latin)


BYTE_SYMBOLS = byte_symbols()


def read_vocabulary(file: Path) -> dict[str, int]:
    """Return {token: id} from a `vocabulary.json` (Hugging Face: `vocab.json`).

    Raises:
        TokenizerError: if the file is missing, is not a JSON object with ids 0 to n-1, or lacks a
            special token or a byte symbol.
    """
    try:
        vocabulary = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise TokenizerError(
            f"{file} must be a JSON object of tokens and ids, received invalid JSON: "
            f"{documents.fault_of(error)}. Copy the file again from its checkpoint."
        ) from None
    return checked_vocabulary(file, vocabulary)


def checked_vocabulary(file: Path, vocabulary: object) -> dict[str, int]:
    """Return a parsed vocabulary, or raise TokenizerError if it is not valid."""
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
            "duplicates or gaps. Copy the file again from its checkpoint."
        )
    require(file, vocabulary, SPECIAL_TOKENS, "the special tokens")
    require(file, vocabulary, BYTE_SYMBOLS, "the 256 byte symbols")
    return vocabulary


def read_merges(file: Path) -> list[tuple[str, str]]:
    """Return the pairs in a `merges.txt`, highest rank first, without a "#version" line.

    Raises:
        TokenizerError: if the file is missing, or a line is not two symbols separated by a space.
    """
    lines = read_text(file).rstrip("\n").split("\n")
    header = 1 if not lines[0] or lines[0].startswith("#version") else 0
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines[header:])]
    for number, (left, right) in enumerate(merges, start=header + 1):
        if not left or not right or " " in right:
            raise TokenizerError(
                f"{file} must have two symbols separated by a space on every line, received "
                f"{shown(lines[number - 1])} on line {number}. Copy the file again from its "
                "checkpoint."
            )
    return merges


def check_merges(
    place: str, vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]
) -> None:
    """Raise TokenizerError unless the vocabulary has every merge's parts and result.

    `place` names the merges in the message.
    """
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise TokenizerError(
                    f"{place} must merge tokens of the vocabulary, received {shown(token)}, which "
                    "is not one. Give files from the same checkpoint."
                )


def require(file: Path, vocabulary: Mapping[str, int], tokens: tuple[str, ...], words: str) -> None:
    """Raise TokenizerError if the vocabulary lacks one of the tokens; `words` describe them."""
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise TokenizerError(
            f"{file} must have {words}; {len(missing)} are missing, including "
            f"{shown(missing[0])}. Give the byte-level BPE vocabulary of a BART model."
        )


def read_text(file: Path) -> str:
    """Return a file's text without a byte order mark, or raise TokenizerError."""
    try:
        text = documents.read_bounded(file, LARGEST_FILE).decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise TokenizerError(
            f"The tokenizer file {file} cannot be read: {error.strerror}. A BART model has a "
            "vocabulary (vocabulary.json or vocab.json) and a merges.txt."
        ) from None
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"The tokenizer file {file} must be UTF-8, received an invalid byte at position "
            f"{error.start}. Copy the file again from its checkpoint."
        ) from None
