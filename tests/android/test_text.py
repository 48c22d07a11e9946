"""The tokenizer data of android/core is up to date with this package."""

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHARACTERS = runpy.run_path(str(ROOT / "tools/android_characters.py"))
TEXT = runpy.run_path(str(ROOT / "tools/android_text.py"))
RESOURCES = ROOT / "android/core/src/test/resources/org/bartexport/text"


def test_classes_of_all_characters_are_those_of_the_library():
    written = CHARACTERS["FILE"].read_text(encoding="utf-8")
    assert written == CHARACTERS["kotlin"](), "run python tools/android_characters.py"


def test_odd_texts_have_the_ids_of_the_package():
    assert json.loads((RESOURCES / "odd_texts.json").read_text()) == TEXT["tokenized"]()


def test_added_tokens_have_the_ids_of_the_package():
    assert json.loads((RESOURCES / "added_tokens.json").read_text()) == TEXT["added"]()


def test_damaged_bytes_become_what_this_python_makes_of_them():
    assert json.loads((RESOURCES / "utf8.json").read_text()) == TEXT["utf8"]()
