"""The smallest bucket with room is taken and filled; what fits in none is refused."""

import numpy as np
import pytest

from bart_export import contract
from bart_export.config import BartConfig
from bart_export.errors import InputError
from bart_export.runtime.engine import Buckets, fill_rows

CONFIG = BartConfig(
    vocabulary_size=40, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4,
    max_sequence_length=64,
)  # fmt: skip
# Not in the order of their sizes.
BUCKETS = Buckets(CONFIG, contract.static_buckets(CONFIG, (32, 8), 20, (4, 2)))


def fit_one(length, num_beams, max_length):
    return BUCKETS.fit([3] * length, num_beams, max_length)


@pytest.mark.parametrize(
    ("length", "num_beams", "max_length", "encode", "decode"),
    [
        (1, 1, 2, "encode_8", "decode_8_2"),
        (8, 2, 20, "encode_8", "decode_8_2"),
        (9, 2, 20, "encode_32", "decode_32_2"),
        (8, 3, 2, "encode_8", "decode_8_4"),
        (32, 4, 20, "encode_32", "decode_32_4"),
    ],
)
def test_the_smallest_that_fits_is_taken(length, num_beams, max_length, encode, decode):
    fitted = fit_one(length, num_beams, max_length)
    assert (fitted.encode.name, fitted.decode.name) == (encode, decode)


def test_a_source_is_padded_and_the_padding_masked():
    fitted = BUCKETS.fit([5, 6, 7], 1, 2)
    assert fitted.token_ids[:, :3].tolist() == [[5, 6, 7]]
    assert fitted.padding_mask.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert fitted.token_ids.shape == (1, 8)
    assert fitted.token_ids.dtype == fitted.padding_mask.dtype == np.int32


@pytest.mark.parametrize(
    ("length", "num_beams", "max_length", "words"),
    [
        (33, 1, 2, "A source's number of tokens must be at most 32 in this static build, which "
         "was made for 8, 32, received 33."),
        (3, 5, 2, "num_beams, or num_return_sequences, must be at most 4 in this static build, "
         "which was made for 2, 4, received 5."),
        (3, 1, 21, "max_length must be at most 20 in this static build, which was made for 20, "
         "received 21."),
    ],
)  # fmt: skip
def test_what_fits_in_none_is_refused(length, num_beams, max_length, words):
    with pytest.raises(InputError) as caught:
        fit_one(length, num_beams, max_length)
    assert str(caught.value) == f"{words} A dynamic build takes more."


def test_a_source_that_no_build_takes_is_refused_in_the_models_words():
    with pytest.raises(InputError, match="1 to 64 tokens, received 65"):
        fit_one(65, 1, 2)
    with pytest.raises(InputError, match="0 to 39, received 40"):
        BUCKETS.fit([40], 1, 2)


def test_rows_to_spare_keep_their_own_place():
    token_ids, beam_index = fill_rows(
        4, np.array([7, 8, 9], np.int32), np.array([2, 0, 0], np.int32)
    )
    assert token_ids[:3].tolist() == [7, 8, 9]
    assert beam_index.tolist() == [2, 0, 0, 3]
    assert (token_ids.dtype, token_ids.shape) == (np.int32, (4,))
    assert beam_index.dtype == np.int32
