"""Progress is drawn on a terminal, through silenced blocks, and nowhere else."""

import os
import pty
import subprocess
import sys

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


def test_without_a_terminal_nothing_is_drawn():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_on_a_terminal_stages_are_named_and_the_bar_goes_away():
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    drawn = read_all(ours)
    assert done.stdout == b"done\n"
    assert b"first" in drawn
    assert b"second" in drawn
    assert b"chatter" not in drawn
    assert drawn.rstrip().endswith(b"\x1b[2K")  # the bar's line is erased


def read_all(descriptor):
    """Return what was written to a terminal whose other end is closed."""
    drawn = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # Linux, once the other end is closed
            break
        if not piece:
            break
        drawn += piece
    os.close(descriptor)
    return drawn


SAID = r"""
from bart_export.progress import say
say("a\x1b[2J\nb")
"""


def test_a_generated_text_steers_no_terminal_and_goes_to_a_file_as_it_is():
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", SAID], stdout=theirs, check=True)
    os.close(theirs)
    assert read_all(ours) == b"a\\u001b[2J\r\nb\r\n"
    piped = subprocess.run([sys.executable, "-c", SAID], stdout=subprocess.PIPE, check=True)
    assert piped.stdout == b"a\x1b[2J\nb\n"
