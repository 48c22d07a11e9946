"""Native chatter stays away from standard error, unless it may explain a failure."""

import os
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from bart_export.errors import ArtifactError
from bart_export.quiet import native_stderr_silenced


def say(text):
    """Write past Python, as a native library does."""
    os.write(2, text.encode())


def test_what_native_code_says_is_not_seen_and_what_follows_is(capfd):
    sys.stderr.write("before ")
    with native_stderr_silenced():
        say("hidden")
    say("after")
    assert capfd.readouterr().err == "before after"


def test_a_failure_is_preceded_by_what_was_said(capfd):
    with pytest.raises(ZeroDivisionError), native_stderr_silenced():
        say("the divisor is 0")
        1 / 0  # noqa: B018
    assert capfd.readouterr().err == "the divisor is 0"


@pytest.mark.parametrize("error", [ArtifactError("one line"), OSError(28, "No space left")])
def test_an_error_that_explains_itself_stands_alone(capfd, error):
    with pytest.raises(type(error)), native_stderr_silenced():
        say("hidden")
        raise error
    say("after")
    assert capfd.readouterr().err == "after"


def test_a_block_within_a_block_is_silent_and_so_is_what_follows(capfd):
    with native_stderr_silenced():
        with native_stderr_silenced():
            say("hidden")
        say("hidden, too")
    say("after")
    assert capfd.readouterr().err == "after"


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
    done = subprocess.run([sys.executable, "-c", CLOSED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_the_runtime_opens_runs_and_ends_without_a_word(symmetric_artifact):
    script = (
        "import sys; from bart_export.runtime import Generator\n"
        "print(Generator.from_artifact(sys.argv[1]).generate('A text.', num_beams=2).score)\n"
        "print(*Generator.from_artifact(sys.argv[1]).stream('A text.'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(symmetric_artifact.directory)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_after_the_runtime_was_used_is_seen(symmetric_artifact):
    """The end is silenced, not what Python says before it."""
    script = (
        "import sys; from bart_export.runtime import Generator\n"
        "Generator.from_artifact(sys.argv[1]).generate('A text.')\n"
        "raise RuntimeError('of my own')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(symmetric_artifact.directory)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: of my own\n")
    assert done.stderr.startswith("Traceback")


def test_blocks_of_several_threads_leave_standard_error_where_it_was(capfd):
    began = threading.Event()

    def first():
        with native_stderr_silenced():
            began.set()
            say("hidden")
            time.sleep(0.2)  # the other's block is as long, and would end after this one's

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
