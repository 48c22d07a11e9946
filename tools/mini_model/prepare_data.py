"""Turn Debian's English package descriptions into (text, headline) pairs and a BPE vocabulary.

Usage: prepare_data.py TRANSLATION_EN_FILE OUT_DIR

The input is the plain text of Debian bookworm main's Translation-en index: one record per package,
whose first line is a headline its maintainer wrote and whose body describes the package. README.md
says how it was obtained. The vocabulary is a byte-level BPE.
"""

import hashlib
import json
import pathlib
import random
import re
import sys

from tokenizers import ByteLevelBPETokenizer

RECORD = re.compile(r"Package: (.*)\n(?:.*\n)*?Description-en: (.*)\n((?: .*\n?)*)")
FOLDS = 40  # one fold in forty is validation, one is test


def pairs_of(index: str) -> list[tuple[str, str]]:
    """Pairs with a first paragraph not seen before and a headline seen fewer than three times."""
    bodies: set[str] = set()
    headlines: dict[str, int] = {}
    pairs = []
    for record in index.split("\n\n"):
        match = RECORD.search(record)
        if not match:
            continue
        headline = match.group(2).strip()
        body = "\n".join(line[1:] for line in match.group(3).split("\n"))
        body = re.sub(r"\n\s*\.\n", "\n\n", body).strip()  # a lone dot is Debian's empty line
        paragraphs = [re.sub(r"\s+", " ", paragraph) for paragraph in body.split("\n\n")]
        if paragraphs[0] in bodies:
            continue
        bodies.add(paragraphs[0])
        headline = re.sub(r"\s*\([^)]*\)\s*$", "", headline)
        headline = re.sub(
            r"\s+--? (development|documentation|debug|header|common|data).*$", "", headline
        )
        if headlines.get(headline, 0) >= 3:
            continue
        headlines[headline] = headlines.get(headline, 0) + 1
        text = " ".join(paragraphs)
        if len(text) >= 120 and len(headline) >= 12:
            pairs.append((text[:900], headline))
    return pairs


def fold(pair: tuple[str, str]) -> int:
    """Packages of one family begin alike: keep them in one fold."""
    return int(hashlib.md5(pair[0][:25].encode()).hexdigest(), 16) % FOLDS


def main() -> None:
    index, out = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"), pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    pairs = pairs_of(index)
    random.seed(0)
    random.shuffle(pairs)
    splits = {
        "train": [pair for pair in pairs if fold(pair) > 1],
        "valid": [pair for pair in pairs if fold(pair) == 0],
        "test": [pair for pair in pairs if fold(pair) == 1],
    }
    for name, split in splits.items():
        (out / f"{name}.json").write_text(json.dumps(split))
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        [text for pair in splits["train"] for text in pair],
        vocab_size=8192,
        min_frequency=2,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )
    tokenizer.save_model(str(out))
    print({name: len(split) for name, split in splits.items()})


if __name__ == "__main__":
    main()
