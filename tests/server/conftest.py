"""A model store for the tests of loading and of choosing versions."""

import pytest
from support.served_directories import Opener, running_store


@pytest.fixture
def opener():
    return Opener()


@pytest.fixture
def store(opener):
    with running_store(opener) as store:
        yield store
