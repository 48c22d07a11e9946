"""The content of a wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_holds_every_module_the_embedded_preset_and_the_licence(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    package = tmp_path / "bart_export"
    shutil.copytree(ROOT / "bart_export", package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, tmp_path],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
    files = {str(path.relative_to(tmp_path)) for path in package.rglob("*") if path.is_file()}
    assert "bart_export/assets/bart_mini_en/model.weights.h5" in files
    assert "bart_export/py.typed" in files
    assert files <= held
    assert {Path(name).name for name in held - files} == {
        "LICENSE", "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"
    }  # fmt: skip
