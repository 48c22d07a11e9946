"""A tiny checkpoint and its correct files, made once per session."""

import pytest


@pytest.fixture(scope="session")
def tiny(symmetric_artifact):
    from support.golden_cases import preset_of
    from support.judged_models import Judged

    return Judged(preset_of(symmetric_artifact))


@pytest.fixture(scope="session")
def base(tiny, tmp_path_factory):
    return tiny.float_file(tmp_path_factory.mktemp("right") / "float32.tflite")


@pytest.fixture(scope="session")
def int8(tiny, base):
    return tiny.quantized(base)
