"""Opening a version with its engine, and warming it up.

An engine is imported when the first model needs it, so that LiteRT serves where there is no
TensorFlow. What lies in an artifact is held to its manifest first; a SavedModel from elsewhere has
none.
"""

import contextlib
import importlib.util
import logging
import pathlib
import time
from collections.abc import Callable, Mapping

from bart_export.artifact.artifact import Artifact, holds_artifact
from bart_export.errors import ArtifactError, MissingExtra
from bart_export.server.metrics import MICROSECONDS, WARMUP_LATENCY, Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Servable, TextReader
from bart_export.server.sources import LITERT, SAVED_MODEL, TENSORFLOW, ServedModel
from bart_export.server.status import Code, StatusError
from bart_export.server.versions import OpenVersion
from bart_export.server.warmup import run_warmup

LOG = logging.getLogger(__name__)


def opener(options: ServeOptions, metrics: Metrics) -> OpenVersion:
    """Return the function that opens a version of a model and warms it up."""

    def open_version(served: ServedModel, number: int, path: pathlib.Path) -> Servable:
        deadline = time.monotonic() + options.load_seconds
        servable = ENGINES[served.engine](path, options)
        with contextlib.ExitStack() as stack:
            stack.callback(servable.close)
            if served.engine == LITERT:
                check_export(path, number)
            if options.warmup:
                warm_up(servable, path, metrics, deadline)
            stack.pop_all()
        return servable

    return open_version


def check_export(path: pathlib.Path, number: int) -> None:
    """Make sure that an artifact is still the one that was found, by its number."""
    exports = Artifact.open(path).manifest.exports
    if exports != number:
        raise ArtifactError(
            f"{path} must hold export {number}, but export {exports} took its place. The next look "
            "finds that one."
        )


def warm_up(servable: Servable, path: pathlib.Path, metrics: Metrics, deadline: float) -> None:
    """Run the warm-up requests of a version directory, if it has some."""
    began = time.perf_counter()

    def observe(code: Code) -> float:
        seconds = time.perf_counter() - began
        metrics.observe(WARMUP_LATENCY, seconds * MICROSECONDS, str(path), code.name)
        return seconds

    try:
        records = run_warmup(servable, path, deadline)
    except StatusError as error:
        observe(error.code)
        raise
    if records:
        LOG.info("%s: %d requests warmed it up in %.1f s", path, records, observe(Code.OK))


def open_with_tensorflow(path: pathlib.Path, options: ServeOptions) -> Servable:
    """Open a version directory of a SavedModel."""
    if importlib.util.find_spec("tensorflow") is None:
        raise MissingExtra("The engine tensorflow", "tensorflow", "export")
    from bart_export.server.saved_model_operators import check_operators
    from bart_export.server.tensorflow_engine import open_saved_model

    if checked_artifact(path):
        check_operators(path)
    servable = open_saved_model(path, options)
    with contextlib.ExitStack() as stack:
        stack.callback(servable.close)
        # It may have been altered between its hash and its loading.
        if artifact := checked_artifact(path):
            servable.reader = TextReader.from_artifact(artifact)
        stack.pop_all()
    return servable


def checked_artifact(path: pathlib.Path) -> Artifact | None:
    """Return the artifact that a version directory lies in, held to its manifest."""
    directory = path.resolve()
    artifact = directory.parents[1] if len(directory.parents) > 1 else directory
    if directory.parent.name != SAVED_MODEL or not holds_artifact(artifact):
        return None
    opened = Artifact.open(artifact)
    opened.folder(f"{SAVED_MODEL}/{directory.name}")
    return opened


def open_with_litert(path: pathlib.Path, options: ServeOptions) -> Servable:
    """Open an artifact's `.tflite` file, in a process of its own first."""
    from bart_export.runtime.trial import survive
    from bart_export.server.litert_engine import ArtifactServable

    survive(path)
    return ArtifactServable(path, options)


ENGINES: Mapping[str, Callable[[pathlib.Path, ServeOptions], Servable]] = {
    TENSORFLOW: open_with_tensorflow,
    LITERT: open_with_litert,
}
