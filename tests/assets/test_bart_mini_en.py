"""KerasHub loads the embedded preset and computes the same outputs."""

import json
from pathlib import Path

import numpy as np
import pytest

import bart_export
from bart_export.checkpoints import resolve
from bart_export.text.tokenizer import BartTokenizer

PRESET = Path(bart_export.__file__).parent / "assets/bart_mini_en"
HEADLINES = Path(__file__).parents[1] / "data/mini_model/headlines_4_beams.jsonl"


@pytest.fixture(scope="module")
def checkpoint():
    return resolve.read(PRESET)


@pytest.fixture(scope="module")
def texts():
    rows = HEADLINES.read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["text"] for row in rows]


@pytest.fixture(scope="module")
def tokenizer():
    folder = PRESET / "assets/tokenizer"
    return BartTokenizer.from_files(folder / "vocabulary.json", folder / "merges.txt")


@pytest.fixture(scope="module")
def keras_hub():
    import keras_hub

    return keras_hub


@pytest.fixture(scope="module")
def their_backbone(keras_hub):
    return keras_hub.models.BartBackbone.from_preset(str(PRESET))


def inputs(tokenizer, texts):
    """Return model inputs with sources of different lengths and teacher-forced targets."""
    sources = [tokenizer.encode(text, 160, truncate=True) for text in texts]
    targets = [source[:9] for source in sources]

    def padded(rows):
        length = max(map(len, rows))
        rows = [row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows]
        return np.array(rows, "int32")

    encoder_token_ids, decoder_token_ids = padded(sources), padded(targets)
    return {
        "encoder_token_ids": encoder_token_ids,
        "encoder_padding_mask": (encoder_token_ids != tokenizer.pad_token_id).astype("int32"),
        "decoder_token_ids": decoder_token_ids,
        "decoder_padding_mask": np.ones_like(decoder_token_ids),
    }


def test_weights_are_stored_in_half_the_bytes(checkpoint):
    assert {values.dtype.name for values in checkpoint.weights.values()} == {"float16"}
    stored = sum(values.nbytes for values in checkpoint.weights.values())
    assert stored <= (PRESET / "model.weights.h5").stat().st_size < 1.02 * stored


def test_generation_settings_are_those_it_was_measured_with(checkpoint):
    generation = checkpoint.generation
    assert generation is not None
    assert (generation.num_beams, generation.max_length) == (4, 32)
    assert (generation.no_repeat_ngram_size, generation.early_stopping) == (3, True)
    assert (generation.forced_bos_token_id, generation.forced_eos_token_id) == (0, 2)
    assert checkpoint.encoder_sequence_length == 160


def test_the_tokenizer_fits_the_embedding_and_gives_every_text_back(checkpoint, tokenizer, texts):
    assert tokenizer.vocabulary_size == checkpoint.config.vocabulary_size
    for text in texts:
        assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


def test_kerashub_has_the_weights_that_the_reader_gives(checkpoint, their_backbone):
    assert [weight.path for weight in their_backbone.weights] == list(checkpoint.weights)
    for weight in their_backbone.weights:
        values = checkpoint.weights[weight.path]
        np.testing.assert_array_equal(weight.numpy(), values.astype("float32"), weight.path)


def test_kerashub_computes_what_this_package_computes(checkpoint, their_backbone, tokenizer, texts):
    from bart_export.model import BartBackbone

    ours = BartBackbone(**checkpoint.config.to_dict())
    for weight in ours.weights:
        weight.assign(checkpoint.weights[weight.path])
    batch = inputs(tokenizer, texts[:4])
    real = batch["encoder_padding_mask"].astype(bool)
    assert not real.all()
    answers, expected = ours(batch), their_backbone(batch)
    for name, rows in (("encoder_sequence_output", real), ("decoder_sequence_output", ...)):
        np.testing.assert_allclose(
            np.asarray(answers[name])[rows], np.asarray(expected[name])[rows], atol=1e-5
        )


def test_kerashub_has_the_lengths_it_was_trained_for(keras_hub, tokenizer, texts):
    task = keras_hub.models.BartSeq2SeqLM.from_preset(str(PRESET), load_weights=False)
    assert task.preprocessor.decoder_sequence_length == 32
    long = max(texts, key=len)
    packed = task.preprocessor.generate_preprocess([long])
    ids = np.asarray(packed["encoder_token_ids"])[0].tolist()
    assert ids == tokenizer.encode(long, 160, truncate=True)
    assert len(tokenizer.tokenize(long)) > 160
