"""Warm-up requests are TensorFlow's own records, and call every signature as a client would."""

import collections

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from bart_export import contract
from bart_export.errors import EngineError
from bart_export.export.warm_up import (
    MAX_BATCH_SIZE,
    largest_request,
    measure_memory,
    write_requests,
)
from bart_export.runtime.generator import ModelInfo
from bart_export.server import messages
from bart_export.verify.golden import TEXTS

SIGNATURES = {signature.name: signature for signature in contract.saved_model_signatures()}


@pytest.fixture(scope="module")
def requests(saved_model_artifact):
    """Return the requests, read by TensorFlow and by the official messages."""
    version = saved_model_artifact.directory / "saved_model/1"
    path = version / "assets.extra/tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset([str(path)]).as_numpy_iterator()
    return [
        prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        for record in records
    ]


def arrays(request):
    return {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}


def test_every_signature_is_called_with_every_input_of_the_contract(requests):
    called = collections.Counter(request.model_spec.signature_name for request in requests)
    assert called == {**dict.fromkeys(SIGNATURES, 1), "generate_text": 3, "generate": 3}
    for request in requests:
        declared = {
            tensor.name: tensor for tensor in SIGNATURES[request.model_spec.signature_name].inputs
        }
        given = arrays(request)
        assert set(given) == set(declared)
        for name, array in given.items():
            dtype = "object" if declared[name].dtype == "string" else declared[name].dtype
            assert (array.dtype, array.ndim) == (dtype, len(declared[name].axes)), name
        assert len({len(array) for array in given.values()}) == 1


def test_what_generates_is_called_alone_in_a_full_batch_and_with_the_longest_source(
    requests, saved_model_artifact
):
    longest = saved_model_artifact.manifest.encoder_sequence_length
    shapes = [
        arrays(request)["encoder_token_ids"].shape
        for request in requests
        if request.model_spec.signature_name == "generate"
    ]
    assert shapes[1:] == [(MAX_BATCH_SIZE, shapes[0][1]), (1, longest)]
    assert shapes[0][0] == 1
    assert shapes[0][1] <= longest


def test_warming_up_generates_few_tokens(requests):
    lengths = [arrays(one)["max_length"] for one in requests if "max_length" in one.inputs]
    assert lengths
    assert all((length == 8).all() for length in lengths)


def test_memory_is_measured_with_a_full_batch_of_the_longest_source(saved_model_artifact):
    given = arrays(largest_request(ModelInfo.from_artifact(saved_model_artifact), TEXTS[0]))
    longest = saved_model_artifact.manifest.encoder_sequence_length
    assert given["encoder_token_ids"].shape == (MAX_BATCH_SIZE, longest)
    assert (given["encoder_lengths"] == longest).all()


def test_a_version_that_does_not_serve_its_warm_up_is_found_out(saved_model_artifact, tmp_path):
    version = tmp_path / "2"
    version.mkdir()
    for name in ("saved_model.pb", "variables"):
        (version / name).symlink_to(saved_model_artifact.directory / "saved_model/1" / name)
    wrong = messages.PredictRequest()
    wrong.model_spec.signature_name = "tokenise"
    write_requests(version, [wrong])
    with pytest.raises(EngineError, match='Version 2 .*[Ww]armup record 1 .*"?tokenise'):
        measure_memory(version, wrong)
