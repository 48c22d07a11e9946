"""CTranslate2 on the same weights, in int8 or float32.

The model is built from the checkpoint's arrays with CTranslate2's own specifications, with
projections of the same input joined, and quantized when it is loaded, as its documentation advises
for a CPU. It has its own search. Token ids are passed as decimal digits. CTranslate2 reads settings
from the environment; on AMD processors it does not use AVX-512 unless CT2_FORCE_CPU_ISA=AVX512.

Several texts are translated in the fastest of several ways: its documentation advises measuring
`max_batch_size`, and one worker per thread instead of all threads for one batch. Its `batch_type`
makes no difference to texts of equal length.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2 import specs

from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.weight_names import FINAL_LOGITS_BIAS, TOKEN_EMBEDDING
from bart_export.config import GenerationConfig
from bart_export.runtime.sizing import FloatArray

ACTIVATIONS = {
    "gelu": specs.common_spec.Activation.GELU,
    "gelu_new": specs.common_spec.Activation.GELUTanh,
    "relu": specs.common_spec.Activation.RELU,
    "silu": specs.common_spec.Activation.SWISH,
    "tanh": specs.common_spec.Activation.Tanh,
}
IDS = GenerationConfig()  # the special token ids that every BART has


class SpecWriter:
    """Fills a CTranslate2 specification from a checkpoint's arrays.

    CTranslate2 stores kernels as (outputs, inputs), and fuses projections of the same input.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.weights = checkpoint.weights

    def spec(self) -> Any:
        """Return the specification of the model."""
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
        """Fill a projection with the stacked projections `parts`."""
        biases = [self.array(f"{scope}/{part}/bias").ravel() for part in parts]
        kernels = [self.kernel(f"{scope}/{part}/kernel") for part in parts]
        spec.weight = np.ascontiguousarray(np.concatenate(kernels))
        spec.bias = np.concatenate(biases)

    def kernel(self, name: str) -> np.ndarray:
        """Return a kernel as (outputs, inputs), without the axis of heads."""
        array = self.array(name)
        if name.endswith("attention_output/kernel"):
            return array.reshape(-1, self.config.hidden_dim).T
        return array.reshape(array.shape[0], -1).T

    def norm(self, spec: Any, name: str) -> None:
        """Fill a layer norm."""
        spec.gamma, spec.beta = self.array(f"{name}/gamma"), self.array(f"{name}/beta")

    def array(self, name: str) -> np.ndarray:
        """Return a weight in float32."""
        return np.asarray(self.weights[name], np.float32)


def write(checkpoint: Checkpoint, directory: Path) -> None:
    """Write a CTranslate2 model in float32, which is quantized when it is loaded."""
    spec = SpecWriter(checkpoint).spec()
    tokens = words(range(checkpoint.config.vocabulary_size))
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = words((0, 2, 3))
    spec.config.decoder_start_token = str(IDS.decoder_start_token_id)
    spec.validate()
    spec.optimize()
    spec.save(str(directory))


def words(token_ids: Sequence[int]) -> list[str]:
    """Return the model's words for token ids."""
    return [str(token_id) for token_id in token_ids]


class Translator:
    """A CTranslate2 model. See `peers.Model`.

    `translators` are keyed by number of workers; `fastest` has the best (workers, batch size).
    """

    def __init__(self, directory: Path, compute_type: str, num_threads: int) -> None:
        self.translators = {
            workers: ctranslate2.Translator(
                str(directory),
                device="cpu",
                compute_type=compute_type,
                inter_threads=workers,
                intra_threads=num_threads // workers,
            )
            for workers in (1, num_threads)
        }
        self.fastest: dict[tuple[int, int, int, int], tuple[int, int]] = {}

    def generate(
        self, sources: Sequence[Sequence[int]], num_beams: int, new_tokens: int
    ) -> list[list[int]]:
        """Return each source's best sequence of exactly `new_tokens` tokens.

        The first call with a number and length of sources tries all ways.
        """
        texts = [words(source) for source in sources]
        work = len(texts), len(texts[0]), num_beams, new_tokens
        if work not in self.fastest:
            self.fastest[work] = min(
                self.ways(len(texts)),
                key=lambda way: self.seconds(lambda: self.translate(texts, *work[2:], *way)),
            )
        return self.translate(texts, *work[2:], *self.fastest[work])

    def ways(self, texts: int) -> list[tuple[int, int]]:
        """Return the numbers of workers and batch sizes to try."""
        return [
            (workers, texts // batches)
            for workers in self.translators
            for batches in (workers, 2 * workers, 4 * workers)
            if texts >= 4 * batches or batches == 1
        ]

    @staticmethod
    def seconds(work: Callable[[], object]) -> float:
        """Return how long `work` takes."""
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def translate(
        self, texts: list[list[str]], num_beams: int, new_tokens: int, workers: int, batch: int
    ) -> list[list[int]]:
        """Translate texts with one of the translators."""
        results = self.translators[workers].translate_batch(
            texts,
            max_batch_size=batch,
            beam_size=num_beams,
            min_decoding_length=new_tokens,
            max_decoding_length=new_tokens,
        )
        return [[int(token) for token in result.hypotheses[0]] for result in results]

    def logits(self, source: Sequence[int], target: Sequence[int]) -> FloatArray:
        """Return the logits after each decoder token up to a constant, (target, vocabulary).

        Each row needs a separate call, because CTranslate2 returns the logits of chosen tokens.
        """
        rows = []
        for length in range(len(target)):
            result = self.translators[1].translate_batch(
                [words(source)],
                [words(target[1 : length + 1])],
                beam_size=1,
                min_decoding_length=0,
                max_decoding_length=length + 1,
                return_logits_vocab=True,
            )[0]
            rows.append(np.array(result.logits[0][-1], np.float32))
        return np.stack(rows)


def build(checkpoint: Checkpoint, directory: Path, num_threads: int, *, int8: bool) -> Translator:
    """Write the model to a directory and load it."""
    write(checkpoint, directory)
    return Translator(directory, "int8" if int8 else "float32", num_threads)
