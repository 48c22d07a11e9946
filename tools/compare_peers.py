"""Measure this package's runtime and CTranslate2 on the same weights and the same work, in turns.

Usage: compare_peers.py PRESET ARTIFACT [--source N]… [--num-beams N]… [--new-tokens N]
                        [--num-threads N] [--runs N] [--json FILE]

PRESET is a checkpoint directory (random_checkpoint.py writes one), ARTIFACT what bart-export made
of it, with the recipes float32 and dynamic_wi8_afp32. The CTranslate2 model is built from the same
arrays, must give the very tokens of the float32 file in float32, and is then timed in int8, as its
documentation advises for a CPU. A configuration is timed from source ids in to generated ids out,
everything included, for exactly as many tokens as asked. Runs of all configurations take turns, so
that what else the machine does falls on all alike; figures are medians.

CTranslate2 reads settings from the environment, and the report repeats them. On AMD processors it
leaves AVX-512 alone unless CT2_FORCE_CPU_ISA=AVX512, which makes it a little faster: measure both.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2 import specs
from rich.console import Console
from rich.table import Table

from bart_export import checkpoints
from bart_export.checkpoints import Checkpoint
from bart_export.checkpoints.names import FINAL_LOGITS_BIAS, TOKEN_EMBEDDING
from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import BartExportError
from bart_export.runtime.generator import Generator

# Source token ids in, generated token ids out.
Generate = Callable[[Sequence[int]], list[int]]

OURS, PEER = "LiteRT dynamic_wi8_afp32", "CTranslate2 int8"
PAUSE = 0.25  # seconds between runs: threads of a pool go on spinning after their work
ACTIVATIONS = {
    "gelu": specs.common_spec.Activation.GELU,
    "gelu_new": specs.common_spec.Activation.GELUTanh,
    "relu": specs.common_spec.Activation.RELU,
    "silu": specs.common_spec.Activation.SWISH,
    "tanh": specs.common_spec.Activation.Tanh,
}


class SpecWriter:
    """Fills a CTranslate2 specification from a checkpoint's arrays.

    CTranslate2 keeps projections as (outputs, inputs), those of one input joined to one.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.weights = checkpoint.weights

    def spec(self) -> Any:
        """Return the specification of the whole model."""
        config = self.config
        spec = specs.TransformerSpec.from_config(
            (config.num_layers, config.decoder_layers),
            config.num_heads,
            pre_norm=False,
            activation=ACTIVATIONS[config.activation_function],
            layernorm_embedding=True,
        )
        spec.decoder.num_heads = np.int16(config.decoder_heads)
        self.stack(spec.encoder, spec.encoder.embeddings[0], "encoder")
        self.stack(spec.decoder, spec.decoder.embeddings, "decoder")
        spec.decoder.projection.weight = self.array(TOKEN_EMBEDDING)
        if config.final_logits_bias:
            spec.decoder.projection.bias = self.array(FINAL_LOGITS_BIAS)
        return spec

    def stack(self, spec: Any, embeddings: Any, word: str) -> None:
        """Fill the encoder or the decoder."""
        embeddings.weight = self.array(TOKEN_EMBEDDING)
        spec.scale_embeddings = self.config.scale_embedding
        spec.position_encodings.encodings = self.array(f"{word}_position_embedding/embeddings")
        self.norm(spec.layernorm_embedding, f"{word}_embeddings_layer_norm")
        itself = "self_attention_layer" if word == "encoder" else "self_attention"
        for number, layer in enumerate(spec.layer):
            name = f"transformer_{word}_layer_{number}"
            attention = layer.self_attention
            self.joined(attention.linear[0], f"{name}/{itself}", ("query", "key", "value"))
            self.joined(attention.linear[1], f"{name}/{itself}", ("attention_output",))
            self.norm(attention.layer_norm, f"{name}/self_attention_layer_norm")
            if word == "decoder":
                for linear, parts in zip(
                    layer.attention.linear,
                    (("query",), ("key", "value"), ("attention_output",)),
                    strict=True,
                ):
                    self.joined(linear, f"{name}/cross_attention", parts)
                self.norm(layer.attention.layer_norm, f"{name}/cross_attention_layer_norm")
            self.joined(layer.ffn.linear_0, name, ("feedforward_intermediate_dense",))
            self.joined(layer.ffn.linear_1, name, ("feedforward_output_dense",))
            self.norm(layer.ffn.layer_norm, f"{name}/feedforward_layer_norm")

    def joined(self, spec: Any, scope: str, parts: Sequence[str]) -> None:
        """Fill a projection with those of `parts` one below the other."""
        biases = [self.array(f"{scope}/{part}/bias").ravel() for part in parts]
        kernels = [self.kernel(f"{scope}/{part}/kernel") for part in parts]
        spec.weight = np.ascontiguousarray(np.concatenate(kernels))
        spec.bias = np.concatenate(biases)

    def kernel(self, name: str) -> np.ndarray:
        """Return a kernel as (outputs, inputs), without the axis of heads."""
        array = self.array(name)
        return array.T if array.ndim == 2 else array.reshape(self.config.hidden_dim, -1).T

    def norm(self, spec: Any, name: str) -> None:
        """Fill a layer norm."""
        spec.gamma, spec.beta = self.array(f"{name}/gamma"), self.array(f"{name}/beta")

    def array(self, name: str) -> np.ndarray:
        """Return a weight in float32."""
        return np.asarray(self.weights[name], np.float32)


def write_ctranslate2(checkpoint: Checkpoint, directory: Path) -> None:
    """Write a CTranslate2 model of a checkpoint, in float32: it is quantized when it is loaded."""
    spec = SpecWriter(checkpoint).spec()
    tokens = sorted(checkpoint.vocabulary, key=checkpoint.vocabulary.__getitem__)
    tokens = tokens[: checkpoint.config.vocabulary_size]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<unk>"
    spec.config.decoder_start_token = "</s>"
    spec.validate()
    spec.optimize()
    directory.mkdir(parents=True, exist_ok=True)
    spec.save(str(directory))


class Peer:
    """A CTranslate2 model; token ids go by their names there."""

    def __init__(
        self, directory: Path, checkpoint: Checkpoint, compute_type: str, num_threads: int
    ) -> None:
        self.ids = checkpoint.vocabulary
        self.tokens = {number: token for token, number in self.ids.items()}
        self.translator = ctranslate2.Translator(
            str(directory),
            device="cpu",
            compute_type=compute_type,
            inter_threads=1,
            intra_threads=num_threads,
        )

    def generator(self, new_tokens: int, num_beams: int) -> Generate:
        """Return a function that generates exactly `new_tokens` tokens."""

        def generate(source: Sequence[int]) -> list[int]:
            result = self.translator.translate_batch(
                [[self.tokens[token] for token in source]],
                beam_size=num_beams,
                min_decoding_length=new_tokens,
                max_decoding_length=new_tokens,
            )[0]
            return [self.ids[token] for token in result.hypotheses[0]]

        return generate


def ours(artifact: Path, recipe: str, num_threads: int) -> Callable[[int, int], Generate]:
    """Return a maker of functions that generate exactly so many tokens with so many beams."""
    generator = Generator.from_artifact(artifact, recipe=recipe, num_threads=num_threads)

    def make(new_tokens: int, num_beams: int) -> Generate:
        plain = GenerationConfig(
            max_length=new_tokens + 1, min_length=new_tokens + 1, num_beams=num_beams
        )
        forced = Generator(generator.tokenizer, generator.engine, plain, 0)
        return lambda source: list(forced.generate_ids(source).token_ids[1:])

    return make


def random_source(config: BartConfig, length: int) -> list[int]:
    """Return a source of random ordinary tokens between a start and an end token."""
    tokens = np.random.default_rng(length).integers(4, config.vocabulary_size - 300, length - 2)
    return [0, *tokens.tolist(), 2]


@dataclasses.dataclass(frozen=True)
class Timing:
    """The runs of one engine on one piece of work, in seconds."""

    engine: str
    source: int
    num_beams: int
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def take_turns(
    works: Sequence[tuple[str, int, int, Generate]], config: BartConfig, runs: int
) -> list[Timing]:
    """Time (engine, source, beams, generate) in turns, after one round that does not count."""
    timings = [Timing(engine, source, beams, []) for engine, source, beams, _ in works]
    sources = {source: random_source(config, source) for _, source, _, _ in works}
    for run in range(runs + 1):
        for timing, (_, source, _, generate) in zip(timings, works, strict=True):
            began = time.perf_counter()
            generate(sources[source])
            seconds = time.perf_counter() - began
            if run:
                timing.seconds.append(seconds)
            time.sleep(PAUSE)
    return timings


def check_peer(peer: Generate, exact: Generate, source: list[int]) -> None:
    """Fail unless the peer, in float32, says what our float32 file says."""
    expected, received = exact(source), peer(source)
    if expected != received:
        sys.exit(f"CTranslate2 computes something else: expected {expected}, received {received}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", type=Path)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--source", type=int, action="append")
    parser.add_argument("--num-beams", type=int, action="append")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        report = compare(arguments)
    except BartExportError as error:
        sys.exit(str(error))
    Console().print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build the peer, check it, and time both."""
    checkpoint = checkpoints.read(arguments.preset)
    threads = arguments.num_threads
    with tempfile.TemporaryDirectory() as directory:
        write_ctranslate2(checkpoint, Path(directory))
        check_peer(
            Peer(Path(directory), checkpoint, "float32", threads).generator(16, 1),
            ours(arguments.artifact, "float32", threads)(16, 1),
            random_source(checkpoint.config, 64),
        )
        peer = Peer(Path(directory), checkpoint, "int8", threads)
    engines = {
        OURS: ours(arguments.artifact, "dynamic_wi8_afp32", threads),
        PEER: peer.generator,
    }
    works = [
        (engine, source, beams, make(arguments.new_tokens, beams))
        for source in arguments.source or (512, 64)
        for beams in arguments.num_beams or (1, 4)
        for engine, make in engines.items()
    ]
    timings = take_turns(works, checkpoint.config, arguments.runs)
    return {
        "new_tokens": arguments.new_tokens,
        "num_threads": threads,
        "runs": arguments.runs,
        "ctranslate2": ctranslate2.__version__,
        "environment": {name: value for name, value in os.environ.items() if name[:4] == "CT2_"},
        "timings": [dataclasses.asdict(one) | {"median": one.median} for one in timings],
    }


def table(report: dict[str, Any]) -> Table:
    """Return a table of medians and of how many times faster than the peer we are."""
    columns = ("source", "beams", OURS, PEER, "times faster")
    shown = Table(title=f"{report['new_tokens']} new tokens, {report['num_threads']} threads")
    for column in columns:
        shown.add_column(column, justify="right")
    medians = {
        (one["source"], one["num_beams"], one["engine"]): one["median"] for one in report["timings"]
    }
    for source, beams in dict.fromkeys((source, beams) for source, beams, _ in medians):
        mine, theirs = medians[source, beams, OURS], medians[source, beams, PEER]
        shown.add_row(
            str(source), str(beams), f"{mine:.3f} s", f"{theirs:.3f} s", f"{theirs / mine:.2f}"
        )
    return shown


if __name__ == "__main__":
    main()
