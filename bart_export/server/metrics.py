"""Prometheus metrics with TensorFlow Serving's names, labels and buckets.

Counters are gauges, because prometheus_client appends `_total` to the names of counters, which
dashboards for TensorFlow Serving do not expect. Additional metrics begin with `:bart_export:`.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bart_export.server.status import Code, status_of_error

if TYPE_CHECKING:
    from prometheus_client import Gauge, Histogram

CONTENT_TYPE = "text/plain"
MICROSECONDS = 1e6
TF, OURS = ":tensorflow:serving:", ":bart_export:"
RUNTIME_LATENCY = f"{TF}runtime_latency"
# The value of the label `runtime` for each engine.
RUNTIMES = {"tensorflow": "TF1", "litert": "LiteRT"}
# Upper bounds of buckets, 10 microseconds to about 20 minutes.
LATENCY = tuple(10 * 1.8**index for index in range(33))
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of a server, thread-safe. Latencies are in microseconds."""

    def __init__(self) -> None:
        import prometheus_client  # not installed with the export extra, which imports this module

        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = prometheus_client.CollectorRegistry()

        def count(name: str, *labels: str) -> "Gauge":
            return prometheus_client.Gauge(name, name, labels, registry=self.registry)

        def histogram(name: str, *labels: str, buckets: Sequence[float] = LATENCY) -> "Histogram":
            return prometheus_client.Histogram(
                name, name, labels, registry=self.registry, buckets=buckets
            )

        self.request_count = count(f"{TF}request_count", "model_name", "status")
        self.request_latency = histogram(f"{TF}request_latency", "model_name", "API", "entrypoint")
        self.runtime_latency = histogram(RUNTIME_LATENCY, "model_name", "API", "runtime")
        # Running and waiting requests.
        self.in_progress = count(f"{OURS}requests_in_progress", "model_name")
        # Generations of the LiteRT engine, each from one source.
        self.running = count(f"{OURS}running_generations", "model_name")
        self.waiting = count(f"{OURS}waiting_generations", "model_name")
        self.generated_tokens = count(f"{OURS}generated_tokens", "model_name")
        self.batch_size = histogram(f"{OURS}batch_size", "model_name", buckets=BATCH_SIZES)
        self.time_to_first_token = histogram(f"{OURS}time_to_first_token", "model_name")
        self.queueing_time = histogram(f"{OURS}queueing_time", "model_name")

    @contextlib.contextmanager
    def timed(self, histogram: "Histogram", *labels: str) -> Iterator[None]:
        """Record how long a block takes, unless it raises."""
        began = time.perf_counter()
        yield
        histogram.labels(*labels).observe((time.perf_counter() - began) * MICROSECONDS)

    @contextlib.contextmanager
    def request(self, model_name: str, api: str, entrypoint: str) -> Iterator[None]:
        """Count a request by its status code, and time it if it succeeds.

        Callers pass "" for an unknown model, so that clients cannot create labels.

        Raises:
            StatusError: for any error of the request.
        """
        code = Code.OK
        self.in_progress.labels(model_name).inc()
        try:
            with self.timed(self.request_latency, model_name, api, entrypoint):
                yield
        except Exception as error:  # each has a code to be counted by
            status = status_of_error(error)
            code = status.code
            raise status from error
        except BaseException:  # the client has disconnected
            code = Code.CANCELLED
            raise
        finally:
            self.in_progress.labels(model_name).dec()
            self.request_count.labels(model_name, code.name).inc()

    def exposition(self) -> str:
        """Return all metrics in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()


class GenerationMetrics:
    """The metrics of a model's generations.

    `running` and `waiting` are the current numbers, `generated_tokens` counts the tokens of
    finished ones, and `batch_size` records how many sources each step decoded.
    """

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self.running = metrics.running.labels(model_name)
        self.waiting = metrics.waiting.labels(model_name)
        self.generated_tokens = metrics.generated_tokens.labels(model_name)
        self.batch_size = metrics.batch_size.labels(model_name)
        self.time_to_first_token = metrics.time_to_first_token.labels(model_name)
        self.queueing_time = metrics.queueing_time.labels(model_name)
