"""Completion in bash, set up as the guide says."""

import os
import shutil
import subprocess
import sysconfig

import pytest
from support.pages import blocks

(SET_UP,) = [block for block in blocks("sh", "docs/guide/generate.md") if "COMPLETE" in block]
# What bash does when Tab is pressed after the line in $1.
PRESS_TAB = """
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
        ("bart-export --target ", {"tflite", "saved_model", "edgetpu"}),
        ("bart-export generate --num-", {"--num-beams", "--num-return-sequences"}),
        ("bart-export edgetpu ", {"check"}),
    ],
)
def test_bash_completes(line, words):
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", SET_UP + PRESS_TAB, "bash", line],
        env=os.environ | {"PATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert ({*done.stdout.split()}, done.stderr) == (words, "")
