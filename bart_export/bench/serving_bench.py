"""The benchmark of a server: its overhead, throughput, batches and behavior under overload.

Each engine has a server, which counts the time that requests spend in the engine. Configurations
take turns, so that other work on the machine affects all of them alike.
"""

import collections
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

from rich.console import Group, RenderableType

from bart_export.artifact.artifact import Artifact
from bart_export.artifact.figures import Machine
from bart_export.bench import measurements, serving_overload
from bart_export.bench.bench import fitting_length
from bart_export.bench.rows import MILLISECONDS, MULTIPLE, Subject, column, decimals, table
from bart_export.bench.serving import (
    FRONTS,
    OK,
    PAUSE,
    Clients,
    Server,
    ServerAnswer,
    Workload,
    random_inputs,
    running,
    send_single,
)
from bart_export.bench.serving_overload import OverloadRow, percentile
from bart_export.config import MAX_BATCH_SIZE
from bart_export.documents import Record, dataclass
from bart_export.errors import ArtifactError
from bart_export.locations import Location
from bart_export.progress import plural, stages
from bart_export.server.options import ServeOptions
from bart_export.server.versions import LITERT, TENSORFLOW, served_files

SCHEMA_VERSION = 1
# The target that each engine serves.
TARGETS = {TENSORFLOW: "saved_model", LITERT: "tflite"}
# The settings that determine the cost of a search; an export fixes those of a SavedModel.
SEARCH = ("num_beams", "num_return_sequences", "no_repeat_ngram_size")
CLIENTS, BATCHES = (1, 4), (1, 8)
SINGLE = 3  # single requests per run and front
QUESTIONS = 8
EACH = 3  # requests per run and client
SERVED, BATCHED = Workload(256, 32), Workload(512, 64)


@dataclasses.dataclass(frozen=True)
class OverheadRow:
    """The time of a single request beyond its engine's time.

    `overhead_seconds` is the difference of the medians; `front_seconds` is the median difference.
    """

    engine: str = field(metadata=column("engine"))
    front: str = field(metadata=column("front"))
    engine_seconds: float = field(metadata=column("engine", "ms", MILLISECONDS))
    request_seconds: float = field(metadata=column("request", "ms", MILLISECONDS))
    overhead_seconds: float = field(metadata=column("overhead", "ms", MILLISECONDS))
    overhead_share: float = field(metadata=column("overhead", "%", decimals(1, 100)))
    front_seconds: float = field(metadata=column("front", "ms", MILLISECONDS))


@dataclasses.dataclass(frozen=True)
class RequestsRow:
    """Requests per second and latency, by number of clients."""

    engine: str = field(metadata=column("engine"))
    clients: int = field(metadata=column("clients"))
    requests_per_second: float = field(metadata=column("requests", "per s", MULTIPLE))
    p50_seconds: float | None = field(metadata=column("p50", "ms", MILLISECONDS))
    p99_seconds: float | None = field(metadata=column("p99", "ms", MILLISECONDS))
    requests: int = field(metadata=column("asked"))
    answered: int = field(metadata=column("answered"))
    runs: Sequence[float]


@dataclasses.dataclass(frozen=True)
class BatchRow:
    """The speed of a SavedModel's `generate`; `speedup` is relative to the smallest batch."""

    batch: int = field(metadata=column("batch"))
    seconds: float = field(metadata=column("all", "ms", MILLISECONDS))
    tokens_per_second: float = field(metadata=column("tokens", "per s", decimals(0)))
    speedup: float = field(metadata=column("× batch 1", show=MULTIPLE))
    runs: Sequence[float]


@dataclass(frozen=True)
class ServingReport(Record):
    """The measurements of an artifact's servers, as `bart-export bench --serve --json` prints them.

    `engines` has the search settings of each engine. `ratio` has LiteRT's requests per second
    divided by TensorFlow's, by number of clients; None unless both use the same settings.
    """

    schema_version: int
    artifact: Subject
    machine: Machine
    settings: Mapping[str, Any]
    engines: Sequence[Mapping[str, Any]]
    overhead: Sequence[OverheadRow]
    throughput: Sequence[RequestsRow]
    ratio: Mapping[str, float] | None
    batches: Sequence[BatchRow]
    overload: Sequence[OverloadRow]

    def tables(self) -> Group:
        """Return a table for each list that is not empty."""
        searches = (
            f"{row['engine']}: {plural(row['num_beams'], 'beam')}"
            if row["num_beams"]
            else f"{row['engine']}: unknown number of beams"
            for row in self.engines
        )
        alone = f"A single request, {self.settings['served']}"
        parts: list[RenderableType] = [
            f"{self.artifact.on(self.machine)}; {', '.join(searches)}; medians of "
            f"{plural(self.settings['runs'], 'run')}",
            table(alone, OverheadRow, self.overhead),
            table("Parallel clients", RequestsRow, self.throughput),
        ]
        for clients, ratio in (self.ratio or {}).items():
            each = plural(int(clients), "client")
            parts.append(f"{each}: litert answers {ratio:.2f} × as many requests as tensorflow")
        if self.batches:
            batches = f"SavedModel in batches, {self.settings['batched']}"
            parts.append(table(batches, BatchRow, self.batches))
        return Group(*parts, *map(str, self.overload))


def lists() -> dict[Any, list[Any]]:
    """Return a dictionary of lists."""
    return collections.defaultdict(list)


@dataclasses.dataclass(frozen=True)
class EngineUnderTest:
    """An engine, the clients of its server, and their measurements.

    `singles` has the total and engine seconds of single requests, by front; `answers` and `rates`
    (requests per second of each run) are by number of clients.
    """

    engine: str
    clients: Clients
    singles: dict[str, list[tuple[float, float]]] = field(default_factory=lists)
    answers: dict[int, list[ServerAnswer]] = field(default_factory=lists)
    rates: dict[int, list[float]] = field(default_factory=lists)

    def measure(self, workload: Workload) -> None:
        """Send the requests of a run and record their times."""
        for _ in range(SINGLE):
            for front in FRONTS:
                self.singles[front].append(send_single(self.engine, self.clients, front, workload))
        for clients in CLIENTS:
            time.sleep(PAUSE)
            seconds, answers = self.clients.send_all("rest", clients, EACH * clients)
            self.answers[clients] += answers
            self.rates[clients].append(sum(answer.status == OK for answer in answers) / seconds)

    def overheads(self) -> Iterator[OverheadRow]:
        """Yield a row for each front."""
        for front in FRONTS:
            seconds, engine = map(statistics.median, zip(*self.singles[front], strict=True))
            outside = statistics.median(total - part for total, part in self.singles[front])
            more = seconds - engine
            yield OverheadRow(self.engine, front, engine, seconds, more, more / engine, outside)

    def throughputs(self) -> Iterator[RequestsRow]:
        """Yield a row for each number of clients."""
        for clients, answers in self.answers.items():
            rates, answered = self.rates[clients], sum(answer.status == OK for answer in answers)
            yield RequestsRow(
                self.engine,
                clients,
                statistics.median(rates),
                percentile(answers, 50),
                percentile(answers, 99),
                len(answers),
                answered,
                rates,
            )


def serve_bench(
    location: Location,
    *,
    engines: Sequence[str] = (),
    source: int | None = None,
    new_tokens: int | None = None,
    workers: int | None = None,
    num_threads: int | None = None,
    queue_size: int = ServeOptions.queue_size,
    overload_seconds: float = 0,
    runs: int = 7,
) -> ServingReport:
    """Measure the servers of an artifact.

    Args:
        location: the artifact, as for `Artifact.open`.
        engines: the engines; default: all that the artifact has files for.
        source: source tokens; default: those of `SERVED` for requests and of `BATCHED` for batches,
            or the model's limit if lower.
        new_tokens: new tokens, with the same defaults.
        workers: workers of each server; default: the server's.
        num_threads: threads of each worker; default: the server's.
        queue_size: queue size of each server.
        overload_seconds: duration of the overload; 0 for none.
        runs: runs of each configuration, after one warm-up run.

    Raises:
        ArtifactError: if the artifact is damaged or has no files for an engine.
        ConfigurationError: if a length exceeds the model's limit.
        EngineError: if a server fails or generates a different number of tokens.
    """
    artifact = Artifact.open(location)
    positions = artifact.config.max_sequence_length
    served, batched = (
        Workload(
            fitting_length("--source", source, default.source, positions),
            fitting_length("--new-tokens", new_tokens, default.new_tokens, positions - 1),
        )
        for default in (SERVED, BATCHED)
    )
    names = chosen_engines(artifact, engines)
    flags = {"--workers": workers, "--threads": num_threads, "--queue-size": queue_size}
    given = [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    questions = random_inputs(artifact, served, 1, QUESTIONS)
    batches: list[BatchRow] = []
    overloads: list[OverloadRow] = []
    with contextlib.ExitStack() as stack, stages(1 + len(names) + runs) as stage:
        tested: list[EngineUnderTest] = []
        for name in names:
            stage(f"serve with {name}")
            for file in served_files(artifact, name):
                artifact.path(file)
            server = stack.enter_context(running(artifact.directory, name, *given))
            clients = stack.enter_context(contextlib.closing(Clients(server, questions)))
            EngineUnderTest(name, clients).measure(served)  # to warm up
            tested.append(EngineUnderTest(name, clients))
        for run in range(runs):
            stage(f"ask, run {run + 1} of {runs}")
            for engine in tested:
                engine.measure(served)
        stage("batches")
        for engine in tested:
            if engine.engine == TENSORFLOW:
                batches += measure_batches(artifact, engine.clients.server, batched, runs)
        for engine in tested if overload_seconds else ():
            stage(f"overload {engine.engine} for {overload_seconds:g} s")
            calls = (workers or 1) * MAX_BATCH_SIZE + queue_size
            row = serving_overload.measure(engine.engine, engine.clients, calls, overload_seconds)
            overloads.append(row)
    throughput = [row for engine in tested for row in engine.throughputs()]
    settings = {"workers": workers, "num_threads": num_threads, "queue_size": queue_size}
    return ServingReport(
        SCHEMA_VERSION,
        Subject.of(artifact),
        measurements.host(),
        {"served": served, "batched": batched, **settings, "runs": runs},
        [{"engine": name, **search_settings(artifact, name)} for name in names],
        [row for engine in tested for row in engine.overheads()],
        throughput,
        ratios(artifact, throughput),
        batches,
        overloads,
    )


def chosen_engines(artifact: Artifact, engines: Sequence[str]) -> list[str]:
    """Return the requested engines, or all that the artifact has files for."""
    present = [name for name, target in TARGETS.items() if artifact.files(target)]
    for name in engines or present or TARGETS:
        if name not in present:
            raise ArtifactError(
                f"{artifact.location} has no file for the engine {name}. Export it "
                f"with: bart-export --preset {artifact.manifest.preset} --target {TARGETS[name]}"
            )
    return list(dict.fromkeys(engines or present))


def measure_batches(
    artifact: Artifact, server: Server, workload: Workload, runs: int
) -> Iterator[BatchRow]:
    """Measure how long the engine takes to generate for batches of different sizes."""
    times: dict[int, list[float]] = lists()
    clients = {
        size: Clients(server, random_inputs(artifact, workload, size, 1)) for size in BATCHES
    }
    for run in range(runs + 1):
        for size in BATCHES:
            _, seconds = send_single(TENSORFLOW, clients[size], "grpc", workload)
            if run:
                times[size].append(seconds)
    for each in clients.values():
        each.close()
    medians = {size: statistics.median(times[size]) for size in BATCHES}
    rates = {size: size * workload.new_tokens / seconds for size, seconds in medians.items()}
    for size, rate in rates.items():
        yield BatchRow(size, medians[size], rate, rate / rates[BATCHES[0]], times[size])


def search_settings(artifact: Artifact, engine: str) -> dict[str, Any]:
    """Return an engine's values of `SEARCH`; a SavedModel's come from its golden answers."""
    if engine == LITERT:
        settings: Mapping[str, Any] = artifact.generation.to_dict()
    else:
        name = f"saved_model/{max(artifact.manifest.saved_model_versions, default=0)}"
        cases = artifact.golden().cases
        used = [case.generation.to_dict() for case in cases if name in case.files]
        settings = used[0] if used else {}
    return {name: settings.get(name) for name in SEARCH}


def ratios(artifact: Artifact, rows: Sequence[RequestsRow]) -> dict[str, float] | None:
    """Return LiteRT's requests per second divided by TensorFlow's; see `ServingReport`."""
    rates = {(row.engine, row.clients): row.requests_per_second for row in rows}
    if {row.engine for row in rows} != {LITERT, TENSORFLOW}:
        return None
    if search_settings(artifact, LITERT) != search_settings(artifact, TENSORFLOW):
        return None
    return {
        str(clients): rate / rates[TENSORFLOW, clients]
        for (engine, clients), rate in rates.items()
        if engine == LITERT
    }
