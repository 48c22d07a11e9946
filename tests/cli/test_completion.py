"""Completion of commands, options, choices and paths."""

import os
import shutil
import subprocess
import sysconfig

import click
import pytest
from click.shell_completion import ShellComplete
from support.pages import blocks

from bart_export.cli.main import main
from bart_export.presets import PRESETS
from bart_export.recipes.table import RECIPES

(SET_UP,) = [block for block in blocks("sh", "docs/guide/generate.md") if "COMPLETE" in block]
# What bash does when Tab is pressed after the line in $1.
PRESS_TAB = """
compopt() { COMPREPLY+=("$*"); }
complete -p bart-export >/dev/null || exit
COMP_WORDS=($1)
[[ $1 == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_bart_export_completion bart-export
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bart-export gen", {"generate"}),
        ("bart-export generate --num-", {"--num-beams", "--num-return-sequences"}),
        ("bart-export serve --engine li", {"litert"}),
        ("bart-export inspect ./", {"-o", "default"}),
    ],
)
def test_bash_completes_when_set_up_as_the_guide_says(line, words):
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", SET_UP + PRESS_TAB, "bash", line],
        env=os.environ | {"PATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert ({*done.stdout.splitlines()}, done.stderr) == (words, "")


def completions(*words):
    """Return what completes the last of these words, and "a file" for a path."""
    found = ShellComplete(main, {}, "bart-export", "").get_completions([*words[:-1]], words[-1])
    return {"a file" if item.type == "file" else item.value for item in found}


# Parameters whose value is any text, number or bound.
FREE = {
    "text", "repository", "task", "model_name", "host", "allowed_hosts", "allowed_origins",
    "tolerance", "budget", "source_lengths", "num_beams", "sources", "num_texts", "num_threads",
}  # fmt: skip
PRESET = {"a file", *PRESETS}
KNOWN = {
    "preset": PRESET,
    "preset_or_artifact": PRESET,
    "against": PRESET,
    "recipe": {*RECIPES},
    "recipes": {"a file", "all", *RECIPES},
    "bench recipes": {*RECIPES},
    "bench engines": {"litert", "tensorflow"},
}


def parameters():
    """Yield the words before each parameter that completes, and the parameter."""
    commands = [("", main), *main.commands.items()]
    commands += [
        (f"edgetpu {name}", one) for name, one in main.commands["edgetpu"].commands.items()
    ]
    for words, command in commands:
        for one in command.params:
            number = isinstance(one.type, (click.types.IntParamType, click.types.FloatParamType))
            if not (number or one.name in FREE or getattr(one, "is_flag", False)):
                yield pytest.param(words, one, id=f"{words} {one.name}".strip())


@pytest.mark.parametrize(("command", "parameter"), [*parameters()])
def test_every_choice_and_path_completes(command, parameter):
    choices = getattr(parameter.type, "choices", ["a file"])
    known = KNOWN.get(parameter.name, {*choices})
    option = parameter.opts[:1] if isinstance(parameter, click.Option) else ()
    found = completions(*command.split(), *option, "")
    assert found == KNOWN.get(f"{command} {parameter.name}", known)


def test_a_part_of_a_word_completes():
    assert completions("inspect", "bart_m") == {"a file", "bart_mini_en"}
    assert completions("serve", "--engine", "li") == {"litert"}
    assert completions("bench", "x", "--engine", "litert,t") == {"litert,tensorflow"}
    assert "generate" in completions("bart_mini_en", "")  # not a command
