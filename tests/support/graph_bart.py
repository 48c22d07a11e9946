"""The golden checkpoints as graphs, with weights in variables and searches as tf.functions."""

import dataclasses

import numpy as np
import tensorflow as tf

from bart_export import contract
from bart_export.checkpoints import resolve
from bart_export.graph import generator
from bart_export.graph.layers import Bart
from bart_export.graph.parameters import BatchParameters, InferenceParameters

# Settings that a request may give per row; all others are fixed in the graph.
PER_ROW = tuple(tensor.name for tensor in contract.GENERATION_INPUTS)


def bart_of(parameters):
    """Return a model with its weights in variables, as a SavedModel has them."""
    arrays = BatchParameters(parameters)
    return Bart(parameters.config, {name: tf.Variable(array) for name, array in arrays.items()})


class GraphBart:
    """A checkpoint's weights for graphs."""

    def __init__(self, directory):
        checkpoint = resolve.read(directory, tokenizer=False)
        parameters = InferenceParameters(checkpoint.config, checkpoint.weights.__getitem__)
        self.bart = bart_of(parameters)

    def generator(self, generation):
        """Return `generate(sources, settings)` for the fixed settings of `generation`."""

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None], tf.int32),
                {
                    tensor.name: tf.TensorSpec([None], tensor.dtype)
                    for tensor in contract.GENERATION_INPUTS
                },
            ],
        )
        def function(token_ids, lengths, per_row):
            return generator.generate(self.bart, generation, token_ids, lengths, per_row)

        def generate(sources, settings):
            generated = function(*batch(sources), per_row(settings))
            return {name: tensor.numpy() for name, tensor in generated.items()}

        generate.function = function
        return generate


def batch(sources, filler=1):
    """Return lists of source ids as ids (batch, source) and lengths (batch,)."""
    lengths = [len(source) for source in sources]
    token_ids = np.full((len(sources), max(lengths)), filler, np.int32)
    for row, source in enumerate(sources):
        token_ids[row, : len(source)] = source
    return tf.constant(token_ids), tf.constant(lengths)


def per_row(settings):
    """Return the per-row settings as tensors."""
    values = {name: [getattr(one, name) for one in settings] for name in PER_ROW}
    values["early_stopping"] = [
        one if isinstance(one, str) else str(one).lower() for one in values["early_stopping"]
    ]
    return {
        tensor.name: tf.constant(values[tensor.name], tensor.dtype)
        for tensor in contract.GENERATION_INPUTS
    }


def fixed(generation):
    """Return the settings that are fixed in a graph, and defaults for the others."""
    free = {
        field.name: field.default
        for field in dataclasses.fields(generation)
        if field.name in PER_ROW
    }
    return dataclasses.replace(generation, **free)


def hypotheses(generated, row):
    """Return a row's sequences, without padding, and their scores."""
    lengths, scores = generated["decoder_lengths"][row], generated["scores"][row]
    sequences = [
        token_ids[:length].tolist()
        for token_ids, length in zip(generated["decoder_token_ids"][row], lengths, strict=True)
    ]
    return sequences, scores.tolist()
