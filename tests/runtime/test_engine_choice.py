"""Which engine opens a file, and why another does not."""

import dataclasses
import platform
import sys

import pytest
from support.made_up_artifacts import entry

from bart_export.errors import ConfigurationError, EngineError, MissingExtra
from bart_export.recipes.table import LITERT, RECIPES, TFLITE_RUNTIME
from bart_export.runtime.compiled_model import CompiledModelBackend, open_compiled_model
from bart_export.runtime.engine_choice import ENGINES, engine_for, open_engine
from bart_export.runtime.interpreter import InterpreterBackend

INT8, TENSORWISE, FLOAT32 = (
    f"tflite/{recipe}.tflite"
    for recipe in ("dynamic_wi8_afp32", "dynamic_wi8_afp32_tensorwise", "float32")
)
# Entries as an exporter writes them.
FILES = {
    f"tflite/{recipe.name}.tflite": entry(runtimes=recipe.runtimes, refusals=recipe.refusals)
    for recipe in RECIPES.values()
}
BOTH = {LITERT: "2.3.0", TFLITE_RUNTIME: "2.14.0"}
LEGACY = {TFLITE_RUNTIME: "2.14.0"}


@pytest.mark.parametrize(
    ("requested", "file", "installed", "chosen"),
    [
        (None, INT8, BOTH, LITERT),
        (None, FLOAT32, BOTH, LITERT),
        (None, FLOAT32, LEGACY, TFLITE_RUNTIME),
        (TFLITE_RUNTIME, TENSORWISE, BOTH, TFLITE_RUNTIME),
        (LITERT, TENSORWISE, BOTH, LITERT),
        (None, INT8, {LITERT: "2.10.1"}, LITERT),
        (None, INT8, {LITERT: "3.0"}, LITERT),
        (None, INT8, {LITERT: "2.3"}, LITERT),
        (None, INT8, {LITERT: "2.3.1rc1"}, LITERT),
        (None, INT8, {LITERT: "2.14.0.dev20260101"}, LITERT),
    ],
)
def test_the_first_installed_engine_or_the_requested_one(requested, file, installed, chosen):
    assert engine_for(requested, file, FILES, installed).package == chosen


def test_a_runtime_that_computes_a_file_wrongly_is_refused_with_what_it_can_open():
    for requested, installed in ((None, LEGACY), (TFLITE_RUNTIME, BOTH)):
        with pytest.raises(EngineError) as caught:
            engine_for(requested, INT8, FILES, installed)
        message = str(caught.value)
        assert message.startswith(
            f"{INT8} needs ai-edge-litert 2.3.0 or newer, received tflite-runtime 2.14.0: it uses"
        )
        right = [name for name, entry in FILES.items() if TFLITE_RUNTIME in entry.runtimes]
        assert {FLOAT32, TENSORWISE} <= set(right)
        assert f"tflite-runtime 2.14.0 can open {', '.join(right)}." in message


def test_an_older_version_than_the_one_tried_is_refused():
    with pytest.raises(EngineError, match=r"needs ai-edge-litert 2\.3\.0 or newer") as caught:
        engine_for(None, INT8, FILES, {LITERT: "2.2.9"})
    message = str(caught.value)
    assert (
        "received ai-edge-litert 2.2.9, which it was not tested with. It cannot open any" in message
    )


def test_all_runtimes_a_file_was_tried_with_are_named():
    with pytest.raises(EngineError, match=r"ai-edge-litert 2\.3\.0 or tflite-runtime 2\.14\.0 or"):
        engine_for(None, FLOAT32, FILES, {TFLITE_RUNTIME: "2.13.1"})


def test_packages_that_are_not_installed_are_named_with_how_to_install_them():
    if sys.version_info < (3, 12):  # it has no wheels for a newer Python
        with pytest.raises(MissingExtra, match=r"tflite-runtime.*pip install .*\[legacy-runtime\]"):
            engine_for(TFLITE_RUNTIME, FLOAT32, FILES, {LITERT: "2.3.0"})
    with pytest.raises(MissingExtra, match=r"ai-edge-litert.*pip install [^\[]*$"):
        engine_for(None, FLOAT32, FILES, {})


def test_an_engine_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ConfigurationError, match=r'"tflite"\. Did you mean tflite-runtime\?'):
        engine_for("tflite", FLOAT32, FILES, BOTH)


def test_a_small_model_takes_one_thread_and_a_larger_one_all_cores(symmetric_artifact, monkeypatch):
    asked = []

    def opens(path, config, buckets, *, num_threads, weight_cache):
        asked.append(num_threads)

    monkeypatch.setattr("bart_export.runtime.engine.available_cores", lambda: 6)
    monkeypatch.setitem(ENGINES, LITERT, dataclasses.replace(ENGINES[LITERT], open=opens))
    for count in (8_000_000, 32_000_000, 139_000_000):
        manifest = dataclasses.replace(symmetric_artifact.manifest, parameter_count=count)
        artifact = dataclasses.replace(symmetric_artifact, manifest=manifest)
        for requested in (None, 3):
            open_engine(artifact, FLOAT32, LITERT, num_threads=requested)
    assert asked == [1, 3, 6, 3, 6, 3]


CORTEX_A72 = "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid\n"
NEOVERSE_N1 = CORTEX_A72 + " atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp\n"


@pytest.fixture
def emulate(monkeypatch):
    """Return a function that pretends to have another processor."""

    def pretend(machine, features):
        monkeypatch.setattr(platform, "machine", lambda: machine)
        name = "bart_export.runtime.compiled_model.processor_features"
        monkeypatch.setattr(name, lambda: features)

    return pretend


@pytest.mark.parametrize(
    ("machine", "features", "backend"),
    [
        ("aarch64", NEOVERSE_N1, CompiledModelBackend),
        ("aarch64", NEOVERSE_N1.replace("asimddp", ""), InterpreterBackend),
        ("aarch64", CORTEX_A72, InterpreterBackend),
        ("aarch64", "", InterpreterBackend),
        ("arm64", "", CompiledModelBackend),  # macOS
        ("x86_64", "flags\t\t: fpu vme\n", CompiledModelBackend),
    ],
)
def test_a_processor_that_litert_s_gpu_library_ends_gets_an_interpreter(
    symmetric_artifact, emulate, machine, features, backend
):
    emulate(machine, features)
    engine = open_engine(symmetric_artifact, FLOAT32)
    assert isinstance(engine.backend, backend)
    assert engine.start([0, 5, 2], 1, 4)


def test_a_compiled_model_is_refused_where_it_would_end_the_process(
    symmetric_artifact, emulate, monkeypatch
):
    emulate("aarch64", CORTEX_A72)
    opening = symmetric_artifact.path(FLOAT32), symmetric_artifact.config
    with pytest.raises(EngineError, match=r"Delete that library .*: only GPUs need it"):
        open_compiled_model(*opening, num_threads=1)
    monkeypatch.setattr("bart_export.runtime.compiled_model.GPU_LIBRARY", "libDeleted.so")
    open_compiled_model(*opening, num_threads=1).close()
