"""A SavedModel in batches: the scheduler in front of a real session."""

import shutil

import numpy as np
import pytest
from support.made_up_saved_models import floats, strings, write_assorted

from bart_export.server import opening, tensorflow_engine
from bart_export.server.metrics import Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call
from bart_export.server.sources import TENSORFLOW, ServedModel
from bart_export.server.status import Code, StatusError


@pytest.fixture(scope="module")
def assorted_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("assorted") / "1"
    write_assorted(directory)
    return directory


@pytest.fixture
def opened(assorted_directory):
    """Return a function that opens the assorted model with options, for one test."""
    servables = []

    def open_with(directory=assorted_directory, **options):
        servables.append(tensorflow_engine.open_saved_model(directory, ServeOptions(**options)))
        return servables[-1]

    yield open_with
    for servable in servables:
        servable.close()


def submit(servable, signature, *outputs, **inputs):
    return servable.submit(Call(signature=signature, inputs=inputs, outputs=outputs))


BATCHES_OF_FOUR = "max_batch_size { value: 4 } batch_timeout_micros { value: 60000000 }"


def with_parameters(directory, tmp_path, text):
    """Return a copy of a version directory that has its own batching parameters."""
    copied = tmp_path / "1"
    shutil.copytree(directory, copied)
    (copied / "batching_params.pbtxt").write_text(text)
    return copied


@pytest.mark.parametrize("own", [True, False], ids=["of the model", "of the server"])
def test_calls_are_batched_by_parameters(assorted_directory, tmp_path, opened, own):
    text = BATCHES_OF_FOUR + " num_batch_threads { value: 1 }"
    if own:
        servable = opened(with_parameters(assorted_directory, tmp_path, text))
    else:
        (tmp_path / "parameters").write_text(text)
        servable = opened(batching_parameters_file=tmp_path / "parameters")
    inputs = [floats([1, 2], [3, 4]), floats([5, 6]), floats([7, 8])]
    futures = [submit(servable, "sums", "sum", "rows", x=x) for x in inputs]
    results = [future.result(60) for future in futures]
    assert [result["sum"].tolist() for result in results] == [[3.0, 7.0], [11.0], [15.0]]
    assert [result["rows"].tolist() for result in results] == [[4, 4], [4], [4]]


def test_nothing_is_batched_unless_asked(assorted_directory, tmp_path, opened):
    directory = with_parameters(assorted_directory, tmp_path, BATCHES_OF_FOUR)
    servable = opened(directory, batching=False)
    assert submit(servable, "sums", "rows", x=floats([1, 2])).result(60)["rows"].tolist() == [1]


def test_defaults_count_for_each_row_of_a_batch(assorted_directory, tmp_path, opened):
    servable = opened(with_parameters(assorted_directory, tmp_path, BATCHES_OF_FOUR))
    calls = [{"x": floats(1, 2)}, {"x": floats(3)}, {"x": floats(4), "factor": floats(5)}]
    futures = [submit(servable, "scale", "product", **inputs) for inputs in calls]
    products = [future.result(60)["product"].tolist() for future in futures]
    assert products == [[3.0, 6.0], [9.0], [20.0]]


BATCH_AT_ONCE = "max_batch_size { value: 4 }"


@pytest.mark.parametrize(
    ("signature", "outputs", "inputs", "code", "message"),
    [
        (
            "scalar",
            ["y"],
            {"x": np.float32(1)},
            Code.INVALID_ARGUMENT,
            "Batching Run() input tensors must have at least one dimension",
        ),
        (
            "sums",
            ["total"],
            {"x": floats([1])},
            Code.FAILED_PRECONDITION,
            "Batched output tensor has 0 dimensions",
        ),
        (
            "scale",
            ["product"],
            {"x": floats(1, 2), "factor": floats(1, 2, 3)},
            Code.INVALID_ARGUMENT,
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
        (
            "sums",
            ["sum"],
            {"x": np.ones([5, 1], np.float32)},
            Code.INVALID_ARGUMENT,
            "Task size 5 is larger than maximum input batch size 4",
        ),
        (
            "sums",
            ["sum"],
            {"x": np.ones([1, 1], np.int32)},
            Code.INVALID_ARGUMENT,
            "Expects arg[0] to be float but int32 is provided",
        ),
    ],
    ids=["scalar input", "scalar output", "unequal rows", "too many rows", "dtype"],
)
def test_what_cannot_be_batched_is_refused(
    assorted_directory, tmp_path, opened, signature, outputs, inputs, code, message
):
    servable = opened(with_parameters(assorted_directory, tmp_path, BATCH_AT_ONCE))
    error = submit(servable, signature, *outputs, **inputs).exception(60)
    assert (error.code, error.message) == (code, message)


def test_wrong_parameters_refuse_the_model(assorted_directory, tmp_path, opened):
    text = "max_batch_size { value: 8 } allowed_batch_sizes: 4"
    with pytest.raises(StatusError, match="last entry was 4; expected 8"):
        opened(with_parameters(assorted_directory, tmp_path, text))


@pytest.fixture(scope="module")
def exported(saved_model_artifact):
    """Return an export as it is served, and as it answers without batching."""
    version = saved_model_artifact.directory / "saved_model/1"
    served = ServedModel(name="m", base_path=version.parent, engine=TENSORFLOW)
    options = [
        ServeOptions(workers=1, warmup=False, batching=batching) for batching in (True, False)
    ]
    servables = [opening.opener(each, Metrics())(served, 1, version) for each in options]
    yield servables
    for servable in servables:
        servable.close()


def test_more_rows_than_a_batch_has_are_answered_as_one_batch_would_be(exported):
    """Each part of a large request has its own longest row."""
    texts = [b"A library.", *[b"A"] * 7, b"A much longer text about a library that reads.", b""]

    def answer(signature, **inputs):
        outputs = tuple(exported[0].signature_defs[signature].outputs)
        return [submit(one, signature, *outputs, **inputs).result(60) for one in exported]

    batched, whole = answer("tokenize", text=strings(*texts))
    np.testing.assert_equal(batched, whole)
    assert whole["encoder_lengths"][8] > whole["encoder_lengths"][:8].max()
    lengths = np.array([4] * 9 + [9], np.int32)
    batched, whole = answer("generate", **whole, max_length=lengths, min_length=lengths)
    scores = [batched.pop("scores"), whole.pop("scores")]
    np.testing.assert_equal(batched, whole)
    np.testing.assert_allclose(*scores, rtol=1e-4)
    assert np.unique(whole["decoder_lengths"]).tolist() == [4, 9]
