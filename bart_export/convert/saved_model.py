"""The conversion to a SavedModel: a version directory that TensorFlow Serving loads as it is.

Weights are variables, in float32 or bfloat16, the tokenizer's tables lie beside them, and the
signatures of the contract have default values for what a client may leave out. All computing is in
the graph, in operators of TensorFlow's core.
"""

import inspect
import pathlib

import tensorflow as tf

from bart_export import contract
from bart_export.config import GenerationConfig
from bart_export.graph import signatures
from bart_export.graph.layers import Tensors
from bart_export.graph.parameters import BatchParameters, InferenceParameters
from bart_export.graph.tokenizer import GraphTokenizer
from bart_export.model import BartBackbone
from bart_export.quiet import native_stderr_silenced
from bart_export.text.tokenizer import BartTokenizer


class ServedModule(tf.Module):
    """Holds what the signatures read, so that it is saved with them."""

    def __init__(self, parameters: BatchParameters, tokenizer: GraphTokenizer, dtype: str) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.weights = {
            # Vectors are few and small, and layer norms want all of their digits.
            name: tf.Variable(
                tf.cast(array, dtype if array.ndim > 1 else tf.float32), trainable=False, name=name
            )
            for name, array in parameters.items()
        }


def write(
    backbone: BartBackbone,
    tokenizer: BartTokenizer,
    generation: GenerationConfig,
    encoder_sequence_length: int,
    dtype: str,
    directory: pathlib.Path,
) -> None:
    """Write a SavedModel into a directory that is not there yet.

    `generation` says what is fixed, and the defaults of what a request may set; texts are cut to
    `encoder_sequence_length` tokens; `dtype` is one of `export.options.DTYPES`.
    """
    parameters = InferenceParameters(backbone.config, backbone.named_weights().__getitem__)
    module = ServedModule(BatchParameters(parameters), GraphTokenizer(tokenizer), dtype)
    served = signatures.Served(
        backbone.config, module.weights, module.tokenizer, generation, encoder_sequence_length
    )
    functions = {
        signature.name: signature_function(served, signature)
        for signature in contract.saved_model_signatures()
    }
    with native_stderr_silenced():
        tf.saved_model.save(module, str(directory), signatures=functions)


def signature_function(
    served: signatures.Served, signature: contract.Signature
) -> tf.types.experimental.PolymorphicFunction:
    """Return the tf.function of one signature.

    A default that is a tensor becomes the signature's own default in the file, for which TensorFlow
    reads the arguments of a Python function: ours are made of the contract.
    """
    compute = signatures.FUNCTIONS[signature.name]
    values = signatures.defaults(served.generation)
    specs = {
        tensor.name: tf.TensorSpec(tensor.shape({}), tensor.dtype) for tensor in signature.inputs
    }

    sizes = contract.sizes(served.config) | {
        contract.SEQUENCES: served.generation.num_return_sequences
    }

    def call(*positional: tf.Tensor, **named: tf.Tensor) -> Tensors:
        given = dict(zip(specs, positional, strict=False)) | named
        computed = compute(served, given)
        # What the contract fixes is to stand in the metadata, where clients read it.
        return {
            tensor.name: tf.ensure_shape(computed[tensor.name], tensor.shape(sizes))
            for tensor in signature.outputs
        }

    kind, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, default=values.get(name, none)) for name in specs]
    )
    return tf.function(call, autograph=False, input_signature=list(specs.values()))
