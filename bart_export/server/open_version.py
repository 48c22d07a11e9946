"""Open a version with its engine, and run the warm-up requests in its directory.

Engines are imported on first use, so that LiteRT works without TensorFlow. A SavedModel's warm-up
requests are a TFRecord file of PredictionLog messages; if one fails, so does the load, as in
TensorFlow Serving (saved_model_warmup.cc).
"""

import importlib.util
import itertools
import logging
import pathlib
import time

from google.protobuf.message import DecodeError

from bart_export.errors import MissingExtra
from bart_export.server import messages, predict
from bart_export.server.metrics import GenerationMetrics, Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Limits, Servable
from bart_export.server.status import StatusError, invalid, status_of_error
from bart_export.server.versions import LITERT, TENSORFLOW, OpenVersion, ServedModel

LOG = logging.getLogger(__name__)

WARMUP_REQUESTS = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000
MAX_BYTES = 1 << 28  # of all records; those of an export take a few kilobytes


def opener(options: ServeOptions, metrics: Metrics) -> OpenVersion:
    """Return the function that opens a version of a model and runs its warm-up requests."""

    def open_version(served: ServedModel, number: int, path: pathlib.Path) -> Servable:
        deadline = time.monotonic() + options.load_seconds
        servable = open_servable(served, number, path, options, metrics)
        warms_up = options.warmup and served.engine == TENSORFLOW
        try:
            if warms_up and (path / WARMUP_REQUESTS).is_file():
                run_warmup(servable, path, deadline)
        except BaseException:  # nobody else would close it
            servable.close()
            raise
        return servable

    return open_version


def open_servable(
    served: ServedModel, number: int, path: pathlib.Path, options: ServeOptions, metrics: Metrics
) -> Servable:
    """Open a SavedModel's version directory, or an artifact that must hold export `number`."""
    if served.engine == LITERT:
        from bart_export.server.litert_engine import ArtifactServable

        return ArtifactServable(path, number, options, GenerationMetrics(metrics, served.name))
    if importlib.util.find_spec("tensorflow") is None:
        raise MissingExtra("The engine tensorflow", "tensorflow", "export")
    from bart_export.server.tensorflow_engine import open_version

    return open_version(path, options)


def run_warmup(servable: Servable, directory: pathlib.Path, deadline: float | None = None) -> None:
    """Run a version's warm-up requests.

    Raises:
        StatusError: for a damaged or oversized file, or a request that fails.
    """
    from bart_export.server.tensorflow_engine import read_records

    path, began = directory / WARMUP_REQUESTS, time.monotonic()
    if (size := path.stat().st_size) > MAX_BYTES:
        raise invalid(f"{path} must have at most {MAX_BYTES} bytes; has {size}")
    records = list(itertools.islice(read_records(path), MAX_RECORDS + 1))
    if len(records) > MAX_RECORDS:
        raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
    for number, record in enumerate(records, 1):
        try:
            log, limits = messages.PredictionLog.FromString(record), Limits(deadline=deadline)
            if log.HasField("predict_log"):  # other kinds of request are skipped
                call = predict.call_of(servable, log.predict_log.request, limits)
                servable.submit(call).result(limits.remaining())
        except DecodeError as error:
            raise invalid(f"Failed to parse warmup record {number} from {path}") from error
        except Exception as error:  # engines may raise anything
            status = status_of_error(error)
            raise StatusError(
                status.code, f"Warmup record {number} from {path} failed: {status.message}"
            ) from error
    seconds = time.monotonic() - began
    LOG.info("%s: ran %d warm-up requests in %.1f s", directory, len(records), seconds)
