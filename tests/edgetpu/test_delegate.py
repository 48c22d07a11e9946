"""Segments go to the Edge TPU where its library is and takes them, and to the CPU otherwise.

There is no device here: the library is one that takes part in loading and claims no operation.
"""

import ctypes.util
import re
import shutil
import subprocess

import numpy as np
import pytest

from bart_export.artifact.artifact import Artifact
from bart_export.edgetpu import parts
from bart_export.errors import ArtifactError
from bart_export.runtime import edgetpu
from bart_export.runtime.engine_choice import open_engine

# What LiteRT asks of an external delegate; the fields are those of its C API's TfLiteDelegate.
DELEGATE = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
struct delegate {
  void *data;
  int (*prepare)(void *context, struct delegate *delegate);
  void *copy_from, *copy_to, *release;
  int64_t flags;
  void *builder;
};
static int prepare(void *context, struct delegate *delegate) {
  FILE *file = fopen(getenv("PREPARED"), "a");
  fputc('.', file);
  return fclose(file);
}
struct delegate *tflite_plugin_create_delegate(
    char **keys, char **values, size_t count, void (*report)(const char *)) {
  struct delegate *made = calloc(1, sizeof *made);
  made->prepare = prepare;
  return made;
}
void tflite_plugin_destroy_delegate(struct delegate *delegate) { free(delegate); }
"""


@pytest.fixture
def directory(edgetpu_artifact, tmp_path):
    """Return a copy of an export whose segments have been compiled, if only by name."""
    shutil.copytree(edgetpu_artifact.directory / parts.DIRECTORY, tmp_path / parts.DIRECTORY)
    for segment in parts.segments(edgetpu_artifact.config):
        shutil.copyfile(tmp_path / segment.file, tmp_path / segment.compiled_file)
    return tmp_path


@pytest.fixture
def opened(edgetpu_artifact):
    """Return a function that opens the segments of a directory."""

    def open_segments(directory):
        with np.load(directory / parts.CONSTANTS) as file:
            constants = {name: file[name] for name in file.files}
        return edgetpu.open_segments(directory, edgetpu_artifact.config, constants, 1)

    return open_segments


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        ("libedgetpu_of_nobody.so.1", "libedgetpu_of_nobody.so.1 is not installed."),
        (ctypes.util.find_library("c"),
         "Cannot load the delegate .* it is not a TFLite external delegate."),
    ],
)  # fmt: skip
def test_without_a_library_that_works_segments_run_on_the_cpu(
    library, reason, directory, opened, monkeypatch
):
    monkeypatch.setattr(edgetpu, "LIBRARY", library)
    runners, notice = opened(directory)
    assert len(runners) == 9
    assert re.fullmatch(f"The encoder's segments run on the CPU: {reason}", notice)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_every_segment_is_given_to_the_library(directory, opened, tmp_path, monkeypatch):
    library = tmp_path / "libedgetpu.so.1"
    (tmp_path / "delegate.c").write_text(DELEGATE)
    command = ["cc", "-shared", "-fPIC", "-o", library, tmp_path / "delegate.c"]
    subprocess.run(command, check=True)
    monkeypatch.setattr(edgetpu, "LIBRARY", "libedgetpu_of_nobody.so.1")
    on_cpu, _ = opened(directory)
    monkeypatch.setattr(edgetpu, "LIBRARY", str(library))
    monkeypatch.setenv("PREPARED", str(tmp_path / "prepared"))
    runners, notice = opened(directory)
    assert notice == "The encoder's segments run on the Edge TPU."
    assert (tmp_path / "prepared").read_text() == "." * len(runners)
    rows = np.random.default_rng(1).normal(size=(40, 256)).astype(np.float32)
    name = parts.Segment(0, parts.ATTENTION_INPUT).name
    assert np.array_equal(runners[name].run(rows), on_cpu[name].run(rows))


def test_a_compiled_segment_that_no_manifest_names_is_not_opened(edgetpu_artifact, tmp_path):
    made = shutil.copytree(edgetpu_artifact.directory, tmp_path / "made")
    segment, *_ = parts.segments(edgetpu_artifact.config)
    if (made / segment.compiled_file).exists():
        pytest.skip("this machine has Coral's compiler, whose files the manifest names")
    shutil.copyfile(made / segment.file, made / segment.compiled_file)
    with pytest.raises(ArtifactError, match="_edgetpu.tflite is not in the manifest"):
        open_engine(Artifact.open(made), parts.HOST, parts.TARGET)
