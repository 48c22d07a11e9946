"""Small SavedModels of other exporters, which a server must load too."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def example(**features):
    """Return a serialized tf.Example of float features."""
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
                for name, value in features.items()
            }
        )
    ).SerializeToString()


def write_half_plus_two(directory):
    """Write an equivalent of TensorFlow Serving's test model.

    It has a predict signature, x / 2 + 2, and two that take a tf.Example.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        examples = v1.placeholder(tf.string, [None], "tf_example")
        parsed = v1.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        x = tf.identity(parsed["x"], "x")
        half = v1.get_variable("half", initializer=0.5, use_resource=True)
        two = v1.get_variable("two", initializer=2.0, use_resource=True)
        y = tf.add(half * x, two, "y")
        session.run(v1.global_variables_initializer())
        of = v1.saved_model.utils.build_tensor_info
        signature = v1.saved_model.build_signature_def
        method = v1.saved_model.signature_constants
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": signature(
                    {"x": of(x)}, {"y": of(y)}, method.PREDICT_METHOD_NAME
                ),
                "classify_x_to_y": signature(
                    {"inputs": of(examples)}, {"scores": of(y)}, method.CLASSIFY_METHOD_NAME
                ),
                "regress_x_to_y": signature(
                    {"inputs": of(examples)}, {"outputs": of(y)}, method.REGRESS_METHOD_NAME
                ),
            },
        )
        builder.save()


THREE = tf.constant([3.0])
FLOATS = tf.TensorSpec([None], tf.float32, name="x")


class Assorted(tf.Module):
    """A signature for each feature that a server must support."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = tf.saved_model.Asset(str(vocabulary))
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                self.vocabulary,
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            ),
            -1,
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def echo(self, text):
        return {"text": tf.identity(text)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def lookup(self, text):
        return {"ids": self.table.lookup(text)}

    @tf.function(input_signature=[FLOATS, tf.TensorSpec([None], tf.float32, name="factor")])
    def scale(self, x, factor=THREE):
        return {"product": x * factor, "quotient": x / factor}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="steps")])
    def count(self, steps):
        """Return the steps after a loop with as many iterations as the largest."""
        last = tf.reduce_max(steps)
        turns = tf.while_loop(lambda turn: turn < last, lambda turn: [turn + 1], [0])[0]
        return {"steps": steps + 0 * turns}

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")])
    def sums(self, x):
        rows = tf.shape(x)[0]
        return {"sum": tf.reduce_sum(x, 1), "rows": tf.fill([rows], rows), "total": tf.size(x)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="x")])
    def scalar(self, x):
        return {"y": x + 1.0}


def write_assorted(directory):
    """Write a model of many signatures, with an asset that initializes a table."""
    vocabulary = directory.parent / "vocabulary.txt"
    vocabulary.write_text("zero\none\ntwo\n")
    module = Assorted(vocabulary)
    names = ("echo", "lookup", "scale", "count", "sums", "scalar")
    signatures = {name: getattr(module, name) for name in names}
    tf.saved_model.save(module, str(directory), signatures=signatures)


def floats(*values):
    return np.array(values, np.float32)


def strings(*values):
    return np.array(values, object)
