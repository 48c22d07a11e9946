"""The benchmark of an artifact on this machine: sizes, openings and speed of its `.tflite` files.

An artifact directory goes in; figures come out, JSON-ready, and a table of them. Generation is
measured as a user meets it, from source ids in to generated ids out, forced to a given number of
tokens. All configurations take turns, so that what else the machine does falls on all alike, and
figures are medians. Nothing here knows what a figure should be.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table

from bart_export.artifact import Artifact
from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError
from bart_export.progress import stages
from bart_export.quality import machine, opening
from bart_export.runtime.generator import Generator, choose_file

SCHEMA_VERSION = 1
STEPS = 16  # decode steps timed one by one in each run


@dataclasses.dataclass
class Work:
    """One configuration, and what each run of it took, in seconds.

    `encode` is one call of the encoder, buffers in place; `step` one call of the decoder, the
    median of a run; `total` a whole generation, resizing of buffers and search included.
    """

    recipe: str
    source: int
    num_beams: int
    generator: Generator
    encode: list[float] = dataclasses.field(default_factory=list)
    step: list[float] = dataclasses.field(default_factory=list)
    total: list[float] = dataclasses.field(default_factory=list)


def bench(
    directory: pathlib.Path,
    *,
    recipes: Sequence[str] | None = None,
    sources: Sequence[int] = (64, 512),
    new_tokens: int = 64,
    num_beams: Sequence[int] = (1, 4),
    num_threads: int | None = None,
    runs: int = 7,
) -> dict[str, Any]:
    """Measure an artifact's `.tflite` files.

    Args:
        directory: the artifact.
        recipes: which files; None takes all.
        sources: lengths of source texts, in tokens. Those the model has no positions for are
            skipped and listed as such.
        new_tokens: tokens to generate, no fewer and no more.
        num_beams: numbers of beams, 1 for greedy search.
        num_threads: threads of the engine; None takes all cores this process may use.
        runs: how often each configuration is measured, after one run that does not count.

    Returns:
        `schema_version`, `artifact`, `machine`, `settings`, and lists of `files` (sizes and
        `opening.measure`), `generation` (medians in seconds, all totals in `runs`) and `skipped`.

    Raises:
        ArtifactError: for an artifact that is damaged or lacks a recipe.
        ConfigurationError: for numbers that are not positive, or too many new tokens.
        EngineError: for a file that this machine's runtime cannot run rightly.
    """
    check(sources=sources, new_tokens=[new_tokens], num_beams=num_beams, runs=[runs])
    artifact = Artifact.open(directory)
    positions = artifact.config.max_sequence_length
    if new_tokens >= positions:
        raise ConfigurationError(
            f"new_tokens must be at most {positions - 1}, as the model has {positions} positions "
            f"and one is for the start token; received {new_tokens}."
        )
    files = chosen_files(artifact, recipes)
    fitting = [source for source in sources if source <= positions]
    with stages(2 * len(files) + runs + 1) as stage:
        rows = []
        for recipe, name in files.items():
            stage(f"open {recipe}")
            rows.append(describe_file(artifact, recipe, name, num_threads))
        works = []
        for recipe in files:
            stage(f"load {recipe}")
            generator = Generator.from_artifact(directory, recipe=recipe, num_threads=num_threads)
            works += [
                Work(recipe, source, beams, forced(generator, new_tokens, beams))
                for source in fitting
                for beams in num_beams
            ]
        for run in range(runs + 1):
            stage(f"generate, run {run} of {runs}" if run else "generate once to warm up")
            for work in works:
                measure(work, new_tokens, counts=run > 0)
    return {
        "schema_version": SCHEMA_VERSION,
        "artifact": {
            "preset": artifact.manifest["preset"],
            "parameter_count": artifact.manifest["parameter_count"],
        },
        "machine": machine.describe(),
        "settings": {"new_tokens": new_tokens, "num_threads": num_threads, "runs": runs},
        "files": rows,
        "generation": [summary(work, new_tokens) for work in works],
        "skipped": [
            {"source": source, "reason": f"the model has {positions} positions"}
            for source in sources
            if source not in fitting
        ],
    }


def check(**numbers: Sequence[int]) -> None:
    """Raise ConfigurationError if a number is below 1, or a list of numbers is empty."""
    for name, values in numbers.items():
        wrong = [value for value in values if value < 1]
        if wrong or not values:
            received = wrong[0] if wrong else "nothing"
            raise ConfigurationError(f"{name} must be at least 1, received {received}.")


def chosen_files(artifact: Artifact, recipes: Sequence[str] | None) -> dict[str, str]:
    """Return recipe -> file name of the recipes asked for, in their order, or of all."""
    if recipes is None:
        choose_file(artifact, None, None)  # says what to do where there is no file at all
        recipes = [entry["recipe"] for entry in artifact.files("tflite").values()]
    return {recipe: choose_file(artifact, recipe, None) for recipe in recipes}


def describe_file(
    artifact: Artifact, recipe: str, name: str, num_threads: int | None
) -> dict[str, Any]:
    """Return the size of a file and what opening it costs."""
    size = artifact.manifest["files"][name]["bytes"]
    return {
        "recipe": recipe,
        "file": name,
        "bytes": size,
        "bytes_per_parameter": size / artifact.manifest["parameter_count"],
        "opening": opening.measure(artifact, recipe, num_threads),
    }


def forced(generator: Generator, new_tokens: int, num_beams: int) -> Generator:
    """Return a generator over the same engine that makes exactly `new_tokens` tokens.

    Of the artifact's own settings only the token ids are kept, so that files of different models
    do the same work.
    """
    ids = {
        name: value
        for name, value in generator.generation.to_dict().items()
        if name.endswith("_token_id") and not name.startswith("forced_")
    }
    length = new_tokens + 1
    settings = GenerationConfig(max_length=length, min_length=length, num_beams=num_beams, **ids)
    return Generator(
        generator.tokenizer, generator.engine, settings, generator.encoder_sequence_length
    )


def measure(work: Work, new_tokens: int, *, counts: bool) -> None:
    """Run a configuration once, and note what it took if the run counts."""
    generator, engine = work.generator, work.generator.engine
    source = random_source(engine.config.vocabulary_size, work.source)
    began = time.perf_counter()
    generator.generate_ids(source)
    total = time.perf_counter() - began
    began = time.perf_counter()
    state = engine.start(source, work.num_beams, new_tokens + 1)
    encode = time.perf_counter() - began
    rows = np.arange(work.num_beams, dtype=np.int32)
    tokens = np.full(work.num_beams, generator.generation.decoder_start_token_id, np.int32)
    steps = []
    for _ in range(min(STEPS, new_tokens)):
        began = time.perf_counter()
        _, state = engine.step(state, tokens, rows)
        steps.append(time.perf_counter() - began)
    if counts:
        work.total.append(total)
        work.encode.append(encode)
        work.step.append(statistics.median(steps))


def random_source(vocabulary_size: int, length: int) -> list[int]:
    """Return token ids of a source, the same for the same arguments."""
    ids: list[int] = np.random.default_rng(0).integers(0, vocabulary_size, length).tolist()
    return ids


def summary(work: Work, new_tokens: int) -> dict[str, Any]:
    """Return the medians of a configuration."""
    total = statistics.median(work.total)
    return {
        "recipe": work.recipe,
        "source": work.source,
        "num_beams": work.num_beams,
        "encode_seconds": statistics.median(work.encode),
        "step_seconds": statistics.median(work.step),
        "seconds": total,
        "tokens_per_second": new_tokens / total,
        "runs": work.total,
    }


def tables(report: dict[str, Any]) -> Group:
    """Return the report for a terminal: one table of files, one of speeds, and what was skipped."""
    about, settings = report["machine"], report["settings"]
    files = table(
        f"{report['artifact']['preset']} on {about['processor']}, {about['cores']} cores",
        "recipe", "size\nMB", "bytes a\nweight", "opened\nfirst ms", "opened\nagain ms",
        "private\nMB",
    )  # fmt: skip
    for row in report["files"]:
        first, second = (row["opening"]["engine"][which] for which in ("first", "second"))
        memory = second["private_bytes"]
        files.add_row(
            row["recipe"],
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['bytes_per_parameter']:.3f}",
            milliseconds(first["seconds"]),
            milliseconds(second["seconds"]),
            "unknown" if memory is None else f"{memory / 1e6:.0f}",
        )
    speeds = table(
        f"{settings['new_tokens']} new tokens, median of {settings['runs']} runs",
        "recipe", "source", "beams", "encode\nms", "step\nms", "all\nms", "tokens\nper s",
    )  # fmt: skip
    for row in report["generation"]:
        speeds.add_row(
            row["recipe"],
            str(row["source"]),
            str(row["num_beams"]),
            milliseconds(row["encode_seconds"]),
            milliseconds(row["step_seconds"]),
            milliseconds(row["seconds"]),
            f"{row['tokens_per_second']:.0f}",
        )
    skipped = [f"Source {row['source']} was skipped: {row['reason']}." for row in report["skipped"]]
    return Group(files, speeds, *skipped)


def table(title: str, first: str, *others: str) -> Table:
    """Return an empty table whose columns but the first hold numbers."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column(first, no_wrap=True)
    for column in others:
        made.add_column(column, justify="right")
    return made


def milliseconds(seconds: float) -> str:
    """Return a duration in milliseconds as it stands in a table."""
    return f"{1000 * seconds:.1f}"
