"""The benchmark of an artifact on this machine: sizes, openings, memory and speed of its files.

An artifact directory goes in; figures come out, JSON-ready: rows of `.tflite` files, by recipe and
build. Generation is measured as a user meets it, from source ids in to generated ids out, forced to
a given number of tokens. All configurations take turns, so that what else the machine does falls on
all alike, and figures are medians. Nothing here knows what a figure should be.
"""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from bart_export.artifact.artifact import Artifact
from bart_export.bench import machine, opening
from bart_export.bench.opening import Order
from bart_export.bench.work import Work, forced, measure, misfit, room, summary
from bart_export.errors import ConfigurationError
from bart_export.progress import stages
from bart_export.runtime.engine import default_threads
from bart_export.runtime.engines import choose_file, open_engine
from bart_export.runtime.generator import Generator
from bart_export.text.tokenizer import BartTokenizer

# History of the report: 1 had a number of threads for all rows, and openings by file; 2 (2026-11)
# has rows by threads and builds, cold openings, and memory.
SCHEMA_VERSION = 2
SOURCES, NEW_TOKENS = (64, 512), 64  # what is measured where nobody says, as far as there is room
FIRST_TEXT = 8  # tokens of the text that an opening is followed by


def bench(
    directory: pathlib.Path,
    *,
    recipes: Sequence[str] | None = None,
    sources: Sequence[int] | None = None,
    new_tokens: int | None = None,
    num_beams: Sequence[int] = (1, 4),
    num_threads: Sequence[int] | None = None,
    runs: int = 7,
) -> dict[str, Any]:
    """Measure an artifact's `.tflite` files.

    Args:
        directory: the artifact.
        recipes: which files, all builds of each; None takes all.
        sources: lengths of source texts, in tokens; None takes those of `SOURCES`, what exceeds the
            largest that a file takes lowered to that.
        new_tokens: tokens to generate, no fewer and no more; None takes `NEW_TOKENS`, likewise.
        num_beams: numbers of beams, 1 for greedy search.
        num_threads: numbers of threads of the engine; None takes the one that a Generator takes.
        runs: how often each configuration is measured, after one run that does not count.

    Returns:
        What `head` does, `settings`, and lists of rows: `files` (sizes), `openings` (how long it
        takes from a path to an engine, a generator and a text, and what memory), `memory` (after a
        generation), `generation` (medians in seconds, all totals in `runs`) and `skipped`, what
        the model or a static build is too small for.

    Raises:
        ArtifactError: for an artifact that is damaged or lacks a recipe.
        ConfigurationError: for numbers that are not positive, or more new tokens than fit.
        EngineError: for a file that this machine's runtime cannot run rightly.
    """
    check(
        sources=SOURCES if sources is None else sources,
        new_tokens=[NEW_TOKENS if new_tokens is None else new_tokens],
        num_beams=num_beams,
        num_threads=num_threads or [1],
        runs=[runs],
    )
    artifact = Artifact.open(directory)
    usual = default_threads(artifact.manifest.parameter_count)
    threads = list(dict.fromkeys(num_threads or [usual]))
    files, names = artifact.manifest.tflite(), chosen_files(artifact, recipes)
    tokenizer = artifact.manifest.tokenizer
    for name in (tokenizer.vocabulary, tokenizer.merges, *names):
        artifact.path(name, rehash=True)  # told here of the artifact itself, not of a copy
    positions = artifact.config.max_sequence_length
    rooms = [room(files[name].shapes, positions) for name in names]
    longest, most = map(max, zip(*rooms, strict=True))
    lowered: list[dict[str, Any]] = []
    if sources is None:
        reason = f"no file takes more than {longest}"
        lowered += [{"source": one, "reason": reason} for one in SOURCES if one > longest]
        sources = list(dict.fromkeys(min(one, longest) for one in SOURCES))
    if new_tokens is None and most < NEW_TOKENS:
        lowered += [{"new_tokens": NEW_TOKENS, "reason": f"no file takes more than {most}"}]
    new_tokens = fitting_length("--new-tokens", new_tokens, min(NEW_TOKENS, most), positions - 1)
    fitting, skipped = plan(artifact, names, sources, num_beams, new_tokens)
    opened = [(name, count) for name in names if fitting[name] for count in threads]
    openings: list[dict[str, Any]] = []
    memories: list[dict[str, Any]] = []
    works: list[Work] = []
    with stages(2 * len(opened) + runs + 1) as stage:
        for name, count in opened:
            stage(f"open {name}")
            with opening.linked_copy(artifact) as copy:
                orders = orders_of(name, count, fitting[name], new_tokens)
                openings += opening_rows(artifact, copy, orders[0])
                memories += [memory_row(artifact, copy, order) for order in orders[1:]]
        for name, count in opened:
            stage(f"load {name}")
            works += works_of(artifact, name, count, fitting[name], new_tokens)
        for run in range(runs + 1):
            stage(f"generate, run {run} of {runs}" if run else "generate once to warm up")
            for work in works:
                measure(work, counts=run > 0)
    return {
        **head(artifact, SCHEMA_VERSION),
        "settings": {"new_tokens": new_tokens, "num_threads": threads, "runs": runs},
        "files": [describe_file(artifact, name) for name in names],
        "openings": openings,
        "memory": memories,
        "generation": [summary(work) for work in works],
        "skipped": lowered + skipped,
    }


def head(artifact: Artifact, schema_version: int) -> dict[str, Any]:
    """Return what every report says first: `schema_version`, `artifact` and `machine`."""
    return {
        "schema_version": schema_version,
        "artifact": {
            "preset": artifact.manifest.preset,
            "parameter_count": artifact.manifest.parameter_count,
        },
        "machine": machine.describe(),
    }


def check(**numbers: Sequence[int]) -> None:
    """Raise ConfigurationError if a number is below 1, or a list of numbers is empty."""
    for name, values in numbers.items():
        wrong = [value for value in values if value < 1]
        if wrong or not values:
            received = wrong[0] if wrong else "nothing"
            raise ConfigurationError(f"{name} must be at least 1, received {received}.")


def fitting_length(flag: str, given: int | None, usual: int, most: int) -> int:
    """Return how many tokens to measure with: what was given, or else the usual.

    Raises:
        ConfigurationError: if more were given than the model has room for.
    """
    if given is not None and given > most:
        raise ConfigurationError(f"{flag} must be at most {most} for this model, received {given}.")
    return min(usual, most) if given is None else given


def chosen_files(artifact: Artifact, recipes: Sequence[str] | None) -> list[str]:
    """Return the names of all files, or of those of the recipes asked for, in their order."""
    choose_file(artifact, None, None)  # says what to do where there is no file at all
    for recipe in recipes or ():
        choose_file(artifact, recipe, None)
    files = artifact.manifest.tflite()
    wanted = recipes or dict.fromkeys(entry.recipe for entry in files.values())
    return [name for recipe in wanted for name, entry in files.items() if entry.recipe == recipe]


Pairs = list[tuple[int, int]]  # (source tokens, beams) that a file has room for


def plan(
    artifact: Artifact,
    names: Sequence[str],
    sources: Sequence[int],
    num_beams: Sequence[int],
    new_tokens: int,
) -> tuple[dict[str, Pairs], list[dict[str, Any]]]:
    """Return what each file can be asked, and a row with the reason for what it cannot."""
    positions = artifact.config.max_sequence_length
    skipped: list[dict[str, Any]] = [
        {"source": source, "reason": f"the model has {positions} positions"}
        for source in sources
        if source > positions
    ]
    fitting: dict[str, Pairs] = {name: [] for name in names}
    for name in names:
        shapes = artifact.manifest.tflite()[name].shapes
        for source, beams in itertools.product(sources, num_beams):
            if source > positions:
                continue
            reason = misfit(shapes, source, beams, new_tokens)
            if reason is None:
                fitting[name].append((source, beams))
            else:
                row = {**identity(artifact, name), "source": source, "num_beams": beams}
                skipped.append({**row, "reason": reason})
    return fitting, skipped


def identity(artifact: Artifact, name: str) -> dict[str, Any]:
    """Return what a row calls a file: its recipe and its build."""
    entry = artifact.manifest.tflite()[name]
    return {"recipe": entry.recipe, "build": entry.build}


def describe_file(artifact: Artifact, name: str) -> dict[str, Any]:
    """Return the size of a file."""
    size = artifact.manifest.files[name].bytes
    return {
        **identity(artifact, name),
        "file": name,
        "bytes": size,
        "bytes_per_parameter": size / artifact.manifest.parameter_count,
    }


def orders_of(name: str, num_threads: int, pairs: Pairs, new_tokens: int) -> list[Order]:
    """Return what an opening is followed by, a short text, and then what memory is measured with.

    That is all the new tokens from the longest source, for each number of beams.
    """
    source, beams = min(pairs)
    longest = {beams: source for source, beams in sorted(pairs)}
    return [
        Order(name, num_threads, source, beams, min(FIRST_TEXT, new_tokens)),
        *(
            Order(name, num_threads, source, beams, new_tokens)
            for beams, source in sorted(longest.items())
        ),
    ]


def opening_rows(artifact: Artifact, copy: pathlib.Path, order: Order) -> list[dict[str, Any]]:
    """Return a row for each way of opening a file and each stage of it, None for the unknown."""
    return [
        {
            **identity(artifact, order.file),
            "num_threads": order.num_threads,
            "opening": way,
            "until": stage,
            **(stages[stage] if stages else {"seconds": None}),
        }
        for way, stages in opening.measure(copy, order).items()
        for stage in opening.STAGES
    ]


def memory_row(artifact: Artifact, copy: pathlib.Path, order: Order) -> dict[str, Any]:
    """Return a row of what a process takes that generates so much."""
    asked = {name: value for name, value in vars(order).items() if name != "file"}
    return {**identity(artifact, order.file), **asked, **opening.memory(copy, order)}


def works_of(
    artifact: Artifact, name: str, num_threads: int, pairs: Pairs, new_tokens: int
) -> list[Work]:
    """Open a file and return its configurations."""
    generator = Generator(
        BartTokenizer.from_artifact(artifact),
        open_engine(artifact, name, num_threads=num_threads),
        artifact.generation,
        artifact.manifest.encoder_sequence_length,
    )
    return [
        Work(
            {
                **identity(artifact, name),
                "num_threads": num_threads,
                "source": source,
                "num_beams": beams,
                "new_tokens": new_tokens,
            },
            forced(generator, new_tokens, beams),
        )
        for source, beams in pairs
    ]
