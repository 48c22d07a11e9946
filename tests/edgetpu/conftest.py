"""The embedded preset's export for the Edge TPU, made once for all tests of a session."""

import pytest

from bart_export.export.options import EdgeTpuOptions
from bart_export.export.pipeline import export

ROWS = 32  # fewer than most texts have, so that they take several pieces


@pytest.fixture(scope="session")
def edgetpu_artifact(tmp_path_factory):
    output = tmp_path_factory.mktemp("artifacts") / "bart_mini_en"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nowhere")  # no compiler, whoever runs the tests
        return export("bart_mini_en", EdgeTpuOptions(ROWS), output)
