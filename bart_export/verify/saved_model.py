"""Comparison of a SavedModel's signatures with the Keras model."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from bart_export.artifact.figures import Answer, SavedModelVerification
from bart_export.config import GenerationConfig
from bart_export.errors import VerificationFailed
from bart_export.graph.saved_model_signatures import defaults
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.metrics import AT_LEAST, AT_MOST, Metric
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify.compare import Cases
from bart_export.verify.golden import Question
from bart_export.verify.reference import KerasReference
from bart_export.verify.tokenization import check_signature
from bart_export.verify.tolerance import Bound, require_bounds
from bart_export.verify.traces import Trace, log_softmax, worst

Signature = Callable[..., Mapping[str, tf.Tensor]]  # keyword arguments to outputs by name
Signatures = Mapping[str, Signature]

METRICS = {
    metric.name: metric
    for metric in (
        Metric("log_probabilities", "the largest error of a log-probability", AT_MOST),
        Metric("hidden", "the largest error of the backbone's outputs", AT_MOST),
        Metric("tokens", "the share of equal answers", AT_LEAST),
        Metric("texts", "the share of texts that match their ids", AT_LEAST),
    )
}
# bfloat16 has no bound on `tokens`, because its rounding changes near-ties.
TOLERANCES = {
    "float32": {"log_probabilities": 1e-3, "hidden": 1e-3, "tokens": 1.0, "texts": 1.0},
    "bfloat16": {"log_probabilities": 0.5, "hidden": 0.5, "texts": 1.0},
}
# Settings that affect the best sequence and that requests to a SavedModel cannot change.
FIXED = (
    "num_beams",
    "no_repeat_ngram_size",
    "decoder_start_token_id",
    "pad_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


def check_saved_model(
    name: str,
    directory: pathlib.Path,
    dtype: str,
    tokenizer: BartTokenizer,
    settings: GenerationConfig,
    keras: KerasReference,
    cases: Cases,
) -> tuple[SavedModelVerification, list[Answer | None]]:
    """Check the SavedModel in a version directory against the tolerance for its dtype.

    A question is not asked if its `FIXED` settings differ from the exported `settings`. Returns the
    figures, and the answers, with None for a question that was not asked.

    Raises:
        VerificationFailed: if it is outside the tolerance or cannot be run.
    """
    try:
        with native_stderr_silenced():
            signatures = tf.saved_model.load(str(directory)).signatures
            answers = [
                generate(signatures, tokenizer, question)
                if all(vars(question.generation)[key] == vars(settings)[key] for key in FIXED)
                else None
                for question in cases.questions
            ]
            figures = compare_saved_model(name, signatures, answers, keras, cases)
            texts = list(dict.fromkeys(question.text for question in cases.questions))
            check_signature(name, tokenize_with(signatures), tokenizer, texts)
    except tf.errors.OpError as error:
        reason = error.message.partition("\n")[0]
        raise VerificationFailed(f"{name} cannot answer: {reason}.") from error
    bounds = [
        Bound(METRICS[metric], getattr(figures, metric), bound)
        for metric, bound in TOLERANCES[dtype].items()
    ]
    require_bounds(name, bounds)
    return figures, answers


def compare_saved_model(
    name: str,
    signatures: Signatures,
    answers: Sequence[Answer | None],
    keras: KerasReference,
    cases: Cases,
) -> SavedModelVerification:
    """Return a SavedModel's figures, given its answers."""
    same_tokens, same_texts = [], []
    for question, answer, expected in zip(cases.questions, answers, cases.answers, strict=True):
        if answer is None:
            continue
        same_tokens.append(answer.token_ids == expected.token_ids)
        generated = signatures["generate_text"](
            text=tf.constant([question.text]), **defaults(question.generation)
        )["generated_text"]
        text = generated[0, 0].numpy().decode()
        same_texts.append(text == answer.text.removeprefix(" "))
    return SavedModelVerification(
        name,
        log_probabilities=worst(score_error(signatures, cases, trace) for trace in cases.traces),
        hidden=worst(hidden_error(signatures, keras, trace) for trace in cases.traces),
        tokens=sum(same_tokens) / len(same_tokens),
        texts=sum(same_texts) / len(same_texts),
        steps=sum(len(trace.fed_token_ids) for trace in cases.traces),
        questions=len(same_tokens),
    )


def tokenize_with(signatures: Signatures) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return a function from texts to ids that calls a SavedModel's `tokenize`."""

    def token_ids(texts: Sequence[str]) -> list[list[int]]:
        output = signatures["tokenize"](text=tf.constant(list(texts)))
        ids, lengths = output["encoder_token_ids"].numpy(), output["encoder_lengths"].numpy()
        return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]

    return token_ids


def generate(signatures: Signatures, tokenizer: BartTokenizer, question: Question) -> Answer:
    """Answer a question with a SavedModel's `generate` signature."""
    generated = signatures["generate"](
        **source_of(question.source_token_ids), **defaults(question.generation)
    )
    length = int(generated["decoder_lengths"][0, 0])
    ids = tuple(generated["decoder_token_ids"][0, 0, :length].numpy().tolist())
    return Answer(ids, tokenizer.detokenize(ids), float(generated["scores"][0, 0]))


def score_error(signatures: Signatures, cases: Cases, trace: Trace) -> float:
    """Return the largest error of `score` on a trace, ignoring the first token."""
    ids = np.array(trace.fed_token_ids, np.int32)
    received = signatures["score"](
        **source_of(trace.source_token_ids),
        decoder_token_ids=tf.constant(ids[None]),
        decoder_lengths=tf.constant([len(ids)]),
    )["log_probabilities"].numpy()[0]
    log_probabilities = log_softmax(cases.teacher(trace).logits[:-1])
    expected = log_probabilities[np.arange(len(log_probabilities)), ids[1:]]
    return float(np.abs(received[1:] - expected).max(initial=0.0))


def hidden_error(signatures: Signatures, keras: KerasReference, trace: Trace) -> float:
    """Return the largest error of the hidden states from `backbone` and `encode` on a trace."""
    source, ids = tf.constant([trace.source_token_ids]), tf.constant([trace.fed_token_ids])
    inputs = {
        "encoder_token_ids": source,
        "encoder_padding_mask": tf.ones_like(source),
        "decoder_token_ids": ids,
        "decoder_padding_mask": tf.ones_like(ids),
    }
    expected: Mapping[str, tf.Tensor] = keras.backbone(inputs, training=False)
    received = signatures["backbone"](**inputs)
    encoded = signatures["encode"](**source_of(trace.source_token_ids))
    pairs = [(received[name], expected[name]) for name in expected]
    pairs.append((encoded["encoder_sequence_output"], expected["encoder_sequence_output"]))
    return worst(
        float(np.abs(np.asarray(output) - np.asarray(reference, np.float32)).max())
        for output, reference in pairs
    )


def source_of(token_ids: Sequence[int]) -> dict[str, tf.Tensor]:
    """Return the encoder inputs of a single source."""
    return {
        "encoder_token_ids": tf.constant([token_ids]),
        "encoder_lengths": tf.constant([len(token_ids)]),
    }
