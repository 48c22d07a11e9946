"""Measures the memory needed to serve a SavedModel version.

A separate process (this module, run as a program) loads the version as the server does, runs its
warm-up requests and then the largest request. A version that fails its own requests is therefore
found before it is deployed.
"""

import json
import pathlib
import subprocess
import sys

from bart_export.artifact.manifest import Memory
from bart_export.bench.measurements import status_bytes
from bart_export.documents import scratch_directory
from bart_export.errors import BartExportError, EngineError, last_words
from bart_export.export.warm_up import PredictRequest
from bart_export.server import messages, open_version, predict
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Limits


def measure_memory(directory: pathlib.Path, largest: PredictRequest) -> Memory:
    """Measure the memory for a version's warm-up requests and then the largest request.

    Raises:
        EngineError: if the version cannot be loaded, a request fails, or memory runs out.
    """
    with scratch_directory() as temporary:
        path = temporary / "largest_request"
        path.write_bytes(largest.SerializeToString())
        process = subprocess.run(
            [sys.executable, "-m", __spec__.name, str(directory), str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if process.returncode < 0:
        raise EngineError(
            f"The process that served version {directory.name} was killed by signal "
            f"{-process.returncode}: it needs memory for one version and a full batch of the "
            "longest source. Export on a machine with more memory."
        )
    if process.returncode:
        message = last_words(process.stderr, process.returncode)
        raise EngineError(f"Version {directory.name} fails its own requests: {message}")
    figures = json.loads(process.stdout)
    return Memory(**figures) if figures else guess_memory(directory)


def guess_memory(directory: pathlib.Path) -> Memory:
    """Estimate the memory from the files' size; for small models the libraries dominate."""
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return Memory(loaded=2**29 + size, peak=2**30 + 3 * size, measured=False)


def measure_version(directory: pathlib.Path, largest: PredictRequest) -> dict[str, int]:
    """Load a version, run its requests and return the fields of `Memory`, or {} if unknown."""
    from bart_export.server.tensorflow_engine import open_saved_model

    # The largest request is already a full batch.
    servable = open_saved_model(directory, ServeOptions(batching=False))
    try:
        loaded = private_bytes("VmRSS:")
        open_version.run_warmup(servable, directory)
        servable.submit(predict.call_of(servable, largest, Limits())).result()
        peak = private_bytes("VmHWM:")
    finally:
        servable.close()
    return {} if loaded is None or peak is None else {"loaded": loaded, "peak": peak}


def private_bytes(field: str) -> int | None:
    """Return a field of the process's status less evictable file pages, or None if unavailable."""
    size, files = status_bytes(field), status_bytes("RssFile:")
    return None if size is None or files is None else size - files


def main(directory: str, request: str) -> None:
    """Print the figures of a version, or exit with the error."""
    largest = messages.PredictRequest.FromString(pathlib.Path(request).read_bytes())
    try:
        print(json.dumps(measure_version(pathlib.Path(directory), largest)))
    except BartExportError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:3])
