"""The benchmark of an artifact on this machine: sizes, openings, memory and speed of its files.

Generation is measured from source ids to generated ids, forced to a given number of tokens. All
configurations take turns, so that what else the machine does falls on all alike, and figures are
medians.
"""

import dataclasses
import itertools
import pathlib
import statistics
import time
from collections.abc import Sequence

from bart_export.artifact.artifact import Artifact
from bart_export.bench import opening
from bart_export.bench.measurements import (
    Timing,
    forced_settings,
    generate,
    host,
    random_source,
    room,
    unsupported_reason,
)
from bart_export.bench.opening import OpeningRun
from bart_export.bench.rows import (
    SCHEMA_VERSION,
    FileRow,
    GenerationRow,
    MemoryRow,
    OpeningRow,
    Report,
    Settings,
    SkippedRow,
    Subject,
)
from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError
from bart_export.progress import stages
from bart_export.runtime.engine import Engine, default_threads
from bart_export.runtime.engines import choose_file, open_engine

SOURCES, NEW_TOKENS = (64, 512), 64  # what is measured where nobody says, as far as there is room
FIRST_TEXT = 8  # tokens of the text that an opening is followed by


@dataclasses.dataclass(frozen=True)
class Work:
    """A file that is open and what it is asked; `row` has the medians to come."""

    row: GenerationRow
    engine: Engine
    generation: GenerationConfig
    timings: list[Timing] = dataclasses.field(default_factory=list)

    def measure(self) -> Timing:
        """Generate once; the encoder runs a second time, with its buffers in place."""
        settings = forced_settings(self.generation, self.row.new_tokens, self.row.num_beams)
        source = random_source(self.engine.config.vocabulary_size, self.row.source)
        timing = generate(self.engine, source, settings)
        began = time.perf_counter()
        self.engine.start(source, settings.num_beams, settings.max_length)
        return dataclasses.replace(timing, encode=time.perf_counter() - began)

    def summary(self) -> GenerationRow:
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
    directory: pathlib.Path,
    *,
    recipes: Sequence[str] = (),
    sources: Sequence[int] = (),
    new_tokens: int | None = None,
    num_beams: Sequence[int] = (1, 4),
    num_threads: Sequence[int] = (),
    runs: int = 7,
) -> Report:
    """Measure an artifact's `.tflite` files.

    Args:
        directory: the artifact.
        recipes: which files, all builds of each; none takes all.
        sources: lengths of source texts, in tokens; none takes those of `SOURCES`, what exceeds the
            largest that a file takes lowered to that.
        new_tokens: tokens to generate, no fewer and no more; None takes `NEW_TOKENS`, likewise.
        num_beams: numbers of beams, 1 for greedy search.
        num_threads: numbers of threads of the engine; none takes the one that a Generator takes.
        runs: how often each configuration is measured, after one run that does not count.

    Raises:
        ArtifactError: for an artifact that is damaged or lacks a recipe.
        ConfigurationError: for more new tokens than fit.
        EngineError: for a file that this machine's runtime cannot run rightly.
    """
    artifact = Artifact.open(directory)
    files, names = artifact.manifest.tflite(), chosen_files(artifact, recipes)
    tokenizer = artifact.manifest.tokenizer
    for name in (tokenizer.vocabulary, tokenizer.merges, *names):
        artifact.path(name, rehash=True)  # so that an error names the artifact, not a copy
    usual = default_threads(artifact.manifest.parameter_count)
    threads = tuple(dict.fromkeys(num_threads or [usual]))
    length, pairs, skipped = plan(artifact, names, sources, new_tokens, num_beams)
    opened = [(name, count) for name in pairs for count in threads]
    openings: list[OpeningRow] = []
    memories: list[MemoryRow] = []
    works: list[Work] = []
    with stages(2 * len(opened) + runs) as stage:
        for name, count in opened:
            stage(f"open {name}")
            longest = sorted({beams: source for source, beams in sorted(pairs[name])}.items())
            first = OpeningRun(name, count, *min(pairs[name]), min(FIRST_TEXT, length))
            with opening.linked_copy(artifact) as copy:
                openings += opening.measure(copy, files[name], first)
                for beams, source in longest:
                    run = OpeningRun(name, count, source, beams, length)
                    memories.append(opening.memory(copy, files[name], run))
        for name, count in opened:
            stage(f"load {name}")
            engine = open_engine(artifact, name, num_threads=count)
            about = files[name].recipe, files[name].build, count
            for source, beams in pairs[name]:
                row = GenerationRow(*about, source, beams, length)
                works.append(Work(row, engine, artifact.generation))
                works[-1].measure()  # to warm up
        for number in range(runs):
            stage(f"generate, run {number + 1} of {runs}")
            for work in works:
                work.timings.append(work.measure())
    sizes = []
    for name in names:
        entry = files[name]
        density = entry.bytes / artifact.manifest.parameter_count
        sizes.append(FileRow(entry.recipe, entry.build, name, entry.bytes, density))
    return Report(
        SCHEMA_VERSION,
        Subject.of(artifact),
        host(),
        Settings(length, threads, runs),
        tuple(sizes),
        tuple(openings),
        tuple(memories),
        tuple(work.summary() for work in works),
        tuple(skipped),
    )


def plan(
    artifact: Artifact,
    names: Sequence[str],
    sources: Sequence[int],
    new_tokens: int | None,
    num_beams: Sequence[int],
) -> tuple[int, dict[str, list[tuple[int, int]]], list[SkippedRow]]:
    """Return what is measured, as far as files have room for it.

    Usual lengths are lowered to what the largest file takes.

    Returns:
        The new tokens, the (source tokens, beams) of each file, and what is left out.

    Raises:
        ConfigurationError: for more new tokens than the model has positions for.
    """
    files, positions = artifact.manifest.tflite(), artifact.config.max_sequence_length
    rooms = [room(files[name].shapes, positions) for name in names]
    longest, most = map(max, zip(*rooms, strict=True))
    skipped: list[SkippedRow] = []
    if not sources:
        reason = f"no file takes more than {longest}"
        skipped += [SkippedRow(reason, source=length) for length in SOURCES if length > longest]
        sources = list(dict.fromkeys(min(length, longest) for length in SOURCES))
    if new_tokens is None and most < NEW_TOKENS:
        skipped.append(SkippedRow(f"no file takes more than {most}", new_tokens=NEW_TOKENS))
    length = fitting_length("--new-tokens", new_tokens, min(NEW_TOKENS, most), positions - 1)
    reason = f"the model has {positions} positions"
    skipped += [SkippedRow(reason, source=source) for source in sources if source > positions]
    sources = [source for source in sources if source <= positions]
    pairs: dict[str, list[tuple[int, int]]] = {}
    for name, source, beams in itertools.product(names, sources, num_beams):
        entry = files[name]
        unsupported = unsupported_reason(entry.shapes, source, beams, length)
        if unsupported is None:
            pairs.setdefault(name, []).append((source, beams))
        else:
            row = SkippedRow(unsupported, source, None, entry.recipe, entry.build, beams)
            skipped.append(row)
    return length, pairs, skipped


def fitting_length(flag: str, given: int | None, usual: int, most: int) -> int:
    """Return how many tokens to measure with: what was given, or else the usual.

    Raises:
        ConfigurationError: if more were given than the model has room for.
    """
    if given is not None and given > most:
        raise ConfigurationError(f"{flag} must be at most {most} for this model, received {given}.")
    return min(usual, most) if given is None else given


def chosen_files(artifact: Artifact, recipes: Sequence[str]) -> list[str]:
    """Return the names of all files, or of those of the recipes asked for, in their order."""
    choose_file(artifact, None, None)  # says what to do where there is no file at all
    for recipe in recipes:
        choose_file(artifact, recipe, None)
    files = artifact.manifest.tflite()
    wanted = recipes or dict.fromkeys(entry.recipe for entry in files.values())
    return [name for recipe in wanted for name, entry in files.items() if entry.recipe == recipe]
