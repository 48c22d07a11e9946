"""Artifacts that are exported once per session; no test may change them."""

import atexit
import os
import pathlib
import shutil
import signal
import tempfile

import pytest
from support.paths import DISTILLED, SYMMETRIC

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tables are as wide as in a file; pytest-xdist sets 80.
os.environ.pop("COLUMNS", None)
# A shell's background job ignores Ctrl-C, and so would the commands that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The user's cache is not used.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="bart-export-tests.")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def export_once(tmp_path_factory):
    """Return `export(preset, recipes...)`, which caches artifacts."""
    from bart_export.export.options import TfliteOptions
    from bart_export.export.pipeline import export
    from bart_export.recipes.table import RECIPES

    made = {}

    def once(preset, *names):
        if (preset, names) not in made:
            output = tmp_path_factory.mktemp("artifacts") / pathlib.Path(preset).name
            options = TfliteOptions(tuple(RECIPES[name] for name in names))
            made[preset, names] = export(preset, options, output)
        return made[preset, names]

    return once


@pytest.fixture(scope="session")
def symmetric_artifact(export_once):
    """Return the artifact of a tiny random checkpoint: about 1 MB, one float32 file."""
    return export_once(str(SYMMETRIC), "float32")


@pytest.fixture(scope="session")
def distilled_artifact(export_once):
    """Return the artifact of a checkpoint with 3 encoder layers, 1 decoder layer and a bias."""
    return export_once(str(DISTILLED), "float32")


@pytest.fixture(scope="session")
def mini_artifact(export_once):
    """Return the artifact of the embedded preset, in float32 and with int8 weights."""
    return export_once("bart_mini_en", "float32", "dynamic_wi8_afp32")


@pytest.fixture(scope="session")
def static_artifact(mini_artifact, tmp_path_factory):
    """Return `mini_artifact` with additional static builds of both recipes."""
    from support import static_builds

    from bart_export.contract import StaticShapes

    shapes = StaticShapes((32, 160), target_length=32, num_beams=(1, 4), draft_length=5)
    target = tmp_path_factory.mktemp("static") / "bart_mini_en"
    return static_builds.add(mini_artifact, shapes, ("float32", "dynamic_wi8_afp32"), target)


@pytest.fixture(scope="session")
def saved_model_artifact(tmp_path_factory):
    """Return the artifact of a tiny random checkpoint as a SavedModel, version 1."""
    from bart_export.export.options import SavedModelOptions
    from bart_export.export.pipeline import export

    output = tmp_path_factory.mktemp("artifacts") / "bart_tiny_symmetric"
    return export(str(SYMMETRIC), SavedModelOptions(), output)
