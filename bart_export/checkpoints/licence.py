"""What a checkpoint says of its licence, in its model card README.md or in a file LICENSE."""

import re
from pathlib import Path

from bart_export.checkpoints.files import read_text
from bart_export.errors import CheckpointError, printable

CARD = "README.md"
LONGEST = 200  # characters of what a card states
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
FILES = (CARD, *LICENCES)
# The first lines of a Hugging Face card are YAML between two rules, with a key `license`
# (huggingface.co/docs/hub/model-cards); its name, where `license` is "other", is `license_name`.
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
KEY = re.compile(r"^(license_name|license):(.*)$", re.MULTILINE)
HEADING = re.compile(r"^#+ ([^\n]*\blicen[cs]es?\b[^\n]*)$", re.MULTILINE | re.IGNORECASE)


def licence(directory: Path) -> str | None:
    """Return the name of a checkpoint's licence or where its directory has it, None for neither."""
    try:
        card = read_text(directory / CARD)
    except CheckpointError:
        card = ""
    if front := FRONT_MATTER.match(card):
        stated = {key: value.strip().strip("\"'") for key, value in KEY.findall(front[1])}
        if name := stated.get("license_name") or stated.get("license"):
            return shortened(name)
    if heading := HEADING.search(card):
        return f'as the checkpoint\'s {CARD} says under "{shortened(heading[1])}"'
    for name in LICENCES:
        if (directory / name).is_file():
            return f"as the checkpoint's file {name} says"
    return None


def shortened(stated: str) -> str:
    """Return what a card states, as far as it fits a line."""
    return printable(stated.strip()[:LONGEST])
