"""The throughput of files that generate several texts together, with a `Generator`."""

import dataclasses
import itertools
import operator
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bart_export.artifact.artifact import Artifact
from bart_export.bench import opening_cost
from bart_export.bench.measurements import forced_settings, random_sources
from bart_export.bench.opening_cost import OpeningRun
from bart_export.bench.rows import SkippedRow, ThroughputRow
from bart_export.progress import stages
from bart_export.runtime.engine_choice import open_engine
from bart_export.runtime.generator import Generator
from bart_export.runtime.sizing import sizing_of
from bart_export.text.tokenizer import BartTokenizer

ONE_AT_A_TIME = "the file decodes one text at a time"


class SchedulerTimes(NamedTuple):
    """The seconds of a generation: its parts, and all of it."""

    encode: float
    decode: float
    search: float
    total: float


@dataclasses.dataclass(frozen=True)
class ThroughputBenchmark:
    """An open file and the texts to generate; `row` identifies it.

    `generator` is forced to the row's number of new tokens.
    """

    row: ThroughputRow
    generator: Generator
    timings: list[SchedulerTimes] = dataclasses.field(default_factory=list)

    def measure(self) -> SchedulerTimes:
        """Generate all texts once."""
        row, generator = self.row, self.generator
        size = generator.engine.config.vocabulary_size
        sources = random_sources(size, row.source, row.num_texts)
        before = self.clocks()
        generator.generate_ids(sources, num_beams=row.num_beams)
        return SchedulerTimes._make(map(operator.sub, self.clocks(), before))

    def clocks(self) -> SchedulerTimes:
        """Return the scheduler's times so far, and the current time."""
        scheduler = self.generator.scheduler
        return SchedulerTimes(
            scheduler.encode_seconds,
            scheduler.decode_seconds,
            scheduler.search_seconds,
            time.perf_counter(),
        )

    def summary(self) -> ThroughputRow:
        """Return the row with the medians of all runs."""
        totals = tuple(timing.total for timing in self.timings)
        seconds, texts = statistics.median(totals), self.row.num_texts
        shares = ([part / timing.total for part in timing[:3]] for timing in self.timings)
        encode, decode, search = map(statistics.median, zip(*shares, strict=True))
        return dataclasses.replace(
            self.row,
            tokens_per_second=texts * self.row.new_tokens / seconds,
            seconds_per_text=seconds / texts,
            encode_share=encode,
            decode_share=decode,
            search_share=search,
            runs=totals,
        )


def measure(
    artifact: Artifact,
    pairs: Mapping[str, Sequence[tuple[int, int]]],
    num_texts: Sequence[int],
    num_threads: Sequence[int],
    new_tokens: int,
    runs: int,
) -> tuple[list[ThroughputRow], list[SkippedRow]]:
    """Measure each number of texts with every file's (source tokens, beams) in `pairs`.

    Returns the rows, and the numbers that were skipped for files that decode one text at a time.
    """
    benchmarks: list[ThroughputBenchmark] = []
    skipped: list[SkippedRow] = []
    with stages(len(pairs) * len(num_threads) + runs) as stage:
        for name in pairs:
            entry = artifact.manifest.tflite()[name]
            fitting = num_texts
            if sizing_of(artifact.config, artifact.buckets(name)).max_sources == 1:
                fitting = [texts for texts in num_texts if texts == 1]
            skipped += [
                SkippedRow(ONE_AT_A_TIME, recipe=entry.recipe, build=entry.build, num_texts=texts)
                for texts in num_texts
                if texts not in fitting
            ]
            for threads in num_threads:
                stage(f"open {name} for several texts")
                generator = forced_generator(artifact, name, threads, new_tokens)
                for texts, (source, beams) in itertools.product(fitting, pairs[name]):
                    asked = threads, source, beams, new_tokens, texts
                    peak = peak_bytes(artifact, OpeningRun(name, *asked))
                    row = ThroughputRow(entry.recipe, entry.build, *asked, peak_bytes=peak)
                    benchmarks.append(ThroughputBenchmark(row, generator))
                    benchmarks[-1].measure()  # warm-up
        for number in range(runs):
            stage(f"generate several texts, run {number + 1} of {runs}")
            for benchmark in benchmarks:
                benchmark.timings.append(benchmark.measure())
    return [benchmark.summary() for benchmark in benchmarks], skipped


def forced_generator(artifact: Artifact, file: str, threads: int, new_tokens: int) -> Generator:
    """Open a file to generate exactly `new_tokens` tokens per text."""
    return Generator(
        BartTokenizer.from_artifact(artifact),
        open_engine(artifact, file, num_threads=threads),
        forced_settings(artifact.generation, new_tokens, 1),
        artifact.manifest.encoder_sequence_length,
    )


def peak_bytes(artifact: Artifact, run: OpeningRun) -> int | None:
    """Return the peak memory of a process that generates, in a second opening of the file."""
    short = dataclasses.replace(run, num_texts=1, num_beams=1, new_tokens=1)
    with opening_cost.linked_copy(artifact) as copy:
        opening_cost.open_in_process(copy, short)
        return opening_cost.open_in_process(copy, run)["text"].peak_bytes
