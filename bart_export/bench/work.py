"""What a `.tflite` file is asked while it is measured: so many tokens in, so many tokens out.

A generator over an open file goes in; seconds come out. Sources are random, settings force an exact
number of tokens, and files of one artifact do the same work. Which configurations there are, and
what becomes of the figures, is not known here.
"""

import dataclasses
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.runtime.generator import Generator

STEPS = 16  # decode steps timed one by one in each run


@dataclasses.dataclass
class Work:
    """One configuration, and what each run of it took, in seconds.

    `keys` are what a row of the report calls the configuration. `encode` is one call of the
    encoder, buffers in place; `step` one call of the decoder, the median of a run; `total` a whole
    generation, resizing of buffers and search included.
    """

    keys: Mapping[str, Any]
    generator: Generator
    encode: list[float] = dataclasses.field(default_factory=list)
    step: list[float] = dataclasses.field(default_factory=list)
    total: list[float] = dataclasses.field(default_factory=list)


def room(shapes: StaticShapes | None, positions: int) -> tuple[int, int]:
    """Return how many source tokens and new tokens a file of a model takes at most."""
    if shapes is None:
        return positions, positions - 1  # the start token has one, too
    return max(shapes.source_lengths), shapes.target_length - 1


def misfit(shapes: StaticShapes | None, source: int, num_beams: int, new_tokens: int) -> str | None:
    """Return why a file of some shapes cannot do what its model can, None if it can."""
    if shapes is None:
        return None
    sources, tokens = room(shapes, 0)
    for what, value, most in (
        ("source tokens", source, sources),
        ("beams", num_beams, max(shapes.num_beams)),
        ("new tokens", new_tokens, tokens),
    ):
        if value > most:
            return f"the static build takes {most} {what} at most"
    return None


def forced(generator: Generator, new_tokens: int, num_beams: int) -> Generator:
    """Return a generator over the same engine that makes exactly `new_tokens` tokens."""
    settings = forced_settings(generator.generation, new_tokens, num_beams)
    return Generator(
        generator.tokenizer, generator.engine, settings, generator.encoder_sequence_length
    )


def forced_settings(
    generation: GenerationConfig, new_tokens: int, num_beams: int
) -> GenerationConfig:
    """Return settings that make exactly `new_tokens` tokens.

    Of a model's own settings only the token ids are kept, so that files of different models do the
    same work.
    """
    ids = {
        name: value
        for name, value in generation.to_dict().items()
        if name.endswith("_token_id") and not name.startswith("forced_")
    }
    length = new_tokens + 1
    return GenerationConfig(max_length=length, min_length=length, num_beams=num_beams, **ids)


def measure(work: Work, *, counts: bool) -> None:
    """Run a configuration once, and note what it took if the run counts."""
    generator, engine = work.generator, work.generator.engine
    num_beams, new_tokens = work.keys["num_beams"], work.keys["new_tokens"]
    source = random_source(engine.config.vocabulary_size, work.keys["source"])
    began = time.perf_counter()
    generator.generate_ids(source)
    total = time.perf_counter() - began
    began = time.perf_counter()
    state = engine.start(source, num_beams, new_tokens + 1)
    encode = time.perf_counter() - began
    rows = np.arange(num_beams, dtype=np.int32)
    tokens = np.full(num_beams, generator.generation.decoder_start_token_id, np.int32)
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


def summary(work: Work) -> dict[str, Any]:
    """Return the medians of a configuration."""
    total = statistics.median(work.total)
    return {
        **work.keys,
        "encode_seconds": statistics.median(work.encode),
        "step_seconds": statistics.median(work.step),
        "seconds": total,
        "tokens_per_second": work.keys["new_tokens"] / total,
        "runs": work.total,
    }
