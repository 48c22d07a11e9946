"""The conversion for an Edge TPU: segments of a model's encoder, and the host's file.

Each segment is one or two 1x1 convolutions over (1, 1, rows, width), for a `FULLY_CONNECTED` gives
the Edge TPU one row alone. They are calibrated on the encoder's own activations over real texts.
int8 has one scale for a whole tensor; a segment therefore puts out (y - centre) / reach, with a
centre and a reach for each channel that the host undoes: on the embedded preset that lowers the
encoder's error from 6.4 % of its spread to 2.4 %, and lets queries, keys and values be one output.

GELU, which the compiler does not know, is x * sigmoid(1.702 x), off by at most 0.0204 (at -2.27);
that alone is 1.6 % of the embedded preset's encoder output. The factor is folded into the weights
before and after, so that x * sigmoid(x) remains.
"""

import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from bart_export.checkpoints.names import layer_names
from bart_export.config import BartConfig
from bart_export.convert import tflite
from bart_export.convert.quantize import quantize
from bart_export.edgetpu import parts
from bart_export.graph import steps
from bart_export.graph.layers import ACTIVATIONS, layer_norm, linear
from bart_export.graph.parameters import FloatArray, InferenceParameters
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.table import Recipe

SELF_ATTENTION = ("query", "key", "value")
# Kind of a segment -> the projections whose outputs it puts out side by side.
PROJECTIONS = {
    parts.ATTENTION_INPUT: tuple(f"self_attention_layer/{part}" for part in SELF_ATTENTION),
    parts.ATTENTION_OUTPUT: ("self_attention_layer/attention_output",),
    parts.FEEDFORWARD: ("feedforward_output_dense",),
}
WIDE = "feedforward_intermediate_dense"  # before the activation of a feed-forward segment
# Kind of a segment -> the norm of what it adds to.
NORMS = {
    parts.ATTENTION_OUTPUT: "self_attention_layer_norm",
    parts.FEEDFORWARD: "feedforward_layer_norm",
}
# Activations that are x * sigmoid(factor * x), or near to it.
SIGMOID_FACTORS = {"gelu": 1.702, "gelu_new": 1.702, "silu": 1.0}
NORM_PARTS = ("gamma", "beta")
LEAST_REACH = 1e-6  # of a channel that never changes

Vectors = dict[str, FloatArray]


def activation_error(activation: str) -> float:
    """Return by how much a segment's activation differs from the model's, at most."""
    if activation not in SIGMOID_FACTORS:
        return 0.0
    x = tf.linspace(-8.0, 8.0, 16_001)  # both are x or 0 beyond
    computed = x * tf.sigmoid(SIGMOID_FACTORS[activation] * x)
    return float(tf.reduce_max(tf.abs(computed - ACTIVATIONS[activation](x))))


def write_host(parameters: InferenceParameters, recipe: Recipe, path: pathlib.Path) -> None:
    """Write the file for the CPU: every signature of `parts.host_signatures`, quantized."""
    config = parameters.config
    wanted = tflite.dynamic_buckets(parts.host_signatures(config))
    tflite.write_signatures(parameters, wanted, path)
    path.write_bytes(quantize(path, recipe, layer_names(config)))


def write_segments(
    parameters: InferenceParameters,
    sources: Sequence[Sequence[int]],
    rows: int,
    directory: pathlib.Path,
) -> None:
    """Write every segment's file and `parts.CONSTANTS`, layer by layer.

    Args:
        parameters: the model's weights.
        sources: token ids of the texts to calibrate with; each token is a row of activations.
        rows: how many positions a segment takes at once.
        directory: the artifact's; its `edgetpu/` is there.
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
            centre, reach = channels(written)
            compute = segment_function(config, weights, kind, centre, reach)
            (directory / segment.file).write_bytes(convert_segment(compute, read, rows))
            constants |= {f"{segment.name}/centre": centre, f"{segment.name}/reach": reach}
        for kind, norm in NORMS.items():
            name = parts.Segment(layer, kind).name
            constants |= {f"{name}/{part}": weights[f"{norm}/{part}"] for part in NORM_PARTS}
    np.savez(directory / parts.CONSTANTS, **constants)  # type: ignore[arg-type]


def layer_weights(parameters: InferenceParameters, layer: int) -> Vectors:
    """Return the weights of one encoder layer, by their names within it."""
    prefix = f"transformer_encoder_layer_{layer}/"
    return {
        name.removeprefix(prefix): parameters[name]
        for name in parameters
        if name.startswith(prefix)
    }


def embed_source(parameters: InferenceParameters, ids: Sequence[int]) -> FloatArray:
    """Return the hidden states of a source before the first layer, (length, hidden)."""
    given = {"encoder_token_ids": tf.constant([ids], tf.int32)}
    hidden: FloatArray = steps.embed_source(parameters.config, parameters, given)["hidden"].numpy()
    return hidden


def run_layer(
    config: BartConfig, weights: Mapping[str, FloatArray], x: FloatArray
) -> tuple[dict[str, tuple[FloatArray, FloatArray]], FloatArray]:
    """Run an encoder layer over hidden states (length, hidden), in float32.

    Returns what each kind of segment reads and what it is to write, and the hidden states after
    the layer.
    """
    projected = [linear(weights, name, x).numpy() for name in PROJECTIONS[parts.ATTENTION_INPUT]]
    given = dict(zip(SELF_ATTENTION, projected, strict=True))
    context = steps.attention(config, {}, given)["mixed"]
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


def channels(outputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return each channel's middle, and how far from it rows (rows, width) go."""
    least, most = outputs.min(axis=0), outputs.max(axis=0)
    reach = np.maximum((most - least) / 2, LEAST_REACH)
    return ((least + most) / 2).astype(np.float32), reach.astype(np.float32)


def segment_function(
    config: BartConfig,
    weights: Mapping[str, FloatArray],
    kind: str,
    centre: FloatArray,
    reach: FloatArray,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return what a segment computes, (1, 1, rows, width) to (1, 1, rows, width of `centre`)."""
    kernel = side_by_side(weights, kind, "kernel") / reach[:, None]
    bias = (side_by_side(weights, kind, "bias") - centre) / reach
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


def side_by_side(weights: Mapping[str, FloatArray], kind: str, part: str) -> FloatArray:
    """Return the kernels or the biases of a segment's last projections as one."""
    return np.concatenate([weights[f"{name}/{part}"] for name in PROJECTIONS[kind]])


def convolve(x: tf.Tensor, kernel: FloatArray, bias: FloatArray) -> tf.Tensor:
    """Apply a projection to every row of (1, 1, rows, inputs) as a 1x1 convolution."""
    filters = tf.constant(np.ascontiguousarray(kernel.T)[None, None], tf.float32)
    return tf.nn.bias_add(tf.nn.conv2d(x, filters, 1, "VALID"), tf.constant(bias, tf.float32))


def convert_segment(
    compute: Callable[[tf.Tensor], tf.Tensor], read: FloatArray, rows: int
) -> bytes:
    """Return a segment as a `.tflite` of int8 alone, calibrated on what it reads, (any, width)."""
    width = read.shape[1]
    pieces = -(-len(read) // rows)
    # The last piece begins again from the first row: zeros are no activation of any text.
    samples = np.resize(read, (pieces, 1, 1, rows, width))
    module = tf.Module()
    module.compute = tf.function(
        compute,
        autograph=False,
        input_signature=[tf.TensorSpec([1, 1, rows, width], tf.float32)],
    )
    with native_stderr_silenced(), warnings.catch_warnings():
        # It misses statistics of int8 inputs, which calibration gives it.
        warnings.simplefilter("ignore", UserWarning)
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [module.compute.get_concrete_function()], module
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        return bytes(converter.convert())
