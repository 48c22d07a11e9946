"""Native output does not reach standard error, unless it may explain a failure."""

import os
import sys
import tempfile
import threading
import time

import pytest
from support.command import python

from bart_export.errors import ArtifactError
from bart_export.quiet import native_stderr_silenced


def say(text):
    """Write to the descriptor, as a native library does."""
    os.write(2, text.encode())


def test_what_native_code_says_is_not_seen_and_what_follows_is(capfd):
    sys.stderr.write("before ")
    with native_stderr_silenced():
        say("hidden")
        with native_stderr_silenced():
            say("hidden")
        say("hidden, too")
    say("after")
    assert capfd.readouterr().err == "before after"


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (ZeroDivisionError(), "the divisor is 0 after"),
        (ArtifactError("one line"), " after"),
        (OSError(28, "No space left"), " after"),
    ],
)
def test_what_was_said_precedes_an_error_that_does_not_explain_itself(capfd, error, seen):
    with pytest.raises(type(error)), native_stderr_silenced():
        say("the divisor is 0")
        raise error
    say(" after")
    assert capfd.readouterr().err == seen


def test_descriptors_are_given_back():
    before = os.listdir("/dev/fd")
    for _ in range(20):
        with native_stderr_silenced():
            say("hidden")
    assert os.listdir("/dev/fd") == before


def test_without_a_place_for_temporary_files_it_is_silent_all_the_same(capfd, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", "/nowhere")
        with native_stderr_silenced():
            say("hidden")
        with pytest.raises(ZeroDivisionError), native_stderr_silenced():
            1 / 0  # noqa: B018
    assert capfd.readouterr().err == ""


CLOSED = """
import os
from bart_export.quiet import native_stderr_silenced
os.close(2)
with native_stderr_silenced():
    print("done")
"""


def test_without_a_standard_error_there_is_nothing_to_silence():
    done = python(CLOSED)
    assert (done.returncode, done.stdout) == (0, "done\n")


GENERATING = "import sys; from bart_export.runtime import Generator\n"
WORDLESS = """
print(Generator.from_artifact(sys.argv[1]).generate('A text.', num_beams=2).score)
print(*Generator.from_artifact(sys.argv[1]).stream('A text.'))
"""
FAILING = """
Generator.from_artifact(sys.argv[1]).generate('A text.')
raise RuntimeError('of my own')
"""


def test_the_runtime_opens_runs_and_ends_without_a_word(symmetric_artifact):
    done = python(GENERATING + WORDLESS, symmetric_artifact.directory)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_after_the_runtime_was_used_is_seen(symmetric_artifact):
    """Only the end of the process is silenced."""
    done = python(GENERATING + FAILING, symmetric_artifact.directory)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("RuntimeError: of my own\n")


def test_blocks_of_several_threads_leave_standard_error_where_it_was(capfd):
    began = threading.Event()

    def first():
        with native_stderr_silenced():
            began.set()
            say("hidden")
            time.sleep(0.2)  # the other block is as long, and would end later

    def second():
        began.wait()
        with native_stderr_silenced():
            say("hidden, too")
            time.sleep(0.2)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    say("after")
    assert capfd.readouterr().err == "after"
