"""What a checkpoint says of its licence: a directory goes in, a line comes out.

Looked at are the model card, README.md, and the file LICENSE. What the licence allows is not known
here.
"""

import re
from pathlib import Path

CARD = "README.md"
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
# The first lines of a Hugging Face card are YAML between two rules, with a key `license`
# (huggingface.co/docs/hub/model-cards); its name, where `license` is "other", is `license_name`.
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
KEY = re.compile(r"^(license_name|license):\s*[\"']?([^\"'\n]+?)[\"']?\s*$", re.MULTILINE)
# A section whose heading names licences, up to the end of its first paragraph.
SECTION = re.compile(r"^#+ [^\n]*\blicen[cs]es?\b[^\n]*\n+(.+?)(?:\n\n|\Z)", re.M | re.S | re.I)


def licence(directory: Path) -> str | None:
    """Return what a checkpoint's directory says of its licence, None if it says nothing."""
    try:
        card = (directory / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        card = ""
    if front := FRONT_MATTER.match(card):
        stated = dict(KEY.findall(front[1]))
        if name := stated.get("license_name") or stated.get("license"):
            return str(name)
    if section := SECTION.search(card):
        return " ".join(section[1].split())
    for name in LICENCES:
        if (directory / name).is_file():
            return f"as the checkpoint's file {name} says"
    return None
