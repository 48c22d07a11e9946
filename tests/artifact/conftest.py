"""An artifact of two small files, which a test may change."""

import pytest
from support import made_up_artifacts


@pytest.fixture
def made(tmp_path):
    return made_up_artifacts.write(tmp_path / "made", made_up_artifacts.FILES)
