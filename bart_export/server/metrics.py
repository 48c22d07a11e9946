"""Numbers for Prometheus: names, labels and buckets are those of TensorFlow Serving.

Counts and times go in from any thread; the text that Prometheus reads comes out. The text is
written here because Prometheus' own library adds `_total` to the names of counters, and dashboards
made for TensorFlow Serving would not find them. Names that begin with `:bart_export:` are ours.
Nothing here knows what is counted.
"""

import asyncio
import bisect
import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator

from bart_export.server.status import Code, StatusError

CONTENT_TYPE = "text/plain"
MICROSECONDS = 1e6


@dataclasses.dataclass(frozen=True)
class Family:
    """One metric: its name, the names of its labels and, for a histogram, its buckets' bounds."""

    name: str
    kind: str
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

REQUEST_COUNT = Family(TF + "request_count", "counter", ("model_name", "status"))
REQUEST_LATENCY = Family(
    TF + "request_latency", "histogram", ("model_name", "API", "entrypoint"), LATENCY
)
RUNTIME_LATENCY = Family(
    TF + "runtime_latency", "histogram", ("model_name", "API", "runtime"), LATENCY
)
WARMUP_LATENCY = Family(TF + "model_warmup_latency", "histogram", ("model_path", "status"), LATENCY)
QUEUING_LATENCY = Family(
    TF + "batching_session:queuing_latency",
    "histogram",
    ("thread_pool_name",),
    exponential(100, 1.2, 52),
)
# Requests that run and those that wait for a place.
IN_PROGRESS = Family(OURS + "requests_in_progress", "gauge", ("model_name",))
REFUSED = Family(OURS + "refused_count", "counter", ("model_name",))

FAMILIES = (
    REQUEST_COUNT,
    REQUEST_LATENCY,
    RUNTIME_LATENCY,
    WARMUP_LATENCY,
    QUEUING_LATENCY,
    IN_PROGRESS,
    REFUSED,
)

Labels = tuple[str, ...]


@dataclasses.dataclass
class Histogram:
    """Observations of one set of labels: how many fell into each bucket, and their sum."""

    counts: list[int]
    total: float = 0.0


class Metrics:
    """All numbers of one server."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: dict[Family, dict[Labels, float]] = {}
        self.histograms: dict[Family, dict[Labels, Histogram]] = {}

    def increment(self, family: Family, *labels: str, by: float = 1) -> None:
        """Add to a counter, or to a gauge."""
        with self.lock:
            values = self.values.setdefault(family, {})
            values[labels] = values.get(labels, 0) + by

    def observe(self, family: Family, value: float, *labels: str) -> None:
        """Put a value, microseconds where it is a time, into its bucket of a histogram."""
        with self.lock:
            cells = self.histograms.setdefault(family, {})
            cell = cells.get(labels)
            if cell is None:
                cell = cells[labels] = Histogram([0] * (len(family.bounds) + 1))
            # A bound belongs to the bucket below it, as `le` says.
            cell.counts[bisect.bisect_left(family.bounds, value)] += 1
            cell.total += value

    @contextlib.contextmanager
    def timed(self, family: Family, *labels: str) -> Iterator[None]:
        """Observe how long a block takes, in microseconds, if it ends well."""
        began = time.perf_counter()
        yield
        self.observe(family, (time.perf_counter() - began) * MICROSECONDS, *labels)

    @contextlib.contextmanager
    def request(self, model_name: str, api: str, entrypoint: str) -> Iterator[None]:
        """Count one request by how it ends, and time it if it ends well.

        Args:
            model_name: a model that is configured. Names that only a client made up would grow
                the table without end: those are to be counted under "".
            api: "predict", "classify", … as TensorFlow Serving writes it for the entrypoint.
            entrypoint: "REST" or "GRPC".
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
        with self.lock:
            values = {family: dict(cells) for family, cells in self.values.items()}
            histograms = {
                family: {
                    labels: Histogram(list(cell.counts), cell.total)
                    for labels, cell in cells.items()
                }
                for family, cells in self.histograms.items()
            }
        lines = []
        for family in FAMILIES:
            if cells := values.get(family):
                lines.append(f"# TYPE {family.name} {family.kind}")
                lines += [sample(family, labels, value) for labels, value in cells.items()]
            if buckets := histograms.get(family):
                lines.append(f"# TYPE {family.name} {family.kind}")
                for labels, cell in buckets.items():
                    lines += histogram_samples(family, labels, cell)
        return "\n".join(lines) + "\n"


def sample(family: Family, labels: Labels, value: float, suffix: str = "", **more: str) -> str:
    """Return one line: a name with its labels, and a value."""
    pairs = [*zip(family.labels, labels, strict=True), *more.items()]
    written = ",".join(f'{name}="{escaped(text)}"' for name, text in pairs)
    return f"{family.name}{suffix}{{{written}}} {value:.17g}"


def histogram_samples(family: Family, labels: Labels, cell: Histogram) -> list[str]:
    """Return the lines of one set of labels: the buckets, each with those below it, sum, count."""
    bounds = [*(f"{bound:g}" for bound in family.bounds), "+Inf"]
    cumulative = list(itertools.accumulate(cell.counts))
    lines = [
        sample(family, labels, count, "_bucket", le=bound)
        for bound, count in zip(bounds, cumulative, strict=True)
    ]
    lines.append(sample(family, labels, cell.total, "_sum"))
    lines.append(sample(family, labels, cumulative[-1], "_count"))
    return lines


def escaped(text: str) -> str:
    """Return a label's value as the text format wants it between its quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
