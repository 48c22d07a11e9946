"""`import bart_export` is cheap, and its public names are loaded on first use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import python

import bart_export


def test_importing_the_package_imports_the_standard_library_only():
    program = (
        "import sys; before = set(sys.modules); import bart_export;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(new - sys.stdlib_module_names))"
    )
    result = python(program)
    assert (result.stdout.split(), result.stderr) == (["bart_export"], "")


def test_public_names_are_found_where_the_table_says():
    assert set(bart_export.__all__) == {*bart_export.MODULES, "__version__"}
    assert set(bart_export.__all__) <= set(dir(bart_export))
    assert bart_export.BartBackbone.__name__ == "BartBackbone"


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match="has no attribute 'BartBackbones'"):
        bart_export.BartBackbones  # noqa: B018


def test_ctrl_c_while_the_program_is_imported_has_no_traceback(tmp_path):
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", "bart_export", "presets"], capture_output=True,
        cwd=Path(bart_export.__file__).parents[1], env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
