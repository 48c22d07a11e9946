"""The tokenizer of BART's own checkpoints."""

import pytest
from support.paths import DATA

from bart_export.text.tokenizer import BartTokenizer


@pytest.fixture(scope="session")
def tokenizer():
    folder = DATA / "vocabulary"
    return BartTokenizer.from_files(folder / "vocabulary.json", folder / "merges.txt")
