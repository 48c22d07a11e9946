"""The conversion to a SavedModel: a version directory for TensorFlow Serving.

The weights are variables in float32 or bfloat16, the tokenizer's tables are saved with them, and
optional inputs have default values. The graph consists of core TensorFlow operators.
"""

import inspect
import pathlib

import tensorflow as tf

from bart_export import contract
from bart_export.config import GenerationConfig
from bart_export.graph import saved_model_signatures
from bart_export.graph.layers import Tensors
from bart_export.graph.parameters import BatchParameters, InferenceParameters
from bart_export.graph.tokenizer import GraphTokenizer
from bart_export.model import BartBackbone
from bart_export.quiet import native_stderr_silenced
from bart_export.text.tokenizer import BartTokenizer


class ServedModule(tf.Module):
    """The weights and the tokenizer, which are saved with the signatures."""

    def __init__(self, parameters: BatchParameters, tokenizer: GraphTokenizer, dtype: str) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.weights = {
            # Vectors are small, and layer norms need their full precision.
            name: tf.Variable(
                tf.cast(array, dtype if array.ndim > 1 else tf.float32), trainable=False, name=name
            )
            for name, array in parameters.items()
        }


def write_saved_model(
    backbone: BartBackbone,
    tokenizer: BartTokenizer,
    generation: GenerationConfig,
    encoder_sequence_length: int,
    dtype: str,
    directory: pathlib.Path,
) -> None:
    """Write a SavedModel into a new directory.

    `generation` provides the fixed settings and the defaults of a request's settings. Texts are
    truncated to `encoder_sequence_length` tokens. `dtype` is one of `export.options.DTYPES`.
    """
    parameters = InferenceParameters(backbone.config, backbone.named_weights().__getitem__)
    module = ServedModule(BatchParameters(parameters), GraphTokenizer(tokenizer), dtype)
    served = saved_model_signatures.Served(
        backbone.config, module.weights, module.tokenizer, generation, encoder_sequence_length
    )
    functions = {
        signature.name: signature_function(served, signature)
        for signature in contract.saved_model_signatures()
    }
    with native_stderr_silenced():
        tf.saved_model.save(module, str(directory), signatures=functions)


def signature_function(
    served: saved_model_signatures.Served, signature: contract.Signature
) -> tf.types.experimental.PolymorphicFunction:
    """Return a signature's tf.function.

    TensorFlow stores a Python argument's default in the SavedModel if it is a tensor; the function
    therefore gets an argument list that is built from the contract.
    """
    compute = saved_model_signatures.FUNCTIONS[signature.name]
    values = saved_model_signatures.defaults(served.generation)
    specs = {
        tensor.name: tf.TensorSpec(tensor.shape({}), tensor.dtype) for tensor in signature.inputs
    }

    sizes = contract.sizes(served.config) | {
        contract.SEQUENCES: served.generation.num_return_sequences
    }

    def call(*positional: tf.Tensor, **named: tf.Tensor) -> Tensors:
        inputs = dict(zip(specs, positional, strict=False)) | named
        computed = compute(served, inputs)
        # Clients read the fixed sizes of the contract from the metadata.
        return {
            tensor.name: tf.ensure_shape(computed[tensor.name], tensor.shape(sizes))
            for tensor in signature.outputs
        }

    kind, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, default=values.get(name, none)) for name in specs]
    )
    return tf.function(call, autograph=False, input_signature=list(specs.values()))
