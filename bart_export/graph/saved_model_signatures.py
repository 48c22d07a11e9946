"""The signatures of a SavedModel, `contract.saved_model_signatures`, as TensorFlow functions.

Each takes the tensors its signature names and returns those it promises, batch-major. What is the
same for every request (weights, tokenizer, settings fixed at export) is in `Served`; what a request
may set comes with it, a value for each text or one for all.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from bart_export import contract
from bart_export.config import BartConfig, GenerationConfig
from bart_export.graph import search, sequences
from bart_export.graph.layers import Bart, Parameters, Tensors
from bart_export.graph.tokenizer import GraphTokenizer

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

    def bart(self) -> Bart:
        """Return the model for the arithmetic of one signature; see `sequences.float32`."""
        return Bart(self.config, sequences.float32(self.parameters))


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
    names = [tensor.name for tensor in contract.GENERATION_INPUTS]
    return search.generate(
        served.bart(),
        served.generation,
        given["encoder_token_ids"],
        given["encoder_lengths"],
        {name: tf.broadcast_to(given[name], batch) for name in names},
    )


def encode(served: Served, given: Tensors) -> Tensors:
    """Run the encoder alone."""
    source = sequences.masked(given["encoder_token_ids"], given["encoder_lengths"])
    encoded = sequences.encode(served.bart(), *source)
    return {"encoder_sequence_output": encoded}


def score(served: Served, given: Tensors) -> Tensors:
    """Return the log-probability of each token of given decoder sequences."""
    names = ("encoder_token_ids", "encoder_lengths", "decoder_token_ids", "decoder_lengths")
    inputs = (given[name] for name in names)
    return {"log_probabilities": sequences.score(served.bart(), *inputs)}


def backbone(served: Served, given: Tensors) -> Tensors:
    """Compute both outputs of `BartBackbone`. A mask is 0 at padding, wherever that is."""
    bart = served.bart()
    source_mask, target_mask = (
        tf.cast(given[f"{side}_padding_mask"] != 0, tf.int32) for side in ("encoder", "decoder")
    )
    encoded = sequences.encode(bart, given["encoder_token_ids"], source_mask)
    decoded = sequences.decode(bart, encoded, source_mask, given["decoder_token_ids"], target_mask)
    return {"encoder_sequence_output": encoded, "decoder_sequence_output": decoded}


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
