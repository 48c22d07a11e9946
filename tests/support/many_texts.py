"""As many different texts as a test wants, cut from those of the embedded preset."""

import json
import random

from bart_export.presets import ASSETS

WORDS = " ".join(
    json.loads(line)["text"]
    for line in (ASSETS / "bart_mini_en/calibration.jsonl").read_text("utf-8").splitlines()
).split()


def texts(count, longest):
    """Return texts of 1 to `longest` words."""
    draw = random.Random(0)
    lengths = [draw.randint(1, longest) for _ in range(count)]
    starts = [draw.randrange(len(WORDS) - length) for length in lengths]
    return [
        " ".join(WORDS[start : start + length])
        for start, length in zip(starts, lengths, strict=True)
    ]
