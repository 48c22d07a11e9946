"""Verification of a SavedModel: every signature is run and compared with the Keras reference.

A version directory and the reference's answers and traces go in; a row of figures for the manifest
comes out, or an error that says what differs. The SavedModel is asked in its own words, whole texts
and whole sequences; nothing here steps a decoder.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bart_export.artifact.figures import Answer, SavedModelVerification
from bart_export.config import GenerationConfig
from bart_export.errors import VerificationFailed
from bart_export.graph.signatures import defaults
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.metrics import AT_LEAST, AT_MOST
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify import tokenization
from bart_export.verify.golden import Question
from bart_export.verify.reference import KerasReference
from bart_export.verify.tolerance import Bound, hold, uncommitted
from bart_export.verify.traces import Trace
from bart_export.verify.verify import Reference


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What is accepted of a SavedModel: largest errors, smallest share; None for any."""

    log_probabilities: float
    hidden: float
    tokens: float | None


# Weights rounded to 8 bits of mantissa leave near-ties that are decided otherwise.
TOLERANCES = {
    "float32": Tolerance(log_probabilities=1e-3, hidden=1e-3, tokens=1.0),
    "bfloat16": Tolerance(log_probabilities=0.5, hidden=0.5, tokens=None),
}


def check(
    name: str,
    directory: pathlib.Path,
    dtype: str,
    tokenizer: BartTokenizer,
    settings: GenerationConfig,
    keras: KerasReference,
    reference: Reference,
) -> tuple[SavedModelVerification, list[Answer | None]]:
    """Compare a SavedModel with the reference and hold it to the tolerance of its dtype.

    Args:
        name: what to call it.
        directory: of the version.
        dtype: that of its weights.
        tokenizer: the model's.
        settings: what was exported with; questions with other fixed settings are not asked.
        keras: the model itself.
        reference: its answers.

    Raises:
        VerificationFailed: for a SavedModel outside the tolerance, or one that cannot be run.
    """
    try:
        with native_stderr_silenced():
            loaded = tf.saved_model.load(str(directory))
            answers = [
                ask(loaded.signatures, tokenizer, question) if same(question, settings) else None
                for question in reference.questions
            ]
            comparison = compare(name, loaded.signatures, answers, keras, reference)
            texts = list(dict.fromkeys(question.text for question in reference.questions))
            tokenization.check_signature(name, ids_of(loaded.signatures), tokenizer, texts)
    except tf.errors.OpError as error:
        reason = error.message.partition("\n")[0]
        raise VerificationFailed(
            f"{name} cannot answer: {reason}. Nothing was committed."
        ) from error
    with uncommitted():
        judge(name, TOLERANCES[dtype], comparison)
    return comparison, answers


def ids_of(signatures: Mapping[str, Any]) -> tokenization.Signature:
    """Return the function from texts to ids that a SavedModel's `tokenize` is."""

    def ids(texts: Sequence[str]) -> list[list[int]]:
        found = signatures["tokenize"](text=tf.constant(list(texts)))
        rows = zip(
            found["encoder_token_ids"].numpy(), found["encoder_lengths"].numpy(), strict=True
        )
        return [row[:length].tolist() for row, length in rows]

    return ids


def same(question: Question, settings: GenerationConfig) -> bool:
    """Return whether a question agrees with what is fixed at export."""
    return all(getattr(question.generation, name) == getattr(settings, name) for name in FIXED)


def compare(
    name: str,
    signatures: Mapping[str, Any],
    answers: Sequence[Answer | None],
    keras: KerasReference,
    reference: Reference,
) -> SavedModelVerification:
    """Return how far a SavedModel, with these answers to the questions, is from the reference."""
    asked = [
        (question, answer, wanted)
        for question, answer, wanted in zip(
            reference.questions, answers, reference.answers, strict=True
        )
        if answer is not None
    ]
    return SavedModelVerification(
        name,
        log_probabilities=largest(scored(signatures, keras, trace) for trace in reference.traces),
        hidden=largest(hidden(signatures, keras, trace) for trace in reference.traces),
        tokens=share(answer.token_ids == wanted.token_ids for _, answer, wanted in asked),
        texts=share(
            ask_text(signatures, question) == answer.text.removeprefix(" ")
            for question, answer, _ in asked
        ),
        steps=sum(len(trace.fed_token_ids) for trace in reference.traces),
        questions=len(asked),
    )


def ask(signatures: Mapping[str, Any], tokenizer: BartTokenizer, question: Question) -> Answer:
    """Return the answer of `generate` to a question."""
    generated = signatures["generate"](
        encoder_token_ids=tf.constant([question.source_token_ids]),
        encoder_lengths=tf.constant([len(question.source_token_ids)]),
        **defaults(question.generation),
    )
    length = int(generated["decoder_lengths"][0, 0])
    ids = tuple(generated["decoder_token_ids"][0, 0, :length].numpy().tolist())
    return Answer(ids, tokenizer.detokenize(ids), float(generated["scores"][0, 0]))


def ask_text(signatures: Mapping[str, Any], question: Question) -> str:
    """Return the answer of `generate_text` to a question."""
    generated = signatures["generate_text"](
        text=tf.constant([question.text]), **defaults(question.generation)
    )
    text: str = generated["generated_text"][0, 0].numpy().decode()
    return text


def scored(signatures: Mapping[str, Any], keras: KerasReference, trace: Trace) -> float:
    """Return the largest error of `score` on a trace: its tokens after the first."""
    ids = np.array(trace.fed_token_ids, np.int32)
    received = signatures["score"](
        encoder_token_ids=tf.constant([trace.source_token_ids]),
        encoder_lengths=tf.constant([len(trace.source_token_ids)]),
        decoder_token_ids=tf.constant(ids[None]),
        decoder_lengths=tf.constant([len(ids)]),
    )["log_probabilities"].numpy()[0]
    logits = keras.along(trace).logits[:-1].astype(np.float64)
    peaks = logits.max(-1)
    normalizers = peaks + np.log(np.exp(logits - peaks[:, None]).sum(-1))
    expected = logits[np.arange(len(logits)), ids[1:]] - normalizers
    return float(np.abs(received[1:] - expected).max(initial=0.0))


def hidden(signatures: Mapping[str, Any], keras: KerasReference, trace: Trace) -> float:
    """Return the largest error of `backbone`, and of `encode` against it, on a trace."""
    source = tf.constant([trace.source_token_ids])
    ids = tf.constant([trace.fed_token_ids])
    given = {
        "encoder_token_ids": source,
        "encoder_padding_mask": tf.ones_like(source),
        "decoder_token_ids": ids,
        "decoder_padding_mask": tf.ones_like(ids),
    }
    expected = keras.backbone(given, training=False)
    received = signatures["backbone"](**given)
    encoded = signatures["encode"](
        encoder_token_ids=source, encoder_lengths=tf.constant([source.shape[1]])
    )
    pairs = [(received[name], expected[name]) for name in expected]
    pairs.append((encoded["encoder_sequence_output"], expected["encoder_sequence_output"]))
    return largest(
        float(np.abs(np.asarray(one) - np.asarray(other, np.float32)).max()) for one, other in pairs
    )


def largest(errors: Any) -> float:
    """Return the largest of some errors, NaN if one of them is, 0 of none."""
    return float(np.max([0.0, *errors]))


def share(true: Any) -> float:
    """Return the share of values that are true."""
    values: Sequence[bool] = list(true)
    return sum(values) / len(values)


# Settings of a GenerationConfig that a SavedModel's requests cannot change, as far as the best
# sequence depends on them.
FIXED = (
    "num_beams",
    "no_repeat_ngram_size",
    "decoder_start_token_id",
    "pad_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


def judge(name: str, tolerance: Tolerance, comparison: SavedModelVerification) -> None:
    """Hold a comparison to a tolerance.

    Raises:
        VerificationFailed: for the first figure outside, with the figure.
    """
    hold(
        name,
        [
            Bound(
                "the largest error of a log-probability",
                comparison.log_probabilities,
                tolerance.log_probabilities,
                AT_MOST,
            ),
            Bound(
                "the largest error of the backbone's outputs",
                comparison.hidden,
                tolerance.hidden,
                AT_MOST,
            ),
            Bound("the share of equal answers", comparison.tokens, tolerance.tokens, AT_LEAST),
            Bound("the share of texts that are those of the ids", comparison.texts, 1.0, AT_LEAST),
        ],
    )
