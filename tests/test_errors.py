"""Errors that one process raises and another one receives."""

import pickle

import pytest

from bart_export.errors import InputError, MissingExtra
from bart_export.server.status import Code, StatusError


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
