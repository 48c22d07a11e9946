"""Search inside a graph, compared with the host search; rows of a batch are independent."""

import dataclasses
import itertools
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from support.golden_cases import GOLDEN, MODELS
from support.graph_bart import GraphBart, bart_of, batch, fixed, hypotheses, per_row
from support.numpy_bart import NumpyBart

from bart_export import errors
from bart_export.checkpoints import weight_names
from bart_export.config import BartConfig, GenerationConfig
from bart_export.graph import generator, sequences
from bart_export.graph.parameters import InferenceParameters
from bart_export.graph.search import beam_search, greedy_search
from bart_export.runtime import search as host

SOURCES = [[0, 57, 9, 130, 2], [0, *range(300, 330), 2], [0, 8, 2], [0, 400, 77, 512, 90, 33, 2]]


@pytest.fixture(scope="module")
def symmetric():
    return GraphBart(GOLDEN / MODELS[0])


@pytest.fixture(scope="module")
def numpy_bart():
    return NumpyBart(GOLDEN / MODELS[0])


def generate(bart, sources, settings):
    """Generate for each source with its settings; fixed settings must be equal."""
    (generation,) = {fixed(one) for one in settings}
    generated = bart.generator(generation)(sources, settings)
    return [hypotheses(generated, row) for row in range(len(sources))]


def assert_same(received, expected):
    assert [sequences for sequences, scores in received] == [
        sequences for sequences, scores in expected
    ]
    for (_, scores), (_, others) in zip(received, expected, strict=True):
        np.testing.assert_allclose(scores, others, rtol=1e-5, atol=1e-3)


FIXED = [
    {},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2, "forced_bos_token_id": 0},
    {"num_beams": 2, "num_return_sequences": 2},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "forced_eos_token_id": 2},
    {"num_beams": 5, "num_return_sequences": 3, "forced_bos_token_id": 5},
    {"eos_token_id": (2, *range(100, 400))},
    {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": (2, *range(100, 400))},
]


def many_rows(seed, changes, count=24):
    """Return random settings with common `changes`."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        max_length = int(random.choice([2, 3, 9, 40, 64]))
        rows.append(
            GenerationConfig(
                max_length=max_length,
                min_length=min(int(random.choice([0, 0, 0, 4, 64])), max_length),
                length_penalty=float(np.float32(random.choice([-1.0, 0.0, 0.7, 1.0, 3.0]))),
                repetition_penalty=float(np.float32(random.choice([1.0, 1.0, 0.8, 1.7]))),
                early_stopping=(True, False, "never")[random.integers(3)],
                **changes,
            )
        )
    return rows


@pytest.mark.parametrize("number", range(len(FIXED)))
def test_mixed_batches_equal_the_host_search(symmetric, numpy_bart, number):
    settings = many_rows(number, FIXED[number])
    sources = list(itertools.islice(itertools.cycle(SOURCES), len(settings)))
    expected = []
    for source, generation in zip(sources, settings, strict=True):
        state = numpy_bart.start(numpy_bart.encode(source))
        found = host.run(host.search(generation), numpy_bart.step, state)
        expected.append(([list(one.token_ids) for one in found], [one.score for one in found]))
    received = generate(symmetric, sources, settings)
    for (token_ids, scores), (found, _) in zip(received, expected, strict=True):
        assert not any(token_ids[len(found) :])  # missing hypotheses
        del token_ids[len(found) :], scores[len(found) :]
    assert_same(received, expected)
    assert max(len(token_ids[0]) for token_ids, _ in received) > sequences.FIRST_CAPACITY


@pytest.mark.parametrize("beams", [1, 4])
def test_a_row_is_the_same_alone_and_in_a_batch(symmetric, beams):
    settings = many_rows(9, {"num_beams": beams, "num_return_sequences": beams})
    sources = list(itertools.islice(itertools.cycle(SOURCES), len(settings)))
    together = generate(symmetric, sources, settings)
    generator = symmetric.generator(fixed(settings[0]))
    for row in range(0, len(settings), 3):
        alone = hypotheses(generator([sources[row]], [settings[row]]), 0)
        assert_same([alone], [together[row]])


def last_state(bart, settings):
    """Return the last state of a search over `SOURCES`."""
    inputs = (*batch(SOURCES), per_row(settings))
    strategy = beam_search if settings[0].num_beams > 1 else greedy_search
    return strategy(generator.prepare(bart.bart, settings[0], *inputs))


@pytest.mark.parametrize("beams", [1, 3])
def test_the_loop_ends_with_the_last_row(symmetric, beams):
    base = GenerationConfig(max_length=60, num_beams=beams, early_stopping=True)
    lengths = (7, 3, 11, 5)
    settings = [dataclasses.replace(base, max_length=one, min_length=one) for one in lengths]
    state = last_state(symmetric, settings)
    assert not state.running.numpy().any()
    assert state.length == 11  # the position of the next token
    unhurried = last_state(symmetric, [dataclasses.replace(base, early_stopping=False)] * 4)
    hurried = last_state(symmetric, [base] * 4)
    assert hurried.length == hurried.lengths.numpy().max() < 60
    assert hurried.length <= unhurried.length


@pytest.mark.parametrize("beams", [1, 3])
def test_min_length_is_limited_to_max_length(symmetric, beams):
    """As in `GenerationConfig.replace`, since a request may set only one of them."""
    rows = [GenerationConfig(max_length=8, min_length=least, num_beams=beams) for least in (0, 8)]
    found = symmetric.generator(fixed(rows[0]))
    per_request = types.SimpleNamespace(**{**rows[0].to_dict(), "min_length": 12})
    generated = found([SOURCES[0]] * 3, [*rows, per_request])
    _, expected, received = (hypotheses(generated, row) for row in range(3))
    assert_same([received], [expected])
    assert len(received[0][0]) == 8


@pytest.mark.parametrize("beams", [1, 3])
def test_lengths_are_clipped_to_their_range(symmetric, beams):
    generator = symmetric.generator(GenerationConfig(num_beams=beams))

    def generated(lengths, max_length, min_length):
        rows = {
            **per_row([GenerationConfig(early_stopping="never")] * 4),
            "max_length": tf.constant(max_length),
            "min_length": tf.constant(min_length),
        }
        return generator.function(batch(SOURCES)[0], tf.constant(lengths), rows)

    expected = generated([1, 32, 3, 7], [2, 2, 64, 12], [0, 0, 64, 12])
    received = generated([-3, 10**6, 3, 7], [2, 2, 10**6, 12], [0, 0, 10**6, 10**6])
    for name, tensor in expected.items():
        np.testing.assert_array_equal(received[name], tensor, err_msg=name)
    assert expected["decoder_lengths"].numpy()[:, 0].tolist() == [2, 2, 64, 12]


def test_truncated_sources_end_with_the_end_token(symmetric):
    settings = [GenerationConfig(max_length=20)] * 2
    long = [0, *range(100, 198), 2]
    received = generate(symmetric, [long, SOURCES[0]], settings)
    expected = generate(symmetric, [[*long[:63], 2], SOURCES[0]], settings)
    assert received == expected


def test_a_source_without_tokens_generates(symmetric):
    generator = symmetric.generator(GenerationConfig(num_beams=2))
    rows = per_row([GenerationConfig(max_length=5)])
    generated = generator.function(np.zeros((1, 0), np.int32), [0], rows)
    assert generated["decoder_lengths"].numpy()[0, 0] >= 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("early_stopping", "yes", "early_stopping must be true, false or never, received.*yes"),
        ("early_stopping", "True", "early_stopping must be"),
        ("early_stopping", "", "early_stopping must be"),
        ("repetition_penalty", 0.0, "repetition_penalty must be a number above 0, received"),
        ("repetition_penalty", float("inf"), "repetition_penalty must be"),
        ("length_penalty", float("nan"), "length_penalty must be a finite number, received"),
        ("max_length", 1, "max_length must be an integer of at least 2, received.*1"),
        ("max_length", -1, "max_length must be an integer of at least 2, received.*-1"),
        ("min_length", -1, "min_length must be an integer of at least 0, received.*-1"),
    ],
)  # fmt: skip
def test_invalid_settings_are_invalid_arguments(symmetric, name, value, message):
    generator = symmetric.generator(GenerationConfig())
    rows = per_row([GenerationConfig()] * 2)
    values = list(rows[name].numpy())
    rows[name] = tf.constant([values[0], value], rows[name].dtype)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        generator.function(*batch(SOURCES[:2]), rows)


def test_missing_hypotheses_are_empty_with_a_finite_score(symmetric):
    generation = GenerationConfig(
        max_length=3,
        num_beams=4,
        num_return_sequences=4,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
    )
    ((token_ids, scores),) = generate(symmetric, SOURCES[:1], [generation])
    assert token_ids == [[2, 0, 2], [], [], []]
    assert scores[0] == 0 and set(scores[1:]) == {float(np.finfo(np.float32).min)}
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


class MadeUpBart(GraphBart):
    """A model with six tokens and random weights."""

    def __init__(self):
        config = BartConfig(
            vocabulary_size=6,
            num_layers=1,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=8,
            max_sequence_length=16,
        )
        random = np.random.default_rng(0)
        shapes = {row.name: row.shape for row in weight_names.weights(config)}
        self.bart = bart_of(
            InferenceParameters(
                config, lambda name: random.normal(size=shapes[name]).astype(np.float32)
            )
        )


@pytest.mark.parametrize("beams", [1, 4])
def test_a_row_without_allowed_tokens_stops_alone(beams):
    common = GenerationConfig(num_beams=beams, no_repeat_ngram_size=1, max_length=9)
    stuck = dataclasses.replace(common, min_length=9)
    received = generate(MadeUpBart(), [[0, 3, 2]] * 2, [stuck, common])
    alone = generate(MadeUpBart(), [[0, 3, 2]], [common])
    assert_same(received[1:], alone)
    ((token_ids, scores),) = received[:1]
    assert np.isfinite(scores).all()
    assert token_ids == [[]] if beams > 1 else set(token_ids[0]) == set(range(6)) - {2} | {2}
    assert len(token_ids[0]) == (0 if beams > 1 else 6)


def test_more_beams_than_continuations(symmetric):
    generation = GenerationConfig(num_beams=9, num_return_sequences=9, max_length=3)
    ((token_ids, scores),) = generate(MadeUpBart(), [[0, 3, 2]], [generation])
    found = [tuple(one) for one in token_ids if one]
    assert len(set(found)) == len(found) == 9
    assert scores == sorted(scores, reverse=True)


def test_sampling_and_unknown_tokens_are_rejected(symmetric):
    for generation in (
        GenerationConfig(do_sample=True),
        GenerationConfig(eos_token_id=1024),
    ):
        with pytest.raises(errors.ConfigurationError):
            symmetric.generator(generation)(SOURCES[:1], [GenerationConfig()])


@pytest.mark.parametrize("beams", [1, 4])
def test_the_graph_contains_no_python_and_no_xla(symmetric, beams):
    generator = symmetric.generator(GenerationConfig(num_beams=beams, no_repeat_ngram_size=3))
    graph = generator.function.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
    operators = {node.op for node in nodes}
    assert {"While", "InplaceUpdate"} <= operators
    assert not {one for one in operators if "Py" in one or "Xla" in one or "Dataset" in one}
    attributes = [*nodes, *graph.library.function]
    assert not [one for one in attributes if one.attr["_XlaMustCompile"].b]
    # After a gather from a variable, TensorFlow copies it at every read.
    assert "ResourceGather" not in operators
