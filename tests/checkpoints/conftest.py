"""A copy of a golden checkpoint for each test to change."""

import pytest
from support.edited_checkpoints import copy


@pytest.fixture
def directory(tmp_path):
    return copy(tmp_path / "bart")
