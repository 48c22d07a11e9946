"""The conversion for an Edge TPU: segments of the encoder, and a file for the host.

A segment is one or two 1x1 convolutions over (1, 1, rows, width), because the Edge TPU computes
only one row of a `FULLY_CONNECTED`. It is calibrated on the encoder's activations for real texts.
An int8 tensor has only one scale, so a segment computes (y - centre) / reach, with a centre and a
reach per channel, which the host undoes. For the embedded preset this reduces the encoder's
relative error from 6.4 % to 2.4 %, and it allows queries, keys and values to share one output.

The compiler does not support GELU, so it is replaced with x * sigmoid(1.702 x). This is off by at
most 0.0204 (at -2.27), and causes 1.6 % of the relative error. The factor is folded into the
weights before and after, which leaves x * sigmoid(x).
"""

import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from bart_export.checkpoints.weight_names import layer_names
from bart_export.config import BartConfig
from bart_export.contract import dynamic_buckets
from bart_export.convert import tflite
from bart_export.convert.quantize import quantize
from bart_export.edgetpu import parts
from bart_export.graph import tflite_signatures
from bart_export.graph.layers import ACTIVATIONS, layer_norm, linear
from bart_export.graph.parameters import FloatArray, InferenceParameters
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import Recipe

SELF_ATTENTION = ("query", "key", "value")
# Kind of a segment -> the projections whose outputs it concatenates.
PROJECTIONS = {
    parts.ATTENTION_INPUT: tuple(f"self_attention_layer/{part}" for part in SELF_ATTENTION),
    parts.ATTENTION_OUTPUT: ("self_attention_layer/attention_output",),
    parts.FEEDFORWARD: ("feedforward_output_dense",),
}
WIDE = "feedforward_intermediate_dense"  # the first projection of a feed-forward segment
# Kind of a segment -> the layer norm after its residual connection.
NORMS = {
    parts.ATTENTION_OUTPUT: "self_attention_layer_norm",
    parts.FEEDFORWARD: "feedforward_layer_norm",
}
# Activations that are, or are approximated by, x * sigmoid(factor * x).
SIGMOID_FACTORS = {"gelu": 1.702, "gelu_new": 1.702, "silu": 1.0}
NORM_PARTS = ("gamma", "beta")
LEAST_REACH = 1e-6  # for constant channels

Vectors = dict[str, FloatArray]


def activation_error(activation: str) -> float:
    """Return the largest difference between a segment's activation and the model's."""
    if activation not in SIGMOID_FACTORS:
        return 0.0
    x = tf.linspace(-8.0, 8.0, 16_001)  # outside this range, both are x or 0
    computed = x * tf.sigmoid(SIGMOID_FACTORS[activation] * x)
    return float(tf.reduce_max(tf.abs(computed - ACTIVATIONS[activation](x))))


def write_host(parameters: InferenceParameters, recipe: Recipe, path: pathlib.Path) -> None:
    """Write the file for the CPU: every signature of `parts.host_signatures`, quantized."""
    config = parameters.config
    buckets = dynamic_buckets(parts.host_signatures(config))
    tflite.write_signatures(parameters, buckets, path)
    path.write_bytes(quantize(path, recipe, layer_names(config)))


def write_segments(
    parameters: InferenceParameters,
    sources: Sequence[Sequence[int]],
    rows: int,
    directory: pathlib.Path,
) -> None:
    """Write every segment's file and `parts.CONSTANTS` into an artifact's directory.

    `sources` are token ids of texts to calibrate with; each token is a row of activations. `rows`
    is the number of positions that a segment processes per run.
    """
    config = parameters.config
    constants: Vectors = {}
    hidden = [embed_source(parameters, ids) for ids in sources]
    for layer in range(config.num_layers):
        weights = layer_weights(parameters, layer)
        runs = [run_layer(config, weights, x) for x in hidden]
        hidden = [after for _, after in runs]
        for kind in parts.KINDS:
            segment = parts.Segment(layer, kind)
            pairs = [activations[kind] for activations, _ in runs]
            read, written = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
            centre, reach = channel_ranges(written)
            compute = segment_function(config, weights, kind, centre, reach)
            (directory / segment.file).write_bytes(convert_segment(compute, read, rows))
            constants |= {f"{segment.name}/centre": centre, f"{segment.name}/reach": reach}
        for kind, norm in NORMS.items():
            name = parts.Segment(layer, kind).name
            constants |= {f"{name}/{part}": weights[f"{norm}/{part}"] for part in NORM_PARTS}
    np.savez(directory / parts.CONSTANTS, **constants)  # type: ignore[arg-type]


def layer_weights(parameters: InferenceParameters, layer: int) -> Vectors:
    """Return an encoder layer's weights, without the layer's prefix in their names."""
    prefix = f"transformer_encoder_layer_{layer}/"
    return {
        name.removeprefix(prefix): parameters[name]
        for name in parameters
        if name.startswith(prefix)
    }


def embed_source(parameters: InferenceParameters, ids: Sequence[int]) -> FloatArray:
    """Return the input of the first layer for a source, (length, hidden)."""
    inputs = {"encoder_token_ids": tf.constant([ids], tf.int32)}
    embedded = tflite_signatures.embed_source(parameters.config, parameters, inputs)
    hidden: FloatArray = embedded["hidden"].numpy()
    return hidden


def run_layer(
    config: BartConfig, weights: Mapping[str, FloatArray], x: FloatArray
) -> tuple[dict[str, tuple[FloatArray, FloatArray]], FloatArray]:
    """Run an encoder layer on hidden states (length, hidden), in float32.

    Returns each kind of segment's input and expected output, and the layer's hidden states.
    """
    projected = [linear(weights, name, x).numpy() for name in PROJECTIONS[parts.ATTENTION_INPUT]]
    inputs = dict(zip(SELF_ATTENTION, projected, strict=True))
    context = tflite_signatures.mix(config, {}, inputs)["mixed"]
    update = linear(weights, "self_attention_layer/attention_output", context)
    middle = layer_norm(weights, NORMS[parts.ATTENTION_OUTPUT], x + update)
    wide = ACTIVATIONS[config.activation_function](linear(weights, WIDE, middle))
    narrow = linear(weights, "feedforward_output_dense", wide)
    activations = {
        parts.ATTENTION_INPUT: (x, np.concatenate(projected, axis=-1)),
        parts.ATTENTION_OUTPUT: (context.numpy(), update.numpy()),
        parts.FEEDFORWARD: (middle.numpy(), narrow.numpy()),
    }
    return activations, layer_norm(weights, NORMS[parts.FEEDFORWARD], middle + narrow).numpy()


def channel_ranges(outputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the centre and the half-width of each channel's range, for outputs (rows, width)."""
    low, high = outputs.min(axis=0), outputs.max(axis=0)
    reach = np.maximum((high - low) / 2, LEAST_REACH)
    return ((low + high) / 2).astype(np.float32), reach.astype(np.float32)


def segment_function(
    config: BartConfig,
    weights: Mapping[str, FloatArray],
    kind: str,
    centre: FloatArray,
    reach: FloatArray,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a segment's function, (1, 1, rows, inputs) to (1, 1, rows, outputs)."""
    kernel = concatenate(weights, kind, "kernel") / reach[:, None]
    bias = (concatenate(weights, kind, "bias") - centre) / reach
    if kind != parts.FEEDFORWARD:
        return lambda x: convolve(x, kernel, bias)
    first = weights[f"{WIDE}/kernel"], weights[f"{WIDE}/bias"]
    activation = config.activation_function
    factor = SIGMOID_FACTORS.get(activation)
    if factor is None:
        return lambda x: convolve(ACTIVATIONS[activation](convolve(x, *first)), kernel, bias)
    # x sigmoid(f x) = (f x) sigmoid(f x) / f
    wide, narrow = (first[0] * factor, first[1] * factor), (kernel / factor, bias)
    return lambda x: convolve(ACTIVATIONS["silu"](convolve(x, *wide)), *narrow)


def concatenate(weights: Mapping[str, FloatArray], kind: str, part: str) -> FloatArray:
    """Concatenate the kernels or the biases of a segment's last projections."""
    return np.concatenate([weights[f"{name}/{part}"] for name in PROJECTIONS[kind]])


def convolve(x: tf.Tensor, kernel: FloatArray, bias: FloatArray) -> tf.Tensor:
    """Apply a projection to every row of (1, 1, rows, inputs) as a 1x1 convolution."""
    filters = tf.constant(np.ascontiguousarray(kernel.T)[None, None], tf.float32)
    return tf.nn.bias_add(tf.nn.conv2d(x, filters, 1, "VALID"), tf.constant(bias, tf.float32))


def convert_segment(
    compute: Callable[[tf.Tensor], tf.Tensor], read: FloatArray, rows: int
) -> bytes:
    """Convert a segment to an all-int8 `.tflite`, calibrated on its inputs, (any, width)."""
    width = read.shape[1]
    pieces = -(-len(read) // rows)
    # The last piece is padded with the first rows, because zeros would not be real activations.
    samples = np.resize(read, (pieces, 1, 1, rows, width))
    module = tf.Module()
    module.compute = tf.function(
        compute,
        autograph=False,
        input_signature=[tf.TensorSpec([1, 1, rows, width], tf.float32)],
    )
    with native_stderr_silenced(), warnings.catch_warnings():
        # The converter warns of missing statistics for int8 inputs, but calibration provides them.
        warnings.simplefilter("ignore", UserWarning)
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [module.compute.get_concrete_function()], module
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        return bytes(converter.convert())
