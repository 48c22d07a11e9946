"""Texts, tokenizers and tokenizer files for `fuzz.py`, compared with the `tokenizers` library.

Texts mix the character classes of pretokenization and added tokens with random flags; merges are
random or BART's. A TensorFlow graph must return the same ids.
"""

import dataclasses
import functools
import json
import pathlib
import random
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import android_text
import server_requests
import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from bart_export.text.tokenizer import BartTokenizer, IncrementalDetokenizer
from bart_export.text.vocabulary import BYTE_SYMBOLS, SPECIAL_TOKENS

BATCH = 64  # texts per call of a graph
GRAPHS = 8  # tokenizers with a graph, which takes seconds to build
LENGTHS = (8, 1024)  # maximum lengths of a graph
PIECES = ["".join(kind) for kinds in android_text.KINDS for kind in kinds]
PIECES += [*android_text.CONTENTS, *SPECIAL_TOKENS, " ", "a", "ab", "'s"] * 4
# The symbols to merge: few, so that the merges occur in texts.
LETTERS = [BYTE_SYMBOLS[byte] for byte in "ab <hl>'s\né\u3000".encode()]
ROOT = pathlib.Path(__file__).parents[1]
CASES = [
    ROOT / "tests" / "data" / "cases" / name
    for name in ("add-prefix-space", "added-token-in-vocabulary", "added-tokens-json")
]
CASES.append(ROOT / "bart_export" / "assets" / "bart_mini_en")
FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.json", "merges.txt",
         "assets/tokenizer/vocabulary.json", "assets/tokenizer/merges.txt")  # fmt: skip


SAME = "the same"
# Runs a graph.
Graph = Callable[..., Any]


def prepare(directory: pathlib.Path) -> None:
    """Prepare nothing."""


def attempt(prepared: None, scratch: pathlib.Path, dice: random.Random) -> str:
    """Tokenize a complete and a truncated text, and detokenize it."""
    host = bart() if dice.random() < 0.2 else random_host(dice)
    text = random_text(dice)
    own = [one for one in host.added_tokens if one.content not in SPECIAL_TOKENS]
    for special_tokens in (True, False):
        ids = host.tokenize(text, special_tokens=special_tokens)
        library = library_of(host, special_tokens)
        same(text, ids, library.encode(text, add_special_tokens=False).ids)
        most = dice.choice((2, 3, 5, 9, 60, len(ids) + 2, len(ids) + 3))
        cut = host.encode(text, most, truncate=True, special_tokens=special_tokens)
        same(text, cut, [host.start_token_id, *ids[: most - 2], host.end_token_id])
        detokenizer = IncrementalDetokenizer(host)
        pieces = [*map(detokenizer.push, ids), detokenizer.finish()]
        same(text, "".join(pieces), host.detokenize(ids))
    if not host.add_prefix_space and not any(one.lstrip or one.rstrip for one in own):
        same(text, host.detokenize(ids, skip_special_tokens=False), text)
    return SAME


def attempt_file(prepared: None, scratch: pathlib.Path, dice: random.Random) -> str:
    """Damage a file of a checkpoint's tokenizer, and compare the tokenizer with the library."""
    from bart_export.checkpoints import resolve
    from bart_export.errors import BartExportError
    from bart_export.verify import tokenization

    case = scratch / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(dice.choice(CASES), case, ignore=shutil.ignore_patterns("model.*"))
    path = dice.choice([case / name for name in FILES if (case / name).exists()])
    content = path.read_bytes()
    if path.suffix == ".json" and dice.random() < 0.7:
        content = json.dumps(server_requests.odd(json.loads(content), dice)).encode()
    else:
        content = server_requests.damaged(content, dice)
    path.write_bytes(content)
    try:
        checkpoint = resolve.read(case, weights=False)
        tokenization.check_tokenizer(checkpoint, checkpoint.tokenizer(), [random_text(dice)])
    except BartExportError as error:
        if not str(error).isprintable() or "differs from the files" in str(error):
            raise
        return f"refused by {type(error).__name__}"
    return SAME


def attempt_graph(prepared: None, scratch: pathlib.Path, dice: random.Random) -> str:
    """Tokenize and detokenize texts in a graph."""
    most = dice.choice(LENGTHS)
    host, encode, decode = graph(dice.randrange(GRAPHS), most)
    texts = [random_text(dice).encode() for _ in range(BATCH)]
    texts[0] = server_requests.damaged(texts[0], dice)  # may be invalid UTF-8
    ids, lengths = encode(texts)
    for data, row, length, shown in zip(texts, ids, lengths, decode(ids, lengths), strict=True):
        text, row = data.decode("utf-8", "replace"), row[:length].tolist()
        whole = host.tokenize(text)
        same(text, row, [host.start_token_id, *whole[: most - 2], host.end_token_id])
        same(text, shown.decode(), host.detokenize(row))
    return SAME


@functools.cache
def graph(number: int, most: int) -> tuple[BartTokenizer, Graph, Graph]:
    """Return a tokenizer, its graph with at most `most` ids, and its detokenizing graph."""
    import tensorflow as tf

    from bart_export.graph.tokenizer import GraphTokenizer

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    host = random_host(random.Random(number)) if number else bart()
    tokenizer = GraphTokenizer(host)
    text = tf.TensorSpec([None], tf.string)
    rows = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)
    encode = tf.function(lambda texts: tokenizer.encode(texts, most), input_signature=[text])
    decode = tf.function(tokenizer.decode, input_signature=rows)
    return (
        host,
        lambda texts: [each.numpy() for each in encode(tf.constant(texts))],
        lambda ids, lengths: decode(tf.constant(ids), tf.constant(lengths)).numpy(),
    )


@functools.cache
def bart() -> BartTokenizer:
    """Return a tokenizer with BART's vocabulary."""
    return android_text.tokenizer()


def random_host(dice: random.Random) -> BartTokenizer:
    """Return a tokenizer with random merges and added tokens."""
    made: dict[str, tuple[str, str]] = {}
    for _ in range(dice.randrange(80)):
        left, right = dice.choices([*LETTERS, *made], k=2)
        if len(left + right) <= 40:
            made.setdefault(left + right, (left, right))
    contents = dice.sample(android_text.CONTENTS, k=dice.randrange(6))
    tokens = dict.fromkeys((*SPECIAL_TOKENS, *BYTE_SYMBOLS, *made, *contents))
    return BartTokenizer(
        {token: number for number, token in enumerate(tokens)},
        list(made.values()),
        [android_text.random_token(dice, content) for content in contents],
        add_prefix_space=dice.random() < 0.5,
    )


def random_text(dice: random.Random) -> str:
    """Return a random text; one in a hundred is long."""
    count = dice.randrange(3000) if dice.random() < 0.01 else dice.randrange(30)
    text = "".join(dice.choices(PIECES, k=count))
    return text * dice.choice((1,) * 9 + (40,)) if len(text) < 9 else text


@functools.lru_cache(maxsize=64)  # BART's takes long
def library_of(host: BartTokenizer, special_tokens: bool) -> tokenizers.Tokenizer:
    """Return the library's tokenizer with the same tables and added tokens."""
    library = tokenizers.Tokenizer(BPE(host.vocabulary, host.merges))
    library.pre_tokenizer = ByteLevel(add_prefix_space=host.add_prefix_space)
    library.add_tokens(
        [
            tokenizers.AddedToken(**dataclasses.asdict(token))
            for token in host.added_tokens
            if special_tokens or token.content not in SPECIAL_TOKENS
        ]
    )
    return library


def same(text: str, found: Sequence[int] | str, expected: Sequence[int] | str) -> None:
    """Raise AssertionError if the result for a text differs."""
    if found != expected:
        raise AssertionError(f"{text[:80]!r}: {found[:40]!r}, not {expected[:40]!r}")
