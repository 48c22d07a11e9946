"""The signatures of a SavedModel as TensorFlow functions.

Each maps the inputs that `contract.saved_model_signatures` declares to its outputs, batch first.
The constants of an export (weights, tokenizer, fixed settings) are in `Served`. The settings of a
request are inputs, with one value per text or one for all.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from bart_export import contract
from bart_export.config import BartConfig, GenerationConfig
from bart_export.graph import generator, sequences
from bart_export.graph.layers import Bart, Parameters, Tensors
from bart_export.graph.tokenizer import GraphTokenizer

# Empty text, or whitespace as in Python's `str.isspace`, for which a model would invent an output.
BLANK = r"[\t-\r\x1c- \x{85}\p{Z}]*"


@dataclasses.dataclass(frozen=True)
class Served:
    """The constants of an exported SavedModel.

    `generation` has the settings that are fixed at export (beams, sequences, n-grams, special
    tokens) and the defaults of the others.
    """

    config: BartConfig
    parameters: Parameters
    tokenizer: GraphTokenizer
    generation: GenerationConfig
    encoder_sequence_length: int

    def bart(self) -> Bart:
        """Return the model with float32 weights; see `sequences.cast_to_float32`."""
        return Bart(self.config, sequences.cast_to_float32(self.parameters))


def defaults(generation: GenerationConfig) -> Tensors:
    """Return the defaults of `contract.GENERATION_INPUTS`, each a tensor (1,)."""
    values = {
        tensor.name: getattr(generation, tensor.name) for tensor in contract.GENERATION_INPUTS
    }
    stopping = values["early_stopping"]
    values["early_stopping"] = stopping if isinstance(stopping, str) else str(stopping).lower()
    return {
        tensor.name: tf.constant([values[tensor.name]], tensor.dtype)
        for tensor in contract.GENERATION_INPUTS
    }


def serving_default(served: Served, inputs: Tensors) -> Tensors:
    """Generate one text for each source text, with the default settings."""
    generated = generate_text(served, {**inputs, **defaults(served.generation)})
    return {"generated_text": generated["generated_text"][:, 0]}


def generate_text(served: Served, inputs: Tensors) -> Tensors:
    """Generate texts for each source text with the request's settings; "" for a blank source."""
    generated = generate(served, {**inputs, **tokenize(served, inputs)})
    ids = generated["decoder_token_ids"]  # (batch, sequences, target)
    shape = tf.shape(ids)
    texts = served.tokenizer.decode(
        tf.reshape(ids, [shape[0] * shape[1], shape[2]]),
        tf.reshape(generated["decoder_lengths"], [-1]),
    )
    # BPE marks the start of a word with a leading space.
    texts = tf.strings.regex_replace(texts, "^ ", "", replace_global=False)
    blank = tf.strings.regex_full_match(inputs["text"], BLANK)[:, None]
    return {
        "generated_text": tf.where(blank, "", tf.reshape(texts, shape[:2])),
        "scores": tf.where(blank, 0.0, generated["scores"]),
    }


def generate(served: Served, inputs: Tensors) -> Tensors:
    """Generate token ids for each source with the request's settings."""
    batch = tf.shape(inputs["encoder_token_ids"])[:1]
    names = [tensor.name for tensor in contract.GENERATION_INPUTS]
    return generator.generate(
        served.bart(),
        served.generation,
        inputs["encoder_token_ids"],
        inputs["encoder_lengths"],
        {name: tf.broadcast_to(inputs[name], batch) for name in names},
    )


def encode(served: Served, inputs: Tensors) -> Tensors:
    """Run the encoder alone."""
    source = sequences.clear_padding(inputs["encoder_token_ids"], inputs["encoder_lengths"])
    encoded = sequences.encode(served.bart(), *source)
    return {"encoder_sequence_output": encoded}


def score(served: Served, inputs: Tensors) -> Tensors:
    """Return the log-probability of each token of the decoder sequences."""
    names = ("encoder_token_ids", "encoder_lengths", "decoder_token_ids", "decoder_lengths")
    tensors = (inputs[name] for name in names)
    return {"log_probabilities": sequences.score(served.bart(), *tensors)}


def backbone(served: Served, inputs: Tensors) -> Tensors:
    """Compute the outputs of `BartBackbone`; padding may be anywhere."""
    bart = served.bart()
    source_mask, target_mask = (
        tf.cast(inputs[f"{side}_padding_mask"] != 0, tf.int32) for side in ("encoder", "decoder")
    )
    encoded = sequences.encode(bart, inputs["encoder_token_ids"], source_mask)
    decoded = sequences.decode(bart, encoded, source_mask, inputs["decoder_token_ids"], target_mask)
    return {"encoder_sequence_output": encoded, "decoder_sequence_output": decoded}


def tokenize(served: Served, inputs: Tensors) -> Tensors:
    """Tokenize texts, truncated to the encoder's length."""
    ids, lengths = served.tokenizer.encode(inputs["text"], served.encoder_sequence_length)
    return {"encoder_token_ids": ids, "encoder_lengths": lengths}


def detokenize(served: Served, inputs: Tensors) -> Tensors:
    """Decode ids to texts."""
    return {"text": served.tokenizer.decode(inputs["decoder_token_ids"], inputs["decoder_lengths"])}


FUNCTIONS: dict[str, Callable[[Served, Tensors], Tensors]] = {
    "serving_default": serving_default,
    "generate_text": generate_text,
    "generate": generate,
    "encode": encode,
    "score": score,
    "backbone": backbone,
    "tokenize": tokenize,
    "detokenize": detokenize,
}
