"""The benchmark of serving an artifact on this machine: what a server adds, and what it withstands.

An artifact directory goes in; figures come out, JSON-ready. A server runs for each engine, in a
process of its own, and clients in another; each engine is also run right here, as the server runs
it, for the time that it takes by itself. All configurations take turns, so that what else the
machine does falls on all alike, and figures are medians. Everything generated has a fixed number of
tokens. Nothing here knows what a figure should be.
"""

import collections
import contextlib
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from bart_export.artifact.artifact import Artifact
from bart_export.bench import serving_overload
from bart_export.bench.bench import check, head
from bart_export.bench.serving_client import FRONTS, OK, Answer, ClientProcess, client_process
from bart_export.bench.serving_process import ServerProcess, server_process
from bart_export.bench.serving_work import (
    Work,
    check_answer,
    fitting_work,
    inputs_of,
    requests_of,
    run_engine,
    search_settings,
)
from bart_export.bench.tables import cores, filled, milliseconds
from bart_export.errors import ArtifactError
from bart_export.progress import counted, stages
from bart_export.server import model_config
from bart_export.server.metrics import Metrics
from bart_export.server.opening import opener
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Servable, Tensors
from bart_export.server.sources import LITERT, TENSORFLOW, find_versions

SCHEMA_VERSION = 1
# The target that an artifact must have files of for an engine to serve it.
TARGETS = {TENSORFLOW: "saved_model", LITERT: "tflite"}
SERVED = Work(source=256, new_tokens=32)
BATCHED = Work(source=512, new_tokens=64)
CLIENTS = (1, 4)
BATCHES = (1, 8)
ALONE = 3  # requests by themselves in each run, each way
QUESTIONS = 8
EACH = 3  # requests of each of several clients in each run
PAUSE = 0.05  # seconds between measurements: threads of a pool go on spinning after their work

# What is measured → seconds of each time it was.
Times = dict[str, list[float]]


@dataclasses.dataclass
class Subject:
    """An engine under measurement: its server, the clients of that, and the engine itself here.

    `asked` is what a request brings that is asked by itself. `alone` has the seconds of each of
    those, by front, and under "engine" those that the engine here took for the same; `inside`, by
    front, what part of a request the server says it waited for its engine. `answers` and `rates`
    have, by number of clients, all answers and the requests per second of each run.
    """

    engine: str
    server: ServerProcess
    clients: ClientProcess
    servable: Servable
    asked: Tensors
    alone: Times = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    inside: Times = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    answers: dict[int, list[Answer]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    rates: dict[int, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )


def serve_bench(
    directory: pathlib.Path,
    *,
    engines: Sequence[str] | None = None,
    source: int | None = None,
    new_tokens: int | None = None,
    workers: int | None = None,
    num_threads: int | None = None,
    queue_size: int = ServeOptions.queue_size,
    overload_seconds: float = 0,
    runs: int = 7,
) -> dict[str, Any]:
    """Measure how an artifact is served.

    Args:
        directory: the artifact.
        engines: which; None takes all that it has files for.
        source: tokens that go in; None takes those of `SERVED` for requests and of `BATCHED` for
            batches, as far as the model has room.
        new_tokens: tokens that come out, likewise.
        workers: of each server; None takes its default.
        num_threads: of each worker; None takes the server's default.
        queue_size: of each server.
        overload_seconds: how long to ask twice of what can be answered; 0 leaves it out.
        runs: how often each configuration is measured, after one run that does not count.

    Returns:
        `schema_version`, `artifact`, `machine`, `settings`, and lists of `engines` (how they
        search), `overhead` (a request by itself against its engine), `throughput` (by number of
        clients), `batches` (of the SavedModel) and `overload`, times in seconds; `ratio` compares
        the engines by number of clients, None unless both search alike.

    Raises:
        ArtifactError: for an artifact that is damaged or lacks what an engine needs.
        ConfigurationError: for numbers that are not positive, or more than the model can take.
        EngineError: for a server that fails, or generates another number of tokens.
    """
    artifact = Artifact.open(directory)
    check(runs=[runs])
    served, batched = (
        fitting_work(artifact, source, new_tokens, usual) for usual in (SERVED, BATCHED)
    )
    names = chosen_engines(artifact, engines)
    options = ServeOptions(workers=workers, num_threads=num_threads, queue_size=queue_size)
    batches: list[dict[str, Any]] = []
    overloads: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack, stages(2 + len(names) + runs) as stage:
        subjects = []
        for name in names:
            stage(f"serve with {name}")
            subjects.append(stack.enter_context(subject(artifact, name, options, served)))
        for run in range(runs + 1):
            stage(f"ask, run {run} of {runs}" if run else "ask once to warm up")
            for one in subjects:
                measure(one, served, counts=run > 0)
        stage("batches")
        for one in subjects:
            if one.engine == TENSORFLOW:
                batches += measure_batches(artifact, one.servable, batched, runs)
        for one in subjects if overload_seconds else ():
            stage(f"overload {one.engine} for {overload_seconds:g} s")
            figures = serving_overload.measure(one.server, one.clients, options, overload_seconds)
            overloads.append({"engine": one.engine, **figures})
    return {
        **head(artifact, SCHEMA_VERSION),
        "settings": {
            "served": dataclasses.asdict(served),
            "batched": dataclasses.asdict(batched),
            "workers": workers,
            "num_threads": num_threads,
            "queue_size": queue_size,
            "runs": runs,
        },
        "engines": [{"engine": name, **search_settings(artifact, name)} for name in names],
        "overhead": [row for one in subjects for row in overheads(one)],
        "throughput": [row for one in subjects for row in throughputs(one)],
        "ratio": ratios(artifact, subjects),
        "batches": batches,
        "overload": overloads,
    }


def chosen_engines(artifact: Artifact, engines: Sequence[str] | None) -> list[str]:
    """Return the engines asked for, or all that an artifact has files for."""
    present = [name for name, target in TARGETS.items() if artifact.files(target)]
    for name in engines or present or TARGETS:
        if name not in present:
            raise ArtifactError(
                f"{artifact.directory} has nothing that the engine {name} could serve. Export it "
                f"with: bart-export --preset {artifact.manifest.preset} --target {TARGETS[name]}"
            )
    return list(dict.fromkeys(engines or present))


@contextlib.contextmanager
def subject(
    artifact: Artifact, engine: str, options: ServeOptions, work: Work
) -> Iterator[Subject]:
    """Serve an artifact with an engine for the length of a block, and open the engine here."""
    (model,) = model_config.served_models([artifact.directory], engine)
    number, path = max(find_versions(model).items())
    asked = inputs_of(artifact, work, 1, QUESTIONS)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(server_process(artifact.directory, engine, options))
        requests = requests_of(server.model, asked)
        clients = stack.enter_context(client_process(server.ports, requests))
        servable = opener(options, Metrics())(model, number, path)
        stack.callback(servable.close)
        yield Subject(engine, server, clients, servable, asked[0])


def measure(one: Subject, work: Work, *, counts: bool) -> None:
    """Ask an engine and its server some requests each way, and note them if they count."""
    alone, inside = collections.defaultdict(list), collections.defaultdict(list)
    for _ in range(ALONE):
        time.sleep(PAUSE)
        alone["engine"].append(run_engine(one.servable, one.asked, work))
        for front in FRONTS:
            time.sleep(PAUSE)
            before = one.server.engine_seconds()
            _, (answer,) = one.clients.in_turn(front, 1, 1)
            inside[front].append(one.server.engine_seconds() - before)
            alone[front].append(answer.seconds)
            what = f"{one.engine} over {front}"
            check_answer(what, answer.status, answer.new_tokens, work)
    for clients in CLIENTS:
        time.sleep(PAUSE)
        seconds, answers = one.clients.in_turn("rest", clients, EACH * clients)
        if counts:
            answered = sum(answer.status == OK for answer in answers)
            one.answers[clients] += answers
            one.rates[clients].append(answered / seconds)
    if counts:
        for into, times in ((one.alone, alone), (one.inside, inside)):
            for way, seconds_of_each in times.items():
                into[way] += seconds_of_each


def overheads(one: Subject) -> Iterator[dict[str, Any]]:
    """Yield, for each front, what a request by itself takes more than the engine by itself.

    `front_seconds` is the part of it before and after the server waits for its engine, each request
    held against itself; the rest is handing over to the engine's threads, or chance.
    """
    engine = statistics.median(one.alone["engine"])
    for front in FRONTS:
        seconds = statistics.median(one.alone[front])
        outside = [
            whole - part for whole, part in zip(one.alone[front], one.inside[front], strict=True)
        ]
        yield {
            "engine": one.engine,
            "front": front,
            "engine_seconds": engine,
            "request_seconds": seconds,
            "overhead_seconds": seconds - engine,
            "overhead_share": (seconds - engine) / engine,
            "front_seconds": statistics.median(outside),
        }


def throughputs(one: Subject) -> Iterator[dict[str, Any]]:
    """Yield, for each number of clients, requests per second and times of requests."""
    for clients, answers in one.answers.items():
        times = [answer.seconds for answer in answers if answer.status == OK]
        yield {
            "engine": one.engine,
            "clients": clients,
            "requests_per_second": statistics.median(one.rates[clients]),
            "p50_seconds": serving_overload.percentile(times, 50),
            "p99_seconds": serving_overload.percentile(times, 99),
            "requests": len(answers),
            "answered": len(times),
            "runs": one.rates[clients],
        }


def ratios(artifact: Artifact, subjects: Sequence[Subject]) -> dict[str, float] | None:
    """Return, by number of clients, LiteRT's requests per second for each of TensorFlow's."""
    rates = {one.engine: one.rates for one in subjects}
    if len(rates) < 2 or search_settings(artifact, LITERT) != search_settings(artifact, TENSORFLOW):
        return None
    return {
        str(clients): statistics.median(rates[LITERT][clients])
        / statistics.median(rates[TENSORFLOW][clients])
        for clients in CLIENTS
    }


def measure_batches(
    artifact: Artifact, servable: Servable, work: Work, runs: int
) -> list[dict[str, Any]]:
    """Measure `generate` of a SavedModel for batches of different sizes."""
    times: dict[int, list[float]] = {size: [] for size in BATCHES}
    for run in range(runs + 1):
        for size in BATCHES:
            (inputs,) = inputs_of(artifact, work, size, 1)
            time.sleep(PAUSE)
            seconds = run_engine(servable, inputs, work)
            if run:
                times[size].append(seconds)
    return [
        {
            "batch": size,
            "seconds": statistics.median(times[size]),
            "tokens_per_second": size * work.new_tokens / statistics.median(times[size]),
            "runs": times[size],
        }
        for size in BATCHES
    ]


def tables(report: dict[str, Any]) -> Group:
    """Return the report for a terminal: a table of each list that has something."""
    about, served, batched = (
        report["machine"],
        report["settings"]["served"],
        report["settings"]["batched"],
    )
    searches = [
        f"{row['engine']}: "
        + (counted(row["num_beams"], "beam") if row["num_beams"] else "an unknown number of beams")
        for row in report["engines"]
    ]
    parts: list[Table | str] = [
        f"{report['artifact']['preset']} on {about['processor']}, {cores(about)}; "
        f"{', '.join(searches)}; medians of {counted(report['settings']['runs'], 'run')}",
        filled(
            f"A request by itself, source {served['source']}, {served['new_tokens']} new tokens",
            ("engine", "front", "engine\nms", "request\nms", "more\nms", "more\n%", "front\nms"),
            [
                (
                    row["engine"],
                    row["front"],
                    milliseconds(row["engine_seconds"]),
                    milliseconds(row["request_seconds"]),
                    milliseconds(row["overhead_seconds"]),
                    f"{100 * row['overhead_share']:.1f}",
                    milliseconds(row["front_seconds"]),
                )
                for row in report["overhead"]
            ],
        ),
        filled(
            "Clients side by side",
            ("engine", "clients", "requests\nper s", "p50\nms", "p99\nms", "answered"),
            [
                (
                    row["engine"],
                    str(row["clients"]),
                    f"{row['requests_per_second']:.2f}",
                    milliseconds(row["p50_seconds"]),
                    milliseconds(row["p99_seconds"]),
                    f"{row['answered']} of {row['requests']}",
                )
                for row in report["throughput"]
            ],
        ),
    ]
    for clients, ratio in (report["ratio"] or {}).items():
        parts.append(
            f"{counted(int(clients), 'client')}: litert answers {ratio:.2f} × what tensorflow does"
        )
    if report["batches"]:
        first = report["batches"][0]["tokens_per_second"]
        parts.append(
            filled(
                f"SavedModel in batches, source {batched['source']}, {batched['new_tokens']} new "
                "tokens",
                ("batch", "ms", "tokens\nper s", "× batch 1"),
                [
                    (
                        str(row["batch"]),
                        milliseconds(row["seconds"]),
                        f"{row['tokens_per_second']:.0f}",
                        f"{row['tokens_per_second'] / first:.2f}",
                    )
                    for row in report["batches"]
                ],
            )
        )
    return Group(*parts, *map(serving_overload.text, report["overload"]))
