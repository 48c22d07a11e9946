"""SavedModels with a signature for each dtype and each unusual shape."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

DTYPES = (tf.float32, tf.float64, tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16,
          tf.uint32, tf.uint64, tf.bool, tf.half, tf.bfloat16, tf.string)  # fmt: skip


def of(shape, dtype, name="x"):
    return tf.TensorSpec(shape, dtype, name=name)


def identity(dtype, shape):
    """Return a function that returns its tensor."""

    @tf.function(input_signature=[of(shape, dtype)])
    def same(x):
        return {"y": tf.identity(x)}

    return same


@tf.function(input_signature=[of([None], tf.string)])
def raw(x):
    return {"raw_bytes": tf.identity(x)}


@tf.function(input_signature=[of([None], tf.string)])
def both(x):
    return {"text": tf.identity(x), "text_bytes": tf.identity(x)}


@tf.function(input_signature=[of([None], tf.int32)])
def to_half(x):
    return {"y": tf.cast(x, tf.half)}


@tf.function(input_signature=[of([None], tf.float32)])
def uneven(x):
    return {"once": tf.identity(x), "twice": tf.concat([x, x], 0)}


@tf.function(input_signature=[of([None], tf.float32)])
def none(x):
    return {"y": x[:0]}


@tf.function(input_signature=[of([None], tf.float32)])
def total(x):
    return {"y": tf.reduce_sum(x)}


@tf.function(input_signature=[of([None], tf.float32), of([None], tf.float32, "z")])
def two(x, z):
    return {"product": x * z, "sum": x + z}


@tf.function(input_signature=[])
def constant():
    return {"y": tf.constant([1.0])}


@tf.function(input_signature=[of([None], tf.int32)])
def pick(x):
    return {"y": tf.gather(tf.constant([10, 20, 30]), x)}


@tf.function(input_signature=[of([None], tf.float32)])
def slow(x):
    """Take about as many seconds as a loop of 1e10 turns."""
    return {
        "y": tf.while_loop(lambda turn: turn < 1e10, lambda turn: [turn + 1.0], [x[0]])[0][None]
    }


@tf.function(input_signature=[of([None], tf.string, "text")])
def upper(text):
    return {"generated_text": tf.strings.upper(text, "utf-8")}


ODD = {
    "raw": raw,
    "both": both,
    "to_half": to_half,
    "uneven": uneven,
    "none": none,
    "total": total,
    "two": two,
    "constant": constant,
    "pick": pick,
    "slow": slow,
    "matrix": identity(tf.float32, [None, None]),
    "scalar": identity(tf.float32, []),
}


def write_typed(directory):
    """Write a model with a signature named after each dtype, and those of ODD."""
    module = tf.Module()
    module.signatures_of_types = {dtype.name: identity(dtype, [None]) for dtype in DTYPES}
    signatures = {**module.signatures_of_types, **ODD}
    tf.saved_model.save(module, str(directory), signatures=signatures)


def write_text(directory):
    """Write a model that maps text to text, like an exported one."""
    tf.saved_model.save(tf.Module(), str(directory), signatures={"serving_default": upper})
