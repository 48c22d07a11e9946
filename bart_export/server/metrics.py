"""Numbers for Prometheus: names, labels and buckets are those of TensorFlow Serving.

To the library counters are gauges: it would add `_total` to their names, and dashboards made for
TensorFlow Serving would not find them. Names that begin with `:bart_export:` are ours.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator

from bart_export.server.status import Code, StatusError

CONTENT_TYPE = "text/plain"
MICROSECONDS = 1e6


@dataclasses.dataclass(frozen=True)
class Family:
    """One metric: its name, the names of its labels and, for a histogram, its buckets' bounds."""

    name: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()


def exponential(first: float, growth: float, count: int) -> tuple[float, ...]:
    """Return the upper bounds of buckets that grow; one more without bound comes after them."""
    return tuple(first * growth**index for index in range(count))


# Engines → values of the label `runtime`.
RUNTIMES = {"tensorflow": "TF1", "litert": "LiteRT"}
# 10 microseconds to about 20 minutes.
LATENCY = exponential(10, 1.8, 33)
TF, OURS = ":tensorflow:serving:", ":bart_export:"

REQUEST_COUNT = Family(TF + "request_count", ("model_name", "status"))
REQUEST_LATENCY = Family(TF + "request_latency", ("model_name", "API", "entrypoint"), LATENCY)
RUNTIME_LATENCY = Family(TF + "runtime_latency", ("model_name", "API", "runtime"), LATENCY)
WARMUP_LATENCY = Family(TF + "model_warmup_latency", ("model_path", "status"), LATENCY)
QUEUING_LATENCY = Family(
    TF + "batching_session:queuing_latency",
    ("thread_pool_name",),
    exponential(100, 1.2, 52),
)
# Requests that run and those that wait for a place.
IN_PROGRESS = Family(OURS + "requests_in_progress", ("model_name",))
REFUSED = Family(OURS + "refused_count", ("model_name",))

FAMILIES = (
    REQUEST_COUNT,
    REQUEST_LATENCY,
    RUNTIME_LATENCY,
    WARMUP_LATENCY,
    QUEUING_LATENCY,
    IN_PROGRESS,
    REFUSED,
)


class Metrics:
    """All numbers of one server, counted from any thread."""

    def __init__(self) -> None:
        import prometheus_client  # which an export, for its warm-up requests, goes without

        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = prometheus_client.CollectorRegistry()
        self.counts, self.histograms = {}, {}
        for family in FAMILIES:
            given = family.name, family.name, family.labels
            if family.bounds:
                self.histograms[family] = prometheus_client.Histogram(
                    *given, registry=self.registry, buckets=family.bounds
                )
            else:
                self.counts[family] = prometheus_client.Gauge(*given, registry=self.registry)

    def increment(self, family: Family, *labels: str, by: float = 1) -> None:
        """Add to a counter, or to a gauge."""
        self.counts[family].labels(*labels).inc(by)

    def observe(self, family: Family, value: float, *labels: str) -> None:
        """Put a value, microseconds where it is a time, into its bucket of a histogram."""
        self.histograms[family].labels(*labels).observe(value)

    @contextlib.contextmanager
    def timed(self, family: Family, *labels: str) -> Iterator[None]:
        """Observe how long a block takes, in microseconds, if it ends well."""
        began = time.perf_counter()
        yield
        self.observe(family, (time.perf_counter() - began) * MICROSECONDS, *labels)

    @contextlib.contextmanager
    def request(self, model_name: str, api: str, entrypoint: str) -> Iterator[None]:
        """Count one request by how it ends, and time it if it ends well.

        Names of models that only clients made up are to be counted under "": they would grow the
        table without end.
        """
        code = Code.OK
        self.increment(IN_PROGRESS, model_name)
        try:
            with self.timed(REQUEST_LATENCY, model_name, api, entrypoint):
                yield
        except StatusError as error:
            code = error.code
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = Code.CANCELLED
            raise
        except BaseException:
            code = Code.INTERNAL
            raise
        finally:
            self.increment(IN_PROGRESS, model_name, by=-1)
            self.increment(REQUEST_COUNT, model_name, code.name)
            if code == Code.UNAVAILABLE:
                self.increment(REFUSED, model_name)

    def exposition(self) -> str:
        """Return everything in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry).decode()
