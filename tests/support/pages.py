"""The documentation's pages, their code blocks and commands."""

import re
import shlex

from support.paths import ROOT

INDEX = (ROOT / "docs/index.md").read_text(encoding="utf-8")
NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/index.md",
    *(f"docs/{name}.md" for name in re.findall(r"^[a-z_/]+$", INDEX, re.MULTILINE)),
    *(f"{folder}/README.md" for folder in ("android", "artifacts", "serving")),
)
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
README = PAGES["README.md"]


def blocks(language, page):
    """Return a page's code blocks in a language."""
    fenced = re.findall(r"^ *```([^\n]*)\n(.*?)^ *```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [block for marked, block in fenced if marked == language]


def command_lines(page):
    """Yield each command in a page's shell and indented blocks, as one line."""
    indented = re.findall(r"^    ((?:bart-export|make) .*)$", PAGES[page], re.MULTILINE)
    command = ""
    for line in "".join(blocks("sh", page)).replace("\\\n", " ").splitlines() + indented:
        command = f"{command} {line}".strip()
        try:
            complete = shlex.split(command, comments=True)
        except ValueError:  # an unterminated quotation, continued on the next line
            continue
        if complete:
            yield command.removeprefix(".venv/bin/")
        command = ""


def commands():
    """Return the distinct `bart-export` commands of all pages in order, as lists of words."""
    lines = (line for page in PAGES for line in command_lines(page))
    words = dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in lines)
    return [list(command) for command in words if command[0] == "bart-export"]
