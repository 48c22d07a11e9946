"""The README as tests read it: its code blocks, and the commands in them."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """Return the README's code blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [block for marked, block in fenced if marked == language]


def commands():
    """Return the README's `bart-export` commands, in their order."""
    text = "".join(blocks("sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("bart-export")]
