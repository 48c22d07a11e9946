"""Artifacts that are exported once; no test may change them."""

import atexit
import hashlib
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
def made_once(tmp_path_factory):
    """Return `made_once(name, make)`: an artifact that `make(directory)` writes.

    It is made by the first process of pytest-xdist that needs it; each process has its own copy.
    """
    from filelock import FileLock

    from bart_export.artifact.artifact import Artifact

    own = tmp_path_factory.mktemp("artifacts", numbered=False)
    shared = own.parent.parent if "PYTEST_XDIST_WORKER" in os.environ else own.parent

    def once(name, make):
        made = shared / "made" / name
        made.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{made}.lock"):
            if not made.exists():
                make(made)
        if not (own / name).exists():
            shutil.copytree(made, own / name)
        return Artifact.open(own / name)

    return once


@pytest.fixture(scope="session")
def export_once(made_once):
    """Return `export_once(preset, options)`, an artifact."""

    def once(preset, options):
        from bart_export.export.pipeline import export

        digest = hashlib.sha256(repr((preset, options)).encode()).hexdigest()
        name = f"{digest[:8]}/{pathlib.Path(preset).name}"
        return made_once(name, lambda target: export(preset, options, target))

    return once


@pytest.fixture(scope="session")
def symmetric_artifact(export_once):
    """Return the artifact of a tiny random checkpoint: about 1 MB, one float32 file."""
    return export_once(str(SYMMETRIC), recipes("float32"))


@pytest.fixture(scope="session")
def distilled_artifact(export_once):
    """Return the artifact of a checkpoint with 3 encoder layers, 1 decoder layer and a bias."""
    return export_once(str(DISTILLED), recipes("float32"))


@pytest.fixture(scope="session")
def mini_artifact(export_once):
    """Return the artifact of the embedded preset, in float32 and with int8 weights."""
    return export_once("bart_mini_en", recipes("float32", "dynamic_wi8_afp32"))


@pytest.fixture(scope="session")
def static_artifact(mini_artifact, made_once):
    """Return `mini_artifact` with additional static builds of both recipes."""
    from support import static_builds

    from bart_export.contract import StaticShapes

    shapes = StaticShapes((32, 160), target_length=32, num_beams=(1, 4), draft_length=5)

    def add(target):
        static_builds.add(mini_artifact, shapes, ("float32", "dynamic_wi8_afp32"), target)

    return made_once("static/bart_mini_en", add)


@pytest.fixture(scope="session")
def saved_model_artifact(export_once):
    """Return the artifact of a tiny random checkpoint as a SavedModel, version 1."""
    from bart_export.export.options import SavedModelOptions

    return export_once(str(SYMMETRIC), SavedModelOptions())


def recipes(*names):
    """Return the options of an export with some recipes."""
    from bart_export.export.options import TfliteOptions
    from bart_export.recipes.table import RECIPES

    return TfliteOptions(tuple(RECIPES[name] for name in names))
