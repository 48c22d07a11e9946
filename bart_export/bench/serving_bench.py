"""The benchmark of a server of an artifact: what it adds to its engine, and what it withstands.

A server runs for each engine, in a process of its own, and counts how long requests wait for their
engine. All configurations take turns, so that what else the machine does falls on all alike, and
figures are medians. Everything generated has a fixed number of tokens.
"""

import collections
import contextlib
import dataclasses
import pathlib
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
    Answer,
    Clients,
    Server,
    Work,
    ask_alone,
    inputs_of,
    running,
)
from bart_export.bench.serving_overload import OverloadRow, percentile
from bart_export.documents import plain
from bart_export.errors import ArtifactError
from bart_export.progress import counted, stages
from bart_export.server.options import ServeOptions
from bart_export.server.versions import LITERT, TENSORFLOW

SCHEMA_VERSION = 1
# The target that an artifact must have files of for an engine to serve it.
TARGETS = {TENSORFLOW: "saved_model", LITERT: "tflite"}
# What decides how much work a search is; a SavedModel's are fixed at its export.
SEARCH = ("num_beams", "num_return_sequences", "no_repeat_ngram_size")
CLIENTS, BATCHES = (1, 4), (1, 8)
ALONE = 3  # requests by themselves in each run, each way
QUESTIONS = 8
EACH = 3  # requests of each of several clients in each run


SERVED, BATCHED = Work(256, 32), Work(512, 64)


@dataclasses.dataclass(frozen=True)
class OverheadRow:
    """What a request by itself takes more than its engine, by whose time the server counts.

    `overhead_seconds` is the difference of two medians, `front_seconds` the median of what each
    request took beside its engine.
    """

    engine: str = field(metadata=column("engine"))
    front: str = field(metadata=column("front"))
    engine_seconds: float = field(metadata=column("engine", "ms", MILLISECONDS))
    request_seconds: float = field(metadata=column("request", "ms", MILLISECONDS))
    overhead_seconds: float = field(metadata=column("more", "ms", MILLISECONDS))
    overhead_share: float = field(metadata=column("more", "%", decimals(1, 100)))
    front_seconds: float = field(metadata=column("front", "ms", MILLISECONDS))


@dataclasses.dataclass(frozen=True)
class ThroughputRow:
    """Requests per second and times of requests, by number of clients."""

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
    """The speed of a SavedModel's `generate`; `speedup` is that over the smallest batch."""

    batch: int = field(metadata=column("batch"))
    seconds: float = field(metadata=column("all", "ms", MILLISECONDS))
    tokens_per_second: float = field(metadata=column("tokens", "per s", decimals(0)))
    speedup: float = field(metadata=column("× batch 1", show=MULTIPLE))
    runs: Sequence[float]


@dataclasses.dataclass(frozen=True)
class ServingReport:
    """What `bart-export bench --serve` measures, and prints with `--json`.

    `engines` says how each searches; `ratio` has, by number of clients, LiteRT's requests per
    second for each of TensorFlow's, None unless both search alike.
    """

    schema_version: int
    artifact: Subject
    machine: Machine
    settings: Mapping[str, Any]
    engines: Sequence[Mapping[str, Any]]
    overhead: Sequence[OverheadRow]
    throughput: Sequence[ThroughputRow]
    ratio: Mapping[str, float] | None
    batches: Sequence[BatchRow]
    overload: Sequence[OverloadRow]

    def to_dict(self) -> dict[str, object]:
        """Return the report as JSON has it."""
        return {name: plain(value) for name, value in vars(self).items()}

    def tables(self) -> Group:
        """Return the report for a terminal: a table of each list that has something."""
        searches = (
            f"{row['engine']}: {counted(row['num_beams'], 'beam')}"
            if row["num_beams"]
            else f"{row['engine']}: an unknown number of beams"
            for row in self.engines
        )
        alone = f"A request by itself, {self.settings['served']}"
        parts: list[RenderableType] = [
            f"{self.artifact.on(self.machine)}; {', '.join(searches)}; medians of "
            f"{counted(self.settings['runs'], 'run')}",
            table(alone, OverheadRow, self.overhead),
            table("Clients side by side", ThroughputRow, self.throughput),
        ]
        for clients, ratio in (self.ratio or {}).items():
            each = counted(int(clients), "client")
            parts.append(f"{each}: litert answers {ratio:.2f} × what tensorflow does")
        if self.batches:
            batches = f"SavedModel in batches, {self.settings['batched']}"
            parts.append(table(batches, BatchRow, self.batches))
        return Group(*parts, *map(str, self.overload))


def lists() -> dict[Any, list[Any]]:
    """Return lists that appear as they are asked for."""
    return collections.defaultdict(list)


@dataclasses.dataclass(frozen=True)
class EngineUnderTest:
    """An engine, its server and the clients of that.

    `alone` has, by front, the seconds of requests by themselves and the part of each that its
    engine took. `answers` and `rates` have, by number of clients, all answers and the requests per
    second of each run.
    """

    engine: str
    clients: Clients
    alone: dict[str, list[tuple[float, float]]] = field(default_factory=lists)
    answers: dict[int, list[Answer]] = field(default_factory=lists)
    rates: dict[int, list[float]] = field(default_factory=lists)

    def measure(self, work: Work) -> None:
        """Ask the server some requests each way, and note the times."""
        for _ in range(ALONE):
            for front in FRONTS:
                self.alone[front].append(ask_alone(self.engine, self.clients, front, work))
        for clients in CLIENTS:
            time.sleep(PAUSE)
            seconds, answers = self.clients.in_turn("rest", clients, EACH * clients)
            self.answers[clients] += answers
            self.rates[clients].append(sum(answer.status == OK for answer in answers) / seconds)

    def overheads(self) -> Iterator[OverheadRow]:
        """Yield a row for each front."""
        for front in FRONTS:
            seconds, engine = map(statistics.median, zip(*self.alone[front], strict=True))
            outside = statistics.median(whole - part for whole, part in self.alone[front])
            more = seconds - engine
            yield OverheadRow(self.engine, front, engine, seconds, more, more / engine, outside)

    def throughputs(self) -> Iterator[ThroughputRow]:
        """Yield a row for each number of clients."""
        for clients, answers in self.answers.items():
            rates, answered = self.rates[clients], sum(answer.status == OK for answer in answers)
            yield ThroughputRow(
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
    directory: pathlib.Path,
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
    """Measure how an artifact is served.

    Args:
        directory: the artifact.
        engines: which; none takes all that it has files for.
        source: tokens that go in; None takes those of `SERVED` for requests and of `BATCHED` for
            batches, as far as the model has room.
        new_tokens: tokens that come out, likewise.
        workers: of each server; None takes its default.
        num_threads: of each worker; None takes the server's default.
        queue_size: of each server.
        overload_seconds: how long to ask twice of what can be answered; 0 leaves it out.
        runs: how often each configuration is measured, after one run that does not count.

    Raises:
        ArtifactError: for an artifact that is damaged or lacks what an engine needs.
        ConfigurationError: for more than the model can take.
        EngineError: for a server that fails, or generates another number of tokens.
    """
    artifact = Artifact.open(directory)
    positions = artifact.config.max_sequence_length
    served, batched = (
        Work(
            fitting_length("--source", source, usual.source, positions),
            fitting_length("--new-tokens", new_tokens, usual.new_tokens, positions - 1),
        )
        for usual in (SERVED, BATCHED)
    )
    names = chosen_engines(artifact, engines)
    flags = {"--workers": workers, "--threads": num_threads, "--queue-size": queue_size}
    given = [f"{flag}={value}" for flag, value in flags.items() if value is not None]
    asked = inputs_of(artifact, served, 1, QUESTIONS)
    batches: list[BatchRow] = []
    overloads: list[OverloadRow] = []
    with contextlib.ExitStack() as stack, stages(1 + len(names) + runs) as stage:
        tested: list[EngineUnderTest] = []
        for name in names:
            stage(f"serve with {name}")
            server = stack.enter_context(running(artifact.directory, name, *given))
            clients = stack.enter_context(contextlib.closing(Clients(server, asked)))
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
            room = (workers or 1) + queue_size
            row = serving_overload.measure(engine.engine, engine.clients, room, overload_seconds)
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
    """Return the engines asked for, or all that an artifact has files for."""
    present = [name for name, target in TARGETS.items() if artifact.files(target)]
    for name in engines or present or TARGETS:
        if name not in present:
            raise ArtifactError(
                f"{artifact.directory} has nothing that the engine {name} could serve. Export it "
                f"with: bart-export --preset {artifact.manifest.preset} --target {TARGETS[name]}"
            )
    return list(dict.fromkeys(engines or present))


def measure_batches(
    artifact: Artifact, server: Server, work: Work, runs: int
) -> Iterator[BatchRow]:
    """Measure `generate` of a SavedModel for batches of different sizes, by its engine's time."""
    times: dict[int, list[float]] = lists()
    clients = {size: Clients(server, inputs_of(artifact, work, size, 1)) for size in BATCHES}
    for run in range(runs + 1):
        for size in BATCHES:
            _, seconds = ask_alone(TENSORFLOW, clients[size], "grpc", work)
            if run:
                times[size].append(seconds)
    for each in clients.values():
        each.close()
    medians = {size: statistics.median(times[size]) for size in BATCHES}
    rates = {size: size * work.new_tokens / seconds for size, seconds in medians.items()}
    for size, rate in rates.items():
        yield BatchRow(size, medians[size], rate, rate / rates[BATCHES[0]], times[size])


def search_settings(artifact: Artifact, engine: str) -> dict[str, Any]:
    """Return how an engine searches: the values of `SEARCH`, None for what is not known.

    A SavedModel's are those of the golden questions that it was asked when it was exported.
    """
    if engine == LITERT:
        settings: Mapping[str, Any] = artifact.generation.to_dict()
    else:
        name = f"saved_model/{max(artifact.manifest.saved_model_versions, default=0)}"
        cases = artifact.golden().cases
        asked = [case.generation.to_dict() for case in cases if name in case.files]
        settings = asked[0] if asked else {}
    return {name: settings.get(name) for name in SEARCH}


def ratios(artifact: Artifact, rows: Sequence[ThroughputRow]) -> dict[str, float] | None:
    """Return LiteRT's requests per second for each of TensorFlow's; see `ServingReport`."""
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
