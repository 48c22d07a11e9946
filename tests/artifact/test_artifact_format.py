"""artifacts/README.md describes what the exporter writes."""

import json
import re
import shutil
import subprocess
import sys

from support.made_up_artifacts import flip
from support.paths import ROOT

from bart_export.artifact import artifact

DOCUMENT = (ROOT / "artifacts/README.md").read_text(encoding="utf-8")
READER = re.search(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL).group(1)


def read(directory):
    run = subprocess.run(
        [sys.executable, "-I", "-c", READER, str(directory)], capture_output=True, text=True
    )
    return (run.stdout + run.stderr).strip()


def test_the_reader_of_the_document_finds_modified_files(mini_artifact, tmp_path):
    copied = shutil.copytree(mini_artifact.directory, tmp_path / "artifact")
    assert read(copied) == "complete"
    flip(copied / "tflite/float32.tflite")
    assert read(copied) == "tflite/float32.tflite was modified"
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"num_beams": 4', '"num_beams": 5'))
    assert read(copied) == "manifest.json was edited"


def table_after(heading):
    """Return the first column of the first table after a line that begins with `heading`."""
    lines = DOCUMENT[DOCUMENT.index(f"\n{heading}") :].splitlines()
    rows = [re.match(r"\| `(\w+)`", line) for line in lines]
    first = next(number for number, row in enumerate(rows) if row)
    last = next(number for number in range(first, len(rows)) if not rows[number])
    return {row.group(1) for row in rows[first:last]}


def test_every_field_is_described(mini_artifact):
    manifest = mini_artifact.manifest.to_dict()
    assert table_after("## manifest.json") == set(manifest)
    entry = manifest["files"]["tflite/float32.tflite"]
    assert table_after("**Files.**") == set(entry) - {"bytes", "sha256"}
    shapes = [
        tensor["shape"]
        for signature in manifest["signatures"]["tflite"].values()
        for tensors in signature.values()
        for tensor in tensors.values()
    ]
    words = {size for shape in shapes for size in shape if isinstance(size, str)}
    assert table_after("## TFLite files") == words
    paragraph = DOCUMENT[DOCUMENT.index("**Verification.**") : DOCUMENT.index("## Tokenizer")]
    assert set(re.findall(r"`(\w+)`", paragraph)) == set(manifest["verification"][0]) - {"file"}


def test_every_field_of_a_case_is_described(mini_artifact):
    case = json.loads((mini_artifact.directory / "golden.json").read_bytes())["cases"][0]
    described = set(re.findall(r"`(\w+)`", DOCUMENT[DOCUMENT.index("## golden.json") :]))
    assert {*case, *case["reference"]} <= described


def test_the_version_of_the_document_is_that_of_the_code():
    title, *_ = DOCUMENT.splitlines()
    assert title.endswith(f"format version {artifact.FORMAT_VERSION}")
