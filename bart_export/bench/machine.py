"""What a figure was measured on: processor, cores, system and versions, as JSON-ready values."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import bart_export
from bart_export.runtime.engine import available_cores

PACKAGES = ("ai-edge-litert", "tflite-runtime", "numpy", "tokenizers")
SMAPS = pathlib.Path("/proc/self/smaps_rollup")
PRIVATE = ("Private_Clean:", "Private_Dirty:")
SHARED = ("Shared_Clean:", "Shared_Dirty:")


def describe() -> dict[str, Any]:
    """Return the machine and the versions of what runs on it; packages not installed are left out.

    `cores` are those this process may use, `load` the mean number of processes that wanted one
    over the last minute, None where the system does not say.
    """
    versions = {"bart-export": bart_export.__version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "processor": processor(),
        "architecture": platform.machine(),
        "cores": available_cores(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def processor() -> str:
    """Return the processor's name, as exactly as the system gives it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def private_bytes() -> int | None:
    """Return how much memory belongs to this process alone, None where the system does not say.

    Pages of a mapped file that no other process has mapped count as well: they are clean, and the
    system may drop them.
    """
    return memory_of(PRIVATE)


def shared_bytes() -> int | None:
    """Return how much of this process' memory others have as well, None where nobody says.

    These are pages of files, libraries among them, that another process has mapped, too.
    """
    return memory_of(SHARED)


def memory_of(fields: tuple[str, ...]) -> int | None:
    """Return the sum of some fields of `SMAPS`, in bytes; the file has KiB (proc_pid_smaps(5))."""
    try:
        lines = SMAPS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(fields))
