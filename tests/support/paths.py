"""Where the data of the tests is."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT, DATA = TESTS.parent, TESTS / "data"
GOLDEN, CASES = DATA / "golden", DATA / "cases"
SYMMETRIC, DISTILLED = GOLDEN / "bart_tiny_symmetric", GOLDEN / "bart_tiny_distilled"
