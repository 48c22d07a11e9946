"""Every signature of a SavedModel is run and compared with the Keras model.

The SavedModel is asked in its own interface: whole texts and whole sequences.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from bart_export.artifact.figures import Answer, SavedModelVerification
from bart_export.config import GenerationConfig
from bart_export.errors import VerificationFailed
from bart_export.graph.signatures import defaults
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes.metrics import AT_LEAST, AT_MOST
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify.compare import Cases
from bart_export.verify.golden import Question
from bart_export.verify.reference import KerasReference
from bart_export.verify.tokenization import check_signature
from bart_export.verify.tolerance import Bound, require, uncommitted
from bart_export.verify.traces import Trace, log_softmax

# A loaded signature: tensors by name in, tensors by name out.
Signature = Callable[..., Mapping[str, tf.Tensor]]
Signatures = Mapping[str, Signature]


# Figure -> its words, and the side on which it must be of its bound.
FIGURES = {
    "log_probabilities": ("the largest error of a log-probability", AT_MOST),
    "hidden": ("the largest error of the backbone's outputs", AT_MOST),
    "tokens": ("the share of equal answers", AT_LEAST),
    "texts": ("the share of texts that are those of the ids", AT_LEAST),
}
# Weights rounded to 8 bits of mantissa leave near-ties that are decided otherwise.
TOLERANCES = {
    "float32": {"log_probabilities": 1e-3, "hidden": 1e-3, "tokens": 1.0, "texts": 1.0},
    "bfloat16": {"log_probabilities": 0.5, "hidden": 0.5, "texts": 1.0},
}
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


def check_saved_model(
    name: str,
    directory: pathlib.Path,
    dtype: str,
    tokenizer: BartTokenizer,
    settings: GenerationConfig,
    keras: KerasReference,
    cases: Cases,
) -> tuple[SavedModelVerification, list[Answer | None]]:
    """Compare a SavedModel with the Keras model and hold it to the tolerance of its dtype.

    Args:
        name: what to call it.
        directory: of the version.
        dtype: that of its weights.
        tokenizer: the model's.
        settings: what was exported with; questions with other fixed settings are not asked.
        keras: the model itself.
        cases: the questions and its answers.

    Raises:
        VerificationFailed: for a SavedModel outside the tolerance, or one that cannot be run.
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
        raise VerificationFailed(
            f"{name} cannot answer: {reason}. Nothing was committed."
        ) from error
    bounds = []
    for figure, bound in TOLERANCES[dtype].items():
        words, side = FIGURES[figure]
        bounds.append(Bound(words, getattr(figures, figure), bound, side))
    with uncommitted():
        require(name, bounds)
    return figures, answers


def compare_saved_model(
    name: str,
    signatures: Signatures,
    answers: Sequence[Answer | None],
    keras: KerasReference,
    cases: Cases,
) -> SavedModelVerification:
    """Return how far a SavedModel, with these answers to the questions, is from the Keras model."""
    asked = [
        (question, answer, wanted)
        for question, answer, wanted in zip(cases.questions, answers, cases.answers, strict=True)
        if answer is not None
    ]
    same_tokens = [answer.token_ids == wanted.token_ids for _, answer, wanted in asked]
    same_texts = [
        generate_text(signatures, question) == answer.text.removeprefix(" ")
        for question, answer, _ in asked
    ]
    return SavedModelVerification(
        name,
        log_probabilities=largest(score_error(signatures, cases, trace) for trace in cases.traces),
        hidden=largest(hidden_error(signatures, keras, trace) for trace in cases.traces),
        tokens=sum(same_tokens) / len(asked),
        texts=sum(same_texts) / len(asked),
        steps=sum(len(trace.fed_token_ids) for trace in cases.traces),
        questions=len(asked),
    )


def tokenize_with(signatures: Signatures) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return the function from texts to ids that a SavedModel's `tokenize` is."""

    def token_ids(texts: Sequence[str]) -> list[list[int]]:
        found = signatures["tokenize"](text=tf.constant(list(texts)))
        ids, lengths = found["encoder_token_ids"].numpy(), found["encoder_lengths"].numpy()
        return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]

    return token_ids


def generate(signatures: Signatures, tokenizer: BartTokenizer, question: Question) -> Answer:
    """Return the answer of `generate` to a question."""
    generated = signatures["generate"](
        **source_of(question.source_token_ids), **defaults(question.generation)
    )
    length = int(generated["decoder_lengths"][0, 0])
    ids = tuple(generated["decoder_token_ids"][0, 0, :length].numpy().tolist())
    return Answer(ids, tokenizer.detokenize(ids), float(generated["scores"][0, 0]))


def generate_text(signatures: Signatures, question: Question) -> str:
    """Return the answer of `generate_text` to a question."""
    generated = signatures["generate_text"](
        text=tf.constant([question.text]), **defaults(question.generation)
    )
    text: str = generated["generated_text"][0, 0].numpy().decode()
    return text


def score_error(signatures: Signatures, cases: Cases, trace: Trace) -> float:
    """Return the largest error of `score` on a trace: its tokens after the first."""
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
    """Return the largest error of `backbone`, and of `encode` against it, on a trace."""
    source = tf.constant([trace.source_token_ids])
    ids = tf.constant([trace.fed_token_ids])
    given = {
        "encoder_token_ids": source,
        "encoder_padding_mask": tf.ones_like(source),
        "decoder_token_ids": ids,
        "decoder_padding_mask": tf.ones_like(ids),
    }
    expected: Mapping[str, tf.Tensor] = keras.backbone(given, training=False)
    received = signatures["backbone"](**given)
    encoded = signatures["encode"](**source_of(trace.source_token_ids))
    pairs = [(received[name], expected[name]) for name in expected]
    pairs.append((encoded["encoder_sequence_output"], expected["encoder_sequence_output"]))
    return largest(
        float(np.abs(np.asarray(given) - np.asarray(wanted, np.float32)).max())
        for given, wanted in pairs
    )


def source_of(token_ids: Sequence[int]) -> dict[str, tf.Tensor]:
    """Return the inputs of a signature that encodes a single source."""
    return {
        "encoder_token_ids": tf.constant([token_ids]),
        "encoder_lengths": tf.constant([len(token_ids)]),
    }


def largest(errors: Iterable[float]) -> float:
    """Return the largest of some errors, NaN if one of them is, 0 of none."""
    return float(np.max([0.0, *errors]))
