"""The tokenizer of BART's own checkpoints."""

from pathlib import Path

import pytest

from bart_export.text.tokenizer import BartTokenizer


@pytest.fixture(scope="session")
def tokenizer():
    folder = Path(__file__).parents[1] / "data/vocabulary"
    return BartTokenizer.from_files(folder / "vocabulary.json", folder / "merges.txt")
