"""The signatures of a SavedModel, `contract.saved_model_signatures`, as TensorFlow functions.

Each takes the tensors its signature names and returns those it promises, batch-major. What is the
same for every request (weights, tokenizer, settings fixed at export) is in `Served`; what a request
may set comes with it, a value for each text or one for all. Nothing here knows how a file is
written, and nothing how a row is decoded.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from bart_export import contract
from bart_export.config import BartConfig, GenerationConfig
from bart_export.graph import search, sequences
from bart_export.graph.layers import Parameters
from bart_export.graph.tokenizer import GraphTokenizer

Tensors = dict[str, tf.Tensor]
# A text without a word, from which a model would make one up: what Python's `str.isspace` is of.
BLANK = r"[\t-\r\x1c- \x{85}\p{Z}]*"


@dataclasses.dataclass(frozen=True)
class Served:
    """What the functions are made of.

    `generation` holds what is fixed at export (beams, sequences, n-grams, special tokens) and the
    defaults of what is not.
    """

    config: BartConfig
    parameters: Parameters
    tokenizer: GraphTokenizer
    generation: GenerationConfig
    encoder_sequence_length: int


def defaults(generation: GenerationConfig) -> Tensors:
    """Return the default of each of `contract.GENERATION_INPUTS`, a tensor of one value."""
    values = {
        tensor.name: getattr(generation, tensor.name) for tensor in contract.GENERATION_INPUTS
    }
    stopping = values["early_stopping"]
    values["early_stopping"] = stopping if isinstance(stopping, str) else str(stopping).lower()
    return {
        tensor.name: tf.constant([values[tensor.name]], tensor.dtype)
        for tensor in contract.GENERATION_INPUTS
    }


def serving_default(served: Served, given: Tensors) -> Tensors:
    """Generate the best text for each text, with the settings of the export."""
    generated = generate_text(served, {**given, **defaults(served.generation)})
    return {"generated_text": generated["generated_text"][:, 0]}


def generate_text(served: Served, given: Tensors) -> Tensors:
    """Generate texts for each text, with the settings of the request; none for a blank one."""
    generated = generate(served, {**given, **tokenize(served, given)})
    ids = generated["decoder_token_ids"]  # (batch, sequences, target)
    shape = tf.shape(ids)
    texts = served.tokenizer.decode(
        tf.reshape(ids, [shape[0] * shape[1], shape[2]]),
        tf.reshape(generated["decoder_lengths"], [-1]),
    )
    # A space at the beginning says no more than that a word begins.
    texts = tf.strings.regex_replace(texts, "^ ", "", replace_global=False)
    blank = tf.strings.regex_full_match(given["text"], BLANK)[:, None]
    return {
        "generated_text": tf.where(blank, "", tf.reshape(texts, shape[:2])),
        "scores": tf.where(blank, 0.0, generated["scores"]),
    }


def generate(served: Served, given: Tensors) -> Tensors:
    """Generate token ids for each source, with the settings of the request."""
    batch = tf.shape(given["encoder_token_ids"])[:1]
    return search.generate(
        served.config,
        served.parameters,
        served.generation,
        given["encoder_token_ids"],
        given["encoder_lengths"],
        {
            tensor.name: tf.broadcast_to(given[tensor.name], batch)
            for tensor in contract.GENERATION_INPUTS
        },
    )


def encode(served: Served, given: Tensors) -> Tensors:
    """Run the encoder alone."""
    encoded = sequences.encode(
        served.config, served.parameters, given["encoder_token_ids"], given["encoder_lengths"]
    )
    return {"encoder_sequence_output": encoded}


def score(served: Served, given: Tensors) -> Tensors:
    """Return the log-probability of each token of given decoder sequences."""
    scored = sequences.score(
        served.config,
        served.parameters,
        given["encoder_token_ids"],
        given["encoder_lengths"],
        given["decoder_token_ids"],
        given["decoder_lengths"],
    )
    return {"log_probabilities": scored}


def backbone(served: Served, given: Tensors) -> Tensors:
    """Do what `BartBackbone` does: four tensors in, the outputs of encoder and decoder out."""
    return sequences.backbone(
        served.config,
        served.parameters,
        given["encoder_token_ids"],
        given["encoder_padding_mask"],
        given["decoder_token_ids"],
        given["decoder_padding_mask"],
    )


def tokenize(served: Served, given: Tensors) -> Tensors:
    """Turn texts into ids, cut to what the model takes."""
    ids, lengths = served.tokenizer.encode(given["text"], served.encoder_sequence_length)
    return {"encoder_token_ids": ids, "encoder_lengths": lengths}


def detokenize(served: Served, given: Tensors) -> Tensors:
    """Turn ids into texts."""
    return {"text": served.tokenizer.decode(given["decoder_token_ids"], given["decoder_lengths"])}


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
