"""An export of 139 million parameters."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.command import COMMAND

from bart_export.artifact.artifact import Artifact
from bart_export.runtime import Generator

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_shape_of_bart_base_is_exported_and_generates(tmp_path):
    subprocess.run(
        [sys.executable, ROOT / "tools" / "random_checkpoint.py", tmp_path / "preset"], check=True
    )
    arguments = ["--preset", tmp_path / "preset", "--target", "tflite", "--output", tmp_path / "it"]
    finished = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
    artifact = Artifact.open(tmp_path / "it")
    assert artifact.manifest.parameter_count == 139_417_344
    (entry,) = artifact.files("tflite").values()
    assert entry.bytes <= 1.04 * 139_417_344
    generator = Generator.from_artifact(tmp_path / "it")
    for num_beams in (1, 4):
        source = [0, *range(1000, 1510), 2]
        result = generator.generate_ids(source, num_beams=num_beams, min_length=40, max_length=40)
        assert len(result.token_ids) == 40
