"""How much memory a served version takes, measured in a process of its own.

A version directory with its warm-up requests goes in, and the largest request there is; two figures
come out. The process loads the version as a server does, runs the warm-up requests and then the
largest one, so that a version whose own requests fail is found out before it is deployed. As a
program this module is that process; only there it imports TensorFlow.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

from bart_export.artifact.manifest import Memory
from bart_export.documents import scratch_directory
from bart_export.errors import BartExportError, EngineError, last_words
from bart_export.server import messages, tensors, warmup
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call, Servable

STATUS = pathlib.Path("/proc/self/status")


def measure(directory: pathlib.Path, largest: Any) -> Memory:
    """Measure what a version directory takes.

    Args:
        directory: of the version, with its warm-up requests in place.
        largest: the PredictRequest to run at last.

    Raises:
        EngineError: if the version cannot be loaded or a request fails, or memory does not suffice.
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
            f"Serving {directory.name} in a process of its own was ended by signal "
            f"{-process.returncode}: expected memory for one version and a full batch of the "
            "longest source. Export on a machine with more memory."
        )
    if process.returncode:
        said = last_words(process.stderr, process.returncode)
        raise EngineError(f"Version {directory.name} does not serve its requests: {said}")
    figures = json.loads(process.stdout)
    return Memory(**figures) if figures else guessed(directory)


def guessed(directory: pathlib.Path) -> Memory:
    """Return figures where nothing can be measured: of a small model the libraries count most."""
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return Memory(loaded=2**29 + size, peak=2**30 + 3 * size, measured=False)


def serve(directory: pathlib.Path, largest: Any) -> dict[str, int]:
    """Load a version, run its requests and return the fields of `Memory`, none if unknown.

    Raises:
        BartExportError: as the server does for a version that cannot be loaded or a request that
            fails.
    """
    from bart_export.server.tensorflow_engine import open_saved_model

    # A batch as it runs, whatever batches it.
    servable: Servable = open_saved_model(directory, ServeOptions(batching=False))
    try:
        loaded = private_bytes("VmRSS")
        warmup.run_warmup(servable, directory)
        run(servable, largest)
        peak = private_bytes("VmHWM")
    finally:
        servable.close()
    return {} if loaded is None or peak is None else {"loaded": loaded, "peak": peak}


def run(servable: Servable, request: Any) -> None:
    """Run a PredictRequest that gives every input."""
    name = request.model_spec.signature_name
    inputs = {alias: tensors.from_proto(proto, alias) for alias, proto in request.inputs.items()}
    outputs = tuple(servable.signature_defs[name].outputs)
    servable.submit(Call(signature=name, inputs=inputs, outputs=outputs)).result()


def private_bytes(field: str) -> int | None:
    """Return a field of /proc/self/status without pages of files, None where there is no such file.

    Pages of files, which are libraries, may be dropped and count against nobody's limit.
    """
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = {
        name: int(value.split()[0])
        for name, _, value in (line.partition(":") for line in lines)
        if name.startswith(("Vm", "Rss"))
    }
    return 1024 * (kilobytes[field] - kilobytes["RssFile"])


def main(directory: str, request: str) -> None:
    """Serve what is named and print the figures, or why not as the last line of standard error."""
    largest = messages.PredictRequest.FromString(pathlib.Path(request).read_bytes())
    try:
        print(json.dumps(serve(pathlib.Path(directory), largest)))
    except BartExportError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
