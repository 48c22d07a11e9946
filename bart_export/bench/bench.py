"""The benchmark of an artifact's files: sizes, openings, memory and speed.

Configurations take turns, so that other work on the machine affects all of them alike.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence

from bart_export.artifact.artifact import Artifact
from bart_export.bench import measurements, opening_cost, rows, throughput
from bart_export.bench.opening_cost import OpeningRun
from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError
from bart_export.locations import Location
from bart_export.progress import stages
from bart_export.runtime.engine import Engine, default_threads
from bart_export.runtime.engine_choice import choose_file, open_engine

SOURCES, NEW_TOKENS = (64, 512), 64  # defaults, lowered to the limits of the files
FIRST_TEXT = 8  # new tokens of the text after an opening


@dataclasses.dataclass(frozen=True)
class GenerationBenchmark:
    """An open file and a configuration; `row` identifies it."""

    row: rows.GenerationRow
    engine: Engine
    generation: GenerationConfig
    timings: list[measurements.Timing] = dataclasses.field(default_factory=list)

    def measure(self) -> measurements.Timing:
        """Generate once, then time the encoder again with allocated buffers."""
        settings = measurements.forced_settings(
            self.generation, self.row.new_tokens, self.row.num_beams
        )
        source = measurements.random_source(self.engine.config.vocabulary_size, self.row.source)
        timing = measurements.generate(self.engine, source, settings)
        began = time.perf_counter()
        self.engine.start(source, settings.num_beams, settings.max_length)
        return dataclasses.replace(timing, encode=time.perf_counter() - began)

    def summary(self) -> rows.GenerationRow:
        """Return the row with the medians of all runs."""
        totals = tuple(timing.total for timing in self.timings)
        seconds = statistics.median(totals)
        return dataclasses.replace(
            self.row,
            encode_seconds=statistics.median(timing.encode for timing in self.timings),
            step_seconds=statistics.median(timing.step for timing in self.timings),
            seconds=seconds,
            tokens_per_second=self.row.new_tokens / seconds,
            runs=totals,
        )


def bench(
    location: Location,
    *,
    recipes: Sequence[str] = (),
    sources: Sequence[int] = (),
    new_tokens: int | None = None,
    num_beams: Sequence[int] = (1, 4),
    num_texts: Sequence[int] = (),
    num_threads: Sequence[int] = (),
    runs: int = 7,
) -> rows.Report:
    """Measure an artifact's `.tflite` files.

    Args:
        location: the artifact, as for `Artifact.open`.
        recipes: the recipes to measure, in all builds; default: all.
        sources: source lengths in tokens; default: `SOURCES`, lowered to the files' limits.
        new_tokens: tokens to generate; default: `NEW_TOKENS`, lowered to the files' limits.
        num_beams: numbers of beams, 1 for greedy search.
        num_texts: numbers of texts to generate together; default: none.
        num_threads: numbers of threads of the engine; default: the `Generator`'s.
        runs: runs of each configuration, after one warm-up run.

    Raises:
        ArtifactError: if the artifact is damaged or lacks a recipe.
        ConfigurationError: if `new_tokens` exceeds the model's limit.
        EngineError: if this machine's runtime cannot run a file correctly.
    """
    artifact = Artifact.open(location)
    files, names = artifact.manifest.tflite(), selected_files(artifact, recipes)
    tokenizer = artifact.manifest.tokenizer
    for name in (tokenizer.vocabulary, tokenizer.merges, *names):
        artifact.path(name, rehash=True)  # an error must name the artifact, not a copy
    default = default_threads(artifact.manifest.parameter_count)
    threads = tuple(dict.fromkeys(num_threads or [default]))
    length, pairs, skipped = plan(artifact, names, sources, new_tokens, num_beams)
    opened = [(name, count) for name in pairs for count in threads]
    openings: list[rows.OpeningRow] = []
    memories: list[rows.MemoryRow] = []
    benchmarks: list[GenerationBenchmark] = []
    with stages(2 * len(opened) + runs) as stage:
        for name, count in opened:
            stage(f"open {name}")
            longest = sorted({beams: source for source, beams in sorted(pairs[name])}.items())
            first = OpeningRun(name, count, *min(pairs[name]), min(FIRST_TEXT, length))
            with opening_cost.linked_copy(artifact) as copy:
                openings += opening_cost.measure(copy, files[name], first)
                for beams, source in longest:
                    run = OpeningRun(name, count, source, beams, length)
                    memories.append(opening_cost.memory(copy, files[name], run))
        for name, count in opened:
            stage(f"load {name}")
            engine = open_engine(artifact, name, num_threads=count)
            key = files[name].recipe, files[name].build, count
            for source, beams in pairs[name]:
                row = rows.GenerationRow(*key, source, beams, length)
                benchmarks.append(GenerationBenchmark(row, engine, artifact.generation))
                benchmarks[-1].measure()  # warm-up
        for number in range(runs):
            stage(f"generate, run {number + 1} of {runs}")
            for benchmark in benchmarks:
                benchmark.timings.append(benchmark.measure())
    together: list[rows.ThroughputRow] = []
    if num_texts:
        together, alone = throughput.measure(artifact, pairs, num_texts, threads, length, runs)
        skipped += alone
    sizes = []
    for name in names:
        entry = files[name]
        density = entry.bytes / artifact.manifest.parameter_count
        sizes.append(rows.FileRow(entry.recipe, entry.build, name, entry.bytes, density))
    return rows.Report(
        rows.SCHEMA_VERSION,
        rows.Subject.of(artifact),
        measurements.host(),
        rows.Settings(length, threads, runs),
        tuple(sizes),
        tuple(openings),
        tuple(memories),
        tuple(benchmark.summary() for benchmark in benchmarks),
        tuple(skipped),
        tuple(together),
    )


def plan(
    artifact: Artifact,
    names: Sequence[str],
    sources: Sequence[int],
    new_tokens: int | None,
    num_beams: Sequence[int],
) -> tuple[int, dict[str, list[tuple[int, int]]], list[rows.SkippedRow]]:
    """Return the number of new tokens, each file's (source tokens, beams), and skipped rows."""
    files, positions = artifact.manifest.tflite(), artifact.config.max_sequence_length
    limits = [measurements.token_limits(files[name].shapes, positions) for name in names]
    longest, most = map(max, zip(*limits, strict=True))
    skipped: list[rows.SkippedRow] = []
    if not sources:
        reason = f"no file supports more than {longest}"
        skipped += [
            rows.SkippedRow(reason, source=length) for length in SOURCES if length > longest
        ]
        sources = list(dict.fromkeys(min(length, longest) for length in SOURCES))
    if new_tokens is None and most < NEW_TOKENS:
        skipped.append(rows.SkippedRow(f"no file supports more than {most}", new_tokens=NEW_TOKENS))
    length = fitting_length("--new-tokens", new_tokens, min(NEW_TOKENS, most), positions - 1)
    reason = f"the model has {positions} positions"
    skipped += [rows.SkippedRow(reason, source=source) for source in sources if source > positions]
    sources = [source for source in sources if source <= positions]
    pairs: dict[str, list[tuple[int, int]]] = {}
    for name, source, beams in itertools.product(names, sources, num_beams):
        entry = files[name]
        unsupported = measurements.unsupported_reason(entry.shapes, source, beams, length)
        if unsupported is None:
            pairs.setdefault(name, []).append((source, beams))
        else:
            row = rows.SkippedRow(unsupported, source, None, entry.recipe, entry.build, beams)
            skipped.append(row)
    return length, pairs, skipped


def fitting_length(flag: str, length: int | None, default: int, limit: int) -> int:
    """Return a length within the limit, or the default lowered to the limit."""
    if length is None:
        return min(default, limit)
    if length > limit:
        raise ConfigurationError(
            f"{flag} must be at most {limit} for this model, received {length}."
        )
    return length


def selected_files(artifact: Artifact, recipes: Sequence[str]) -> list[str]:
    """Return the names of the recipes' files in the order of the recipes, or of all files."""
    choose_file(artifact, None, None)  # refuses an artifact without files
    for recipe in recipes:
        choose_file(artifact, recipe, None)
    files = artifact.manifest.tflite()
    selected = recipes or dict.fromkeys(entry.recipe for entry in files.values())
    return [name for recipe in selected for name, entry in files.items() if entry.recipe == recipe]
