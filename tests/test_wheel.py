"""The source distribution, and the wheel that is built from it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sysconfig.get_path("scripts")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a copy of the files that a distribution is built from."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bart_export", source / "bart_export", ignore=ignored)
    return source


@pytest.fixture(scope="module")
def files(source):
    """Return the names of the package's files."""
    package = source / "bart_export"
    files = {str(path.relative_to(source)) for path in package.rglob("*") if path.is_file()}
    assert {"bart_export/py.typed", "bart_export/assets/bart_mini_en/model.weights.h5"} < files
    return files


@pytest.fixture(scope="module")
def built(source, files, tmp_path_factory):
    """Return the source distribution and the wheel."""
    place = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", place, source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = place.glob("*.tar.gz"), place.glob("*.whl")
    return sdist, wheel


def test_a_wheel_holds_every_module_the_embedded_preset_and_the_licence(built, files):
    with zipfile.ZipFile(built[1]) as file:
        held = set(file.namelist())
    assert files <= held
    assert {Path(name).name for name in held - files} == {
        "LICENSE", "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"
    }  # fmt: skip


def test_a_source_distribution_holds_the_same(built, files):
    with tarfile.open(built[0]) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert files | {"LICENSE", "README.md", "pyproject.toml"} <= held


def test_an_index_would_accept_both(built):
    command = [sys.executable, "-m", "twine", "check", "--strict", *built]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_a_wheel_has_only_the_package(built, source):
    command = [f"{SCRIPTS}/check-wheel-contents", "--package", "bart_export", built[1]]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


INSTALLATIONS = {
    "uv": (("tool", "install"), "UV_TOOL_DIR", "UV_TOOL_BIN_DIR"),
    "pipx": (("install",), "PIPX_HOME", "PIPX_BIN_DIR"),
}


@pytest.mark.slow
@pytest.mark.parametrize("program", INSTALLATIONS)
def test_a_wheel_installs_as_a_tool_without_extras(built, tmp_path, program):
    arguments, home, scripts = INSTALLATIONS[program]
    environment = os.environ | {home: str(tmp_path / "home"), scripts: str(tmp_path / "scripts")}
    environment.pop("PYTHONPATH", None)
    install = [f"{SCRIPTS}/{program}", *arguments, "--python", sys.executable, built[1]]
    done = subprocess.run(install, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = [tmp_path / "scripts/bart-export", "presets"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "bart_mini_en" in done.stdout and done.stderr == ""
    assert not list(tmp_path.glob("home/**/tensorflow"))
