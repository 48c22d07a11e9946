"""The embedded preset's export for the Edge TPU."""

import pytest

from bart_export.export.options import EdgeTpuOptions

ROWS = 32  # fewer than most texts have, so that they take several pieces


@pytest.fixture(scope="session")
def edgetpu_artifact(export_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nowhere")  # no compiler, whoever runs the tests
        return export_once("bart_mini_en", EdgeTpuOptions(ROWS))
