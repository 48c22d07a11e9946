"""LiteRT's `CompiledModel`, opened without a word on standard error.

A path, threads and a weight cache go in, a compiled model comes out. LiteRT logs from C++: when it
opens a model, when the first buffer is written, and once more when the process ends.
"""

import atexit
import contextlib
import importlib.metadata
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from bart_export.errors import EngineError, MissingExtra
from bart_export.quiet import native_stderr_silenced

PACKAGE = "ai-edge-litert"
# One for all models, made with the first: making and ending one takes time and is logged.
ENVIRONMENTS: list[Any] = []


def library() -> str:
    """Return the library's name and version."""
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


def open_model(path: pathlib.Path, num_threads: int, weight_cache: str) -> Any:
    """Open a `.tflite` file on the CPU.

    Args:
        path: the file.
        num_threads: threads of the CPU kernels.
        weight_cache: file of XNNPACK's packed weights, made if it is missing; "" for none.

    Raises:
        EngineError: if LiteRT cannot open the file.
        MissingExtra: if LiteRT is not installed.
    """
    try:
        with native_stderr_silenced():
            from ai_edge_litert import __file__ as litert_file
            from ai_edge_litert.compiled_model import (
                CompiledModel,
                CpuOptions,
                HardwareAccelerator,
                Options,
            )
            from ai_edge_litert.environment import Environment
    except ImportError:
        raise MissingExtra("Running a .tflite file", PACKAGE, "") from None

    cpu = CpuOptions(num_threads=num_threads, xnnpack_weight_cache_path=weight_cache)
    options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
    with native_stderr_silenced(), failures(f"cannot open {path}"):
        if not ENVIRONMENTS:
            ENVIRONMENTS.append(Environment.create(runtime_path=os.path.dirname(litert_file)))
        model = CompiledModel.from_file(str(path), environment=ENVIRONMENTS[0], options=options)
        write_first_buffer(model)
    return model


@contextlib.contextmanager
def failures(what: str) -> Iterator[None]:
    """Raise what LiteRT says in a block as an EngineError of one line: "LiteRT cannot …"."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].lstrip("└ ").removeprefix("ERROR: ")
        raise EngineError(f"LiteRT {what}: {reason}.") from error


def write_first_buffer(model: Any) -> None:
    """Have LiteRT make, now, the environment that the first write to a buffer makes."""
    signature, tensors = next(iter(model.get_signature_list().items()))
    name = tensors["inputs"][0]
    details = model.get_input_tensor_details(signature)[name]
    shape = [max(1, size) for size in details["shape"]]
    model.resize_input_tensor_by_name(signature, name, shape, strict=False)
    buffer = model.create_input_buffer_by_name(signature, name)
    buffer.write(np.zeros(shape, details["dtype"]))


@atexit.register
def silence_the_end() -> None:
    """Drop what LiteRT logs while its libraries are unloaded, when Python has nothing to say."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
