"""Progress is drawn only on a terminal, also while native libraries are silenced."""

import contextlib
import os
import pty
import re
import subprocess
import sys

import pytest
from support.command import python

SCRIPT = """
import os, time
from bart_export.progress import stages
from bart_export.quiet import native_stderr_silenced
with stages(3) as stage:
    stage("first")
    time.sleep(0.5)  # the bar is drawn ten times a second
    with native_stderr_silenced():
        os.write(2, b"chatter")
        stage("second")
        time.sleep(0.5)
        stage("third")
print("done")
"""

TEXTS = """
import time
from bart_export.progress import texts_bar
began = time.monotonic()
def counts():
    tenths = int(10 * (time.monotonic() - began))
    return 5 + tenths, 40 * tenths
with texts_bar(100, counts):
    time.sleep(1.5)
print("done")
"""


@pytest.mark.parametrize("script", [SCRIPT, TEXTS])
def test_without_a_terminal_nothing_is_drawn(script):
    done = python(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def on_a_terminal(program, stream):
    """Run a program with "stdout" or "stderr" on a terminal, and return the terminal's output."""
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", program], **{stream: theirs}, check=True)
    os.close(theirs)
    drawn = b""
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
        while piece := terminal.read(65536):  # on Linux the end is an error
            drawn += piece
    return drawn


def test_on_a_terminal_stages_are_named_and_the_bar_goes_away():
    drawn = on_a_terminal(SCRIPT, "stderr")
    assert b"first" in drawn
    assert b"second" in drawn
    assert b"chatter" not in drawn
    assert drawn.rstrip().endswith(b"\x1b[2K")  # the bar's line is erased


def test_on_a_terminal_texts_are_counted_with_their_speed_and_the_time_left():
    drawn = re.sub(rb"\x1b\[[\d;?]*\w", b"", on_a_terminal(TEXTS, "stderr"))
    shown = rb"(\d+)/100 texts  (\d+) tokens/s  (\S+) left"
    counts, rates, left = zip(*re.findall(shown, drawn), strict=True)
    assert int(counts[0]) < 10 < int(counts[-1])
    assert int(counts[-1]) < 100
    assert any(int(rate) > 0 for rate in rates)
    assert re.fullmatch(rb"0:\d\d:\d\d", left[-1])


def test_a_generated_text_steers_no_terminal_and_goes_to_a_file_as_it_is():
    program = r"from bart_export.progress import print_text; print_text('a\x1b[2J\nb')"
    assert on_a_terminal(program, "stdout") == b"a\\u001b[2J\r\nb\r\n"
    assert python(program).stdout == "a\x1b[2J\nb\n"
