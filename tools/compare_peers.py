"""Compare the speed of this package's runtime with its peers on the same weights.

Usage: compare_peers.py PRESET [ARTIFACT] [--peer NAME]… [--num-texts N]… [--source N]…
                        [--num-beams N]… [--new-tokens N] [--threads N] [--runs N] [--json FILE]

PRESET is a preset of bart-export (random_checkpoint.py writes one), ARTIFACT its export with the
recipe dynamic_wi8_afp32; by default it is exported first. Every peer is built from the same arrays
with the same number of threads, and configured as its documentation advises (see peers/). Peers
that are not installed (`pip install '.[peers]'`) are reported and skipped. First the logits of each
peer are compared with those of the float32 Keras model for one sequence. The column "agrees" has
their distance; the comparison fails if it is too large.

Runs are timed from source ids to generated ids, with a forced number of tokens. Several texts
(`--num-texts 8`; default: 1) have the same length and are one call. CTranslate2, KerasHub and
transformers have their own search; ONNX Runtime and OpenVINO have none for an encoder-decoder and
use this package's host search. Runs take turns, so that other work on the machine affects all
alike; figures are medians.
"""

import argparse
import functools
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from measuring import command, take_turns
from peers import PEERS, Model, version
from peers.stepped import forced, teacher_force
from rich.console import Group
from rich.table import Table

from bart_export.bench.measurements import host, random_source, random_sources
from bart_export.checkpoints import resolve
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError
from bart_export.progress import plural
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes import table as recipes
from bart_export.runtime.engine import available_cores
from bart_export.runtime.generator import Generator
from bart_export.runtime.sizing import FloatArray

RECIPE = recipes.DEFAULT
OURS = f"LiteRT {RECIPE}"
TOLERANCE = 0.1  # for our own logits, as for an int8 peer
# Source and decoder tokens of the check; caches grow past 16 positions.
CHECKED_SOURCE, CHECKED_TARGET = 48, 20


def reference_logits(
    checkpoint: Checkpoint, source: Sequence[int], target: Sequence[int]
) -> FloatArray:
    """Return the Keras model's logits after each decoder token, (target, vocabulary)."""
    with native_stderr_silenced():
        from bart_export.model import BartBackbone

        backbone = BartBackbone.from_checkpoint(checkpoint)
        ids = {"encoder": np.array([source], np.int32), "decoder": np.array([target], np.int32)}
        outputs = backbone(
            {f"{side}_token_ids": array for side, array in ids.items()}
            | {f"{side}_padding_mask": np.ones_like(array) for side, array in ids.items()}
        )
        return np.asarray(backbone.logits(outputs["decoder_sequence_output"]))[0]


def distance(logits: FloatArray, reference: FloatArray) -> float:
    """Return the RMS error of logits relative to the spread of the reference.

    The mean of a row is ignored, as in softmax.
    """
    spread = reference - reference.mean(axis=-1, keepdims=True)
    error = logits - logits.mean(axis=-1, keepdims=True) - spread
    return float(np.sqrt(np.mean(np.square(error)) / np.mean(np.square(spread))))


class Ours:
    """This package's `Generator`, without the artifact's settings. See `peers.Model`."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        generator.generation = GenerationConfig()

    def generate(
        self, sources: Sequence[Sequence[int]], num_beams: int, new_tokens: int
    ) -> list[list[int]]:
        """Return each source's best sequence of exactly `new_tokens` tokens."""
        settings = forced(num_beams, new_tokens)
        results = self.generator.generate_ids(sources, **settings)
        return [list(result.token_ids[1:]) for result in results]

    def logits(self, source: Sequence[int], target: Sequence[int]) -> FloatArray:
        """Return the logits after each decoder token, (target, vocabulary)."""
        engine = self.generator.engine
        return teacher_force(engine, engine.start(source, 2, len(target)), target)


def ours(preset: str, artifact: Path | None, directory: Path, num_threads: int) -> Ours:
    """Open this package's file, after exporting it to the directory if there is no artifact."""
    if artifact is None:
        with native_stderr_silenced():
            from bart_export.export.options import TfliteOptions
            from bart_export.export.pipeline import export

            artifact = directory / "artifact"
            export(preset, TfliteOptions((recipes.RECIPES[RECIPE],)), artifact)
    generator = Generator.from_artifact(artifact, recipe=RECIPE, num_threads=num_threads)
    return Ours(generator)


def built(
    arguments: argparse.Namespace, checkpoint: Checkpoint, directory: Path
) -> tuple[dict[str, Model], list[dict[str, Any]]]:
    """Build and check our model and the peers'.

    Returns:
        The models, and a row for each engine: `engine`, and either `version`, `build_seconds` and
        `agrees`, or `skipped` with the reason.
    """
    size, positions = checkpoint.config.vocabulary_size, checkpoint.config.max_sequence_length
    source = random_source(size, min(CHECKED_SOURCE, positions))
    start = GenerationConfig().decoder_start_token_id
    target = [start, *random_source(size, min(CHECKED_TARGET, positions) - 1)]
    reference = reference_logits(checkpoint, source, target)
    gc.collect()
    models: dict[str, Model] = {}
    rows = []
    for name in (OURS, *(arguments.peer or usual())):
        began = time.perf_counter()
        try:
            if name == OURS:
                models[name] = ours(
                    arguments.preset, arguments.artifact, directory, arguments.threads
                )
                tolerance, package = TOLERANCE, "ai-edge-litert"
            else:
                models[name] = built_peer(name, checkpoint, directory, arguments.threads)
                tolerance, package = PEERS[name].tolerance, PEERS[name].packages[0]
        except ConfigurationError as error:
            rows.append({"engine": name, "skipped": str(error)})
            continue
        seconds = time.perf_counter() - began
        agrees = distance(models[name].logits(source, target), reference)
        if not agrees <= tolerance:
            sys.exit(
                f"{name} computes something else: its logits must be within {tolerance} of the "
                f"float32 model's, received {agrees:.4f}."
            )
        rows.append(
            {
                "engine": name,
                "version": version(package),
                "build_seconds": seconds,
                "agrees": agrees,
            }
        )
        gc.collect()
    return models, rows


def usual() -> list[str]:
    """Return the peers that are measured by default."""
    return [name for name, peer in PEERS.items() if peer.usual]


def built_peer(name: str, checkpoint: Checkpoint, directory: Path, num_threads: int) -> Model:
    """Build a peer in a separate directory.

    Raises:
        ConfigurationError: if a package is not installed, or the peer lacks the architecture.
    """
    peer = PEERS[name]
    if missing := peer.missing():
        raise ConfigurationError(f"{name} needs {', '.join(missing)}, which is not installed.")
    place = directory / name
    place.mkdir()
    return peer.build(checkpoint, place, num_threads)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build, check and time everything."""
    limit_tensorflow(arguments.threads)
    checkpoint = resolve.read(resolve.find(arguments.preset).directory)
    size, new_tokens = checkpoint.config.vocabulary_size, arguments.new_tokens
    with tempfile.TemporaryDirectory() as directory:
        models, rows = built(arguments, checkpoint, Path(directory))
        works = {
            (name, texts, source, beams): functools.partial(
                model.generate, random_sources(size, source, texts), beams, new_tokens
            )
            for texts in arguments.num_texts or (1,)
            for source in arguments.source or (64, 512)
            for beams in arguments.num_beams or (1, 4)
            for name, model in models.items()
        }
        seconds = take_turns(works, arguments.runs)
    return {
        "machine": host().to_dict(),
        "environment": {name: value for name, value in os.environ.items() if name[:4] == "CT2_"},
        "settings": {
            "new_tokens": new_tokens,
            "num_threads": arguments.threads,
            "runs": arguments.runs,
        },
        "engines": rows,
        "timings": [
            {
                "engine": name,
                "num_texts": texts,
                "source": source,
                "num_beams": beams,
                "seconds": statistics.median(taken),
                "tokens_per_second": texts * new_tokens / statistics.median(taken),
                "times_ours": statistics.median(taken)
                / statistics.median(seconds[OURS, texts, source, beams]),
                "runs": taken,
            }
            for (name, texts, source, beams), taken in seconds.items()
        ],
    }


def limit_tensorflow(num_threads: int) -> None:
    """Limit TensorFlow, which KerasHub runs on, to this number of threads."""
    with native_stderr_silenced():
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")  # it warns about every new source length
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(num_threads)


def tables(report: dict[str, Any]) -> Group:
    """Return a table for each number of texts, and the skipped engines."""
    counts = dict.fromkeys(row["num_texts"] for row in report["timings"])
    skipped = (row["skipped"] for row in report["engines"] if "skipped" in row)
    return Group(*(table(report, texts) for texts in counts), *skipped)


def table(report: dict[str, Any], texts: int) -> Table:
    """Return a table of medians and their ratios to ours."""
    about, settings = report["machine"], report["settings"]
    timings = {
        (row["source"], row["num_beams"], row["engine"]): row
        for row in report["timings"]
        if row["num_texts"] == texts
    }
    works = list(dict.fromkeys((source, beams) for source, beams, _ in timings))
    shown = Table(
        title=f"{plural(texts, 'text')}, {settings['new_tokens']} new tokens, "
        f"{settings['num_threads']} threads, median of {settings['runs']} runs on "
        f"{about['processor']}: seconds, tokens per second, and times ours",
        caption="agrees: distance of the logits from the float32 model's",
    )
    shown.add_column("", no_wrap=True)
    shown.add_column("agrees", justify="right")
    for source, beams in works:
        searched = "greedy" if beams == 1 else f"{beams} beams"
        shown.add_column(f"source {source}\n{searched}", justify="right")
    for row in report["engines"]:
        name = row["engine"]
        if "skipped" in row:
            continue
        cells = [timings[source, beams, name] for source, beams in works]
        shown.add_row(
            f"{name}\n{row['version']}",
            f"{row['agrees']:.1e}",
            *map(timing_cell, cells),
        )
    return shown


def timing_cell(row: dict[str, Any]) -> str:
    """Return the text of a cell."""
    per_second = f"{row['tokens_per_second']:.0f}/s"
    return f"{row['seconds']:.3f}\n{per_second}\n{row['times_ours']:.2f} ×"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("artifact", type=Path, nargs="?")
    parser.add_argument("--peer", action="append", choices=PEERS, metavar="NAME")
    parser.add_argument("--num-texts", type=int, action="append")
    parser.add_argument("--source", type=int, action="append")
    parser.add_argument("--num-beams", type=int, action="append")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--runs", type=int, default=15)
    command(parser, compare, tables)


if __name__ == "__main__":
    main()
