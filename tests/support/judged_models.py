"""A checkpoint with its verification gate, and correct and broken files of it."""

import dataclasses
from types import MappingProxyType

import numpy as np
import tensorflow as tf

from bart_export.checkpoints import resolve
from bart_export.checkpoints.resolve import find
from bart_export.checkpoints.weight_names import layer_names
from bart_export.convert import tflite
from bart_export.convert.quantize import quantize
from bart_export.graph import layers, tflite_signatures
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.recipes.table import RECIPES
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import golden, weights
from bart_export.verify.checks import Gate
from bart_export.verify.compare import TfliteFile, compare_model
from bart_export.verify.reference import KerasReference
from bart_export.verify.tolerance import bounds_of, require_bounds
from support import tflite_files

FLOAT32 = RECIPES["float32"]
# Random weights lose more to rounding than trained ones.
INT8 = dataclasses.replace(
    RECIPES["dynamic_wi8_afp32"], tolerance=MappingProxyType({"relative": 0.5, "top1": 0.0})
)
KERNEL = "decoder/layer_0/feedforward_output/weights"
TABLE = "token_embedding/weights"
UNUSED = [700, 900]  # embedding rows that no golden text of the tiny checkpoint uses


class Judged:
    """A checkpoint, the Keras model's answers, and a gate for its files."""

    def __init__(self, preset):
        checkpoint = resolve.read(find(str(preset)).directory)
        tokenizer = checkpoint.tokenizer()
        self.preset = str(preset)
        self.info = ModelInfo(
            checkpoint.config, tokenizer, checkpoint.generation, checkpoint.encoder_sequence_length
        )
        self.parameters = InferenceParameters(
            checkpoint.config, lambda name: np.asarray(checkpoint.weights[name])
        )
        self.read = weights.checkpoint_matrices(checkpoint.config, self.parameters)
        self.keras = KerasReference(BartBackbone.from_checkpoint(checkpoint))
        self.asked = self.keras.ask(tokenizer, golden.questions(self.info))

    def float_file(self, path, shapes=None):
        """Write and return a float file."""
        tflite.write_float(self.parameters, path, shapes)
        return self.file(path, FLOAT32, shapes)

    def quantized(self, base, recipe=INT8):
        """Write and return a quantized file, next to the float file it is made from."""
        path = base.path.with_name(f"{recipe.name}_of_{base.path.name}")
        path.write_bytes(quantize(base.path, recipe, layer_names(self.info.config)))
        return self.file(path, recipe, base.shapes)

    def file(self, path, recipe, shapes=None):
        return TfliteFile.of_draft(path.name, path, recipe, self.info.config, shapes)

    def gate(self, base, texts=None):
        return Gate(self.info, base, self.read, texts)

    def changed(self, file, harm, path):
        """Return a copy of a file after `harm` changed its bytes in place."""
        content = bytearray(file.path.read_bytes())
        harm(content)
        path.write_bytes(content)
        return self.file(path, file.recipe, file.shapes)

    def check(self, content, recipe, path):
        """Compare a file of these bytes with the Keras model, within its recipe's tolerance."""
        path.write_bytes(content)
        engine = open_compiled_model(path, self.info.config, num_threads=1)
        figures, answers = compare_model(
            "it", engine, self.info.tokenizer, self.asked, exact=recipe.exact
        )
        require_bounds("it", bounds_of(recipe, figures))
        return figures, answers


def triple_the_scales(content):
    for scales in tflite_files.scale(content, KERNEL):
        scales *= 3


def triple_one_scale(content):
    for scales in tflite_files.scale(content, KERNEL):
        scales[5] *= 3


def swap_rows(content):
    table = tflite_files.weight(content, TABLE).reshape(1024, -1)  # of bytes, whatever they hold
    table[UNUSED] = table[UNUSED[::-1]]


def change_an_epsilon(content):
    replace(content, np.float32(1e-5), np.float32(1e-6))


def replace(content, old, new):
    """Replace the first occurrence of an array's bytes by those of another."""
    place = content.index(old.tobytes())
    content[place : place + old.nbytes] = new.tobytes()


def wrong_epsilon(monkeypatch):
    """Change one epsilon, where rows are small enough for it to matter."""
    right = layers.layer_norm

    def layer_norm(parameters, name, x):
        if name != "encoder_embeddings_layer_norm":
            return right(parameters, name, x)
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        scaled = (x - mean) * tf.math.rsqrt(variance + 1e-6)
        return scaled * parameters[f"{name}/gamma"] + parameters[f"{name}/beta"]

    monkeypatch.setattr(layers, "layer_norm", layer_norm)


def position_one_off(monkeypatch):
    """Decode every token as if it came one position later."""
    for name in ("decode", "decode_single", "decode_draft"):

        def wrong(config, parameters, given, right=tflite_signatures.FUNCTIONS[name]):
            return right(config, parameters, given | {"position": given["position"] + 1})

        monkeypatch.setitem(tflite_signatures.FUNCTIONS, name, wrong)
