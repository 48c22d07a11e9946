"""A sample of each kind of input of `tools/fuzz.py` finds no fault."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Numbers of inputs in a quick and in a slow sample, and expected outcomes.
SLICES = {
    "flatbuffer": (60, 300, {"refused"}),
    "manifest": (120, 1000, {"refused", "ran"}),
    "rest": (200, 1000, {"200", "400"}),
    "grpc": (200, 1000, {"OK", "INVALID_ARGUMENT"}),
    "tokenizer": (500, 10_000, {"the same"}),
    "tokenizer_file": (120, 1000, {"refused by TokenizerError", "the same"}),
    "graph_tokenizer": (64, 5000, {"the same"}),
}
CASES = [
    pytest.param(kind, count, words, id=f"{kind}-{count}", marks=[pytest.mark.slow] * slow)
    for kind, (*counts, words) in SLICES.items()
    for slow, count in enumerate(counts)
]


@pytest.mark.parametrize(("kind", "count", "words"), CASES)
def test_a_slice_of_the_fuzzer_finds_nothing(kind, count, words):
    command = ["tools/fuzz.py", kind, "--count", str(count), "--seed", "7", "--workers", "1"]
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (line,) = result.stdout.splitlines()
    counts = {word: int(count) for count, word in re.findall(r"(\d+) ([^,]+)", line)}
    assert words <= counts.keys()
    assert sum(counts.values()) >= count


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["flatbufer"], "a kind must be one of flatbuffer, manifest"),
        (["rest", "--workers", "0"], "--count and --workers must be at least 1"),
    ],
)
def test_what_cannot_be_tried_is_refused(arguments, words):
    command = [sys.executable, "tools/fuzz.py", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr


FAULTS = """
import os, sys, time
sys.path.insert(0, "tools")
import fuzz

def attempt(prepared, scratch, dice):
    return dice.choice([lambda: os._exit(3), lambda: 1 / 0, lambda: time.sleep(60), str])() or "ran"

fuzz.KINDS = {"odd": fuzz.Kind("odd", os.fspath, attempt, seconds=0.5)}
sys.argv += ["odd", "--count", "16"]
sys.exit(fuzz.main())
"""


def test_what_crashes_raises_or_hangs_is_told_by_seed():
    command = [sys.executable, "-c", FAULTS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    *told, counts = result.stdout.splitlines()
    assert result.returncode == 1, result.stderr
    for said in ("crashed: exit 3", "raised: ZeroDivisionError: division by zero", "hung: after"):
        assert any(re.match(rf"odd seed \d+ {said}", line) for line in told)
    assert re.fullmatch(r"odd: \d+ crashed, \d+ hung, \d+ raised, \d+ ran", counts)
