"""Compare the speed of a SavedModel's `generate` with KerasHub's on the same weights.

Usage: compare_keras_hub.py CHECKPOINT_DIR [--source N] [--new-tokens N] [--runs N] [--json FILE]

CHECKPOINT_DIR is a Keras preset (random_checkpoint.py writes one). The SavedModel is exported from
it for greedy search and run by the server's TensorFlow engine. KerasHub's `generate` is its
compiled function from ids to ids, without a preprocessor, with its default settings and without
XLA. All start with the decoder's start token, never stop early, and must generate the same tokens.
Each runs once before it is timed. Runs take turns, so that other work of the machine affects all
alike. Figures are medians.

With random weights the comparison of tokens is weak, because such a model repeats its last token;
with the embedded preset, bart_export/assets/bart_mini_en, it is strong.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from measuring import command, take_turns
from rich.table import Table

from bart_export.bench.measurements import host, random_source
from bart_export.checkpoints import resolve
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.config import GenerationConfig
from bart_export.quiet import native_stderr_silenced
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call

with native_stderr_silenced():
    import keras_hub
    from peers import keras_hub_model

    from bart_export.convert import saved_model
    from bart_export.model import BartBackbone
    from bart_export.server.tensorflow_engine import open_saved_model

# Returns all decoder token ids, including the start token.
Generate = Callable[[], list[int]]

OURS = "SavedModel"
PEERS = {"KerasHub": {}, "KerasHub without XLA": {"jit_compile": False}}


def ours(checkpoint: Checkpoint, source: list[int], new_tokens: int, directory: Path) -> Generate:
    """Export a SavedModel to a directory, and return a function that generates with it."""
    tokenizer = checkpoint.tokenizer()
    # KerasHub forbids no token, but a search of a fixed length forbids the end token: choose one
    # that the model does not use.
    settings = GenerationConfig(
        max_length=new_tokens + 1,
        min_length=new_tokens + 1,
        decoder_start_token_id=keras_hub_model.START,
        eos_token_id=tokenizer.pad_token_id,
    )
    saved_model.write_saved_model(
        BartBackbone.from_checkpoint(checkpoint),
        tokenizer,
        settings,
        checkpoint.encoder_sequence_length,
        "float32",
        directory,
    )
    servable = open_saved_model(directory, ServeOptions())
    call = Call(
        signature="generate",
        inputs={
            "encoder_token_ids": np.array([source], np.int32),
            "encoder_lengths": np.array([len(source)], np.int32),
        },
        outputs=("decoder_lengths", "decoder_token_ids", "scores"),
    )

    def generate() -> list[int]:
        ids: list[int] = servable.submit(call).result()["decoder_token_ids"][0, 0].tolist()
        return ids

    return generate


def peer(checkpoint: Checkpoint, source: list[int], new_tokens: int, **settings: Any) -> Generate:
    """Build KerasHub's model, and return a function that generates greedily with it.

    `settings` are arguments of KerasHub's `compile`.
    """
    model = keras_hub_model.build(checkpoint, **settings)
    return lambda: [keras_hub_model.START, *model.generate([source], 1, new_tokens)[0]]


def check(engines: dict[str, Generate]) -> None:
    """Exit unless all engines generate the same tokens."""
    said = {engine: generate() for engine, generate in engines.items()}
    for engine, token_ids in said.items():
        if token_ids != said[OURS]:
            sys.exit(f"{OURS} generates {said[OURS]}, but {engine} {token_ids}.")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build all engines and time them."""
    checkpoint = resolve.read(arguments.checkpoint)
    source = random_source(checkpoint.config.vocabulary_size, arguments.source)
    with tempfile.TemporaryDirectory() as directory:
        exported = ours(checkpoint, source, arguments.new_tokens, Path(directory) / "1")
    engines = {OURS: exported}
    for name, settings in PEERS.items():
        engines[name] = peer(checkpoint, source, arguments.new_tokens, **settings)
    check(engines)
    times = take_turns(engines, arguments.runs)
    medians = {engine: statistics.median(seconds) for engine, seconds in times.items()}
    return {
        "source": arguments.source,
        "new_tokens": arguments.new_tokens,
        "machine": host().to_dict(),
        "keras_hub": keras_hub.__version__,
        "seconds": medians,
        "times_faster": {name: medians[name] / medians[OURS] for name in PEERS},
        "runs": times,
    }


def table(report: dict[str, Any]) -> Table:
    """Return a table of medians and of the SavedModel's speedup over each peer."""
    shown = Table(
        title=f"Greedy, source {report['source']}, {report['new_tokens']} new tokens, batch 1"
    )
    for column in ("", "seconds", "tokens per s", "SavedModel is faster by"):
        shown.add_column(column, justify="right")
    for engine, seconds in report["seconds"].items():
        ratio = report["times_faster"].get(engine)
        shown.add_row(
            engine,
            f"{seconds:.3f}",
            f"{report['new_tokens'] / seconds:.1f}",
            f"{ratio:.2f} ×" if ratio else "",
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--source", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=9)
    command(parser, compare, table)


if __name__ == "__main__":
    main()
