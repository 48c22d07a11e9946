"""Modified copies of the golden checkpoints, for tests of the readers."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bart_export.checkpoints import resolve
from bart_export.errors import CheckpointError
from support.paths import SYMMETRIC

FILES = ("config.json", "generation_config.json", "vocab.json", "merges.txt", "model.safetensors")


def copy(place, source=SYMMETRIC):
    """Return a directory with a checkpoint's own files, without the golden answers."""
    place.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, place / name)
    return place


def edit_json(path, **changes):
    """Change keys of a JSON file; the value `...` removes a key."""
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in values.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


def edit_tensors(directory, change, metadata=None):
    """Replace the weights by `change(tensors)`."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata=metadata or {"format": "pt"})


def refusal(directory, error=CheckpointError, **options):
    """Return the error message for a directory, which must be short."""
    with pytest.raises(error) as refused:
        resolve.read(directory, **options)
    line = str(refused.value)
    assert len(line) < 1500
    return line


def assert_same_weights(weights, expected):
    assert list(weights) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(weights[name], values, name)
