"""Calibration: measures the range of every activation of a float `.tflite` file on real texts.

Each source is encoded and decoded as in normal use, and every step of the search is recorded.
LiteRT's `Interpreter` can preserve all tensors; it runs without delegates, because they would fuse
some of the tensors away. LiteRT Quantizer's own calibrator needs all samples in advance, but the
inputs of a step depend on earlier steps.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.convert.rounding import Content, FloatArray, read_model
from bart_export.quiet import native_stderr_silenced

IntArray = npt.NDArray[np.int32]
Arrays = dict[str, npt.NDArray[Any]]
# The smallest and the largest value of each activation, by tensor name.
Ranges = Mapping[str, tuple[float, float]]
# Decodes a source with a given number of beams and a maximum number of decoder tokens.
Search = Callable[["TracedModel", Sequence[int], int, int], None]


def calibrate(
    path: pathlib.Path,
    config: BartConfig,
    buckets: Sequence[contract.Bucket],
    sources: Sequence[Sequence[int]],
    search: Search,
    num_beams: int,
) -> tuple[Ranges, int]:
    """Run sources through every signature of a float file, dynamic or static.

    `sources` are token ids, truncated to each bucket. `num_beams` is for signatures without
    a fixed number; at least 2 beams are used, because a single beam has its own signature.

    Returns:
        The ranges of the activations, and the number of runs that they were measured on.
    """
    file = TracedFile(path)
    encoders = {
        bucket.sizes.get(contract.SOURCE): bucket
        for bucket in buckets
        if bucket.signature.name == "encode"
    }
    for bucket in buckets:
        if bucket.signature.name == "encode":
            continue
        several = bucket.signature.name == "decode"
        beams = 1 if not several else bucket.sizes.get(contract.BEAMS, max(2, num_beams))
        # A draft takes positions beyond the latest token's.
        longest = min(
            bucket.sizes.get(contract.CAPACITY, config.max_sequence_length),
            config.max_sequence_length + 1 - bucket.sizes.get(contract.DRAFT, 1),
        )
        encoder = encoders[bucket.sizes.get(contract.SOURCE)]
        model = TracedModel(file, config, encoder, bucket)
        for token_ids in sources:
            search(model, token_ids, beams, longest)
    return file.ranges, file.samples


class TracedFile:
    """An open float file that records the range of every activation."""

    def __init__(self, path: pathlib.Path) -> None:
        with native_stderr_silenced():
            self.interpreter = litert.Interpreter(
                str(path),
                num_threads=os.cpu_count(),
                experimental_op_resolver_type=(
                    litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
                ),
                experimental_preserve_all_tensors=True,
            )
        self.activations = activation_names(np.memmap(path, np.uint8, "r"))
        self.ranges: dict[str, tuple[float, float]] = {}
        self.samples = 0

    def run(self, signature: str, inputs: Arrays) -> Arrays:
        """Run a signature and return its outputs."""
        outputs: Arrays = self.interpreter.get_signature_runner(signature)(**inputs)
        self.samples += 1
        subgraph, names = self.activations[signature]
        for index, name in names.items():
            values = self.interpreter.get_tensor(index, subgraph)
            low, high = self.ranges.get(name, (np.inf, -np.inf))
            self.ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
        return outputs


def activation_names(content: Content) -> dict[str, tuple[int, dict[int, str]]]:
    """Return each signature's subgraph number, and the names of the float tensors it computes."""
    model, found = read_model(content), {}
    for definition in model.signatureDefs:
        computed = {
            index: tensor.name.decode()
            for index, tensor in enumerate(model.subgraphs[definition.subgraphIndex].tensors)
            if tensor.type == schema.TensorType.FLOAT32
            and model.buffers[tensor.buffer].data is None
        }
        found[definition.signatureKey.decode()] = definition.subgraphIndex, computed
    return found


@dataclasses.dataclass(frozen=True)
class TracedModel:
    """An encoder and a decoder of a traced file, with the `start` and `step` of an engine.

    A state consists of the position, the encoded source and the caches.
    """

    file: TracedFile
    config: BartConfig
    encoder: contract.Bucket
    decoder: contract.Bucket

    def start(
        self, token_ids: Sequence[int], num_beams: int, max_length: int
    ) -> tuple[int, Arrays, Arrays]:
        """Encode a source, padded or truncated to fit the encoder; return the first state."""
        length = self.encoder.sizes.get(contract.SOURCE, len(token_ids))
        # A truncated source keeps its last token, the end token.
        kept = [*token_ids[: length - 1], token_ids[-1]] if len(token_ids) > length else token_ids
        padding = [0] * (length - len(kept))
        mask = np.array([[*[1] * len(kept), *padding]], np.int32)
        source = {
            "encoder_token_ids": np.array([[*kept, *padding]], np.int32),
            "encoder_padding_mask": mask,
        }
        crosses = self.file.run(self.encoder.name, source)
        sources = self.decoder.sizes.get(contract.SOURCES, 1)
        encoded = {**crosses, "encoder_padding_mask": mask}
        sizes = {
            **contract.sizes(self.config),
            contract.SOURCES: 1,
            contract.BEAMS: num_beams,
            contract.ROWS: num_beams,
            contract.CAPACITY: max_length,
            **self.decoder.sizes,
        }
        caches: Arrays = {
            tensor.name: np.zeros([sizes[axis] for axis in tensor.axes], np.float32)
            for tensor in contract.cache_tensors(self.config)
        }
        # Several sources are copies of one.
        return 0, {name: array.repeat(sources, 0) for name, array in encoded.items()}, caches

    def step(
        self, state: tuple[int, Arrays, Arrays], token_ids: IntArray, beam_index: IntArray
    ) -> tuple[FloatArray, tuple[int, Arrays, Arrays]]:
        """Decode one token for every beam; a draft of several repeats the token."""
        position, source, earlier = state
        drafted = self.decoder.sizes.get(contract.DRAFT, 1)
        sources, beams = self.decoder.sizes.get(contract.SOURCES, 1), len(token_ids)
        # All sources are the same.
        caches = {name: cache[np.tile(beam_index, sources)] for name, cache in earlier.items()}
        tokens = np.tile(token_ids.repeat(drafted), (sources, 1))
        positions = np.arange(position, position + drafted, dtype=np.int32)
        fed = {
            **source,
            **caches,
            "decoder_token_ids": tokens,
            "position": np.resize(positions, tokens.size),
        }
        outputs = self.file.run(self.decoder.name, fed)
        logits: FloatArray = outputs.pop("logits")[::drafted][:beams]
        for name, entries in outputs.items():
            room = caches[name][:, :, position : position + drafted]
            room[:] = entries[:, :, : room.shape[2]]
        return logits, (position + 1, source, caches)
