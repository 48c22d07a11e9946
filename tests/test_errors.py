"""An error's message, also in another process than the one that raised it."""

import pickle

import pytest

from bart_export.errors import BartExportError, InputError, MissingExtra
from bart_export.server.status import Code, StatusError


# Which is why no other test looks for line breaks in the message of an error.
def test_an_error_is_one_line_that_steers_no_terminal():
    given = "A line\nor\r\ntwo\u2028\u202e, \x1b[2J\x9b2J and \x00."
    expected = r"A line or two \u202e, \u001b[2J\u009b2J and \u0000."
    assert [str(kind(given)) for kind in (BartExportError, InputError)] == [expected] * 2


def test_what_an_error_quotes_is_bounded_and_its_advice_remains():
    word = str(InputError(f"Cannot read /first{'x' * 5000}/last. Rename it."))
    words = str(InputError(f"Expected a number, received {'1, ' * 5000}. Give another."))
    assert word.startswith("Cannot read /firstxxx") and word.endswith("xxx/last. Rename it.")
    assert words.startswith("Expected a number") and words.endswith("1, . Give another.")
    assert len(word) == len(words) == 2049


@pytest.mark.parametrize(
    "error",
    [
        InputError("A line."),
        MissingExtra("Running it", "a-package", "serve"),
        StatusError(Code.UNAVAILABLE, "Try again."),
    ],
)
def test_a_pickled_error_is_the_same(error):
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))
