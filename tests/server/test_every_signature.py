"""Every signature of the contract with both engines over gRPC and REST: all answers agree.

The server runs whole, with the SavedModel and the `.tflite` file of one checkpoint; gRPC clients
are TensorFlow Serving's own stubs.
"""

import dataclasses
import json
import pathlib
import shutil

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from support.rest_server import running
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from bart_export import contract
from bart_export.export.options import SavedModelOptions, TfliteOptions
from bart_export.export.pipeline import export
from bart_export.recipes.table import RECIPES
from bart_export.runtime.generator import Generator
from bart_export.runtime.results import GeneratedSequence
from bart_export.server.options import ServeOptions
from bart_export.server.versions import LITERT, TENSORFLOW, ServedModel

CHECKPOINT = pathlib.Path(__file__).parents[1] / "data" / "golden" / "bart_tiny_symmetric"
BEAMS = {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 3, "max_length": 24,
         "forced_eos_token_id": 2, "early_stopping": True}  # fmt: skip
TEXTS = (
    "A library for reading and writing compressed archives.",
    "",
    "El r\u00edo creci\u00f3 dos metros \u2013 \u65e5\u672c\u8a9e \U0001f40d\u0000\n end",
    "word " * 300,
)
# One value for each text.
SETTINGS = {
    "max_length": (9, 30, 2, 17),
    "min_length": (0, 7, 2, 17),
    "length_penalty": (1.0, 0.0, 2.0, -0.5),
    "repetition_penalty": (1.0, 1.5, 1.2, 0.9),
    "early_stopping": ("true", "false", "never", "true"),
}
WORDS = {"true": True, "false": False, "never": "never"}
SIGNATURES = {signature.name: signature for signature in contract.saved_model_signatures()}
# Signatures of texts and ids only; the others return tensors of the model.
SHARED = ("serving_default", "generate_text", "generate", "tokenize", "detokenize")
ASKED = [(TENSORFLOW, name) for name in SIGNATURES] + [(LITERT, name) for name in SHARED]
TOLERANCE = 1e-3
NO_SCORE = float(np.finfo(np.float32).min)


@dataclasses.dataclass(frozen=True)
class Served:
    """A server whose models are named after their engines, and a generator for the answers."""

    port: int
    rest_api_port: int
    stub: prediction_service_pb2_grpc.PredictionServiceStub
    generator: Generator
    inputs: dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=["greedy", pytest.param("beams", marks=pytest.mark.slow)])
def directories(request, tmp_path_factory):
    """Return a checkpoint's artifacts for both targets, greedy or with beams."""
    if request.param == "greedy":
        artifacts = [
            request.getfixturevalue(f"{one}_artifact") for one in ("saved_model", "symmetric")
        ]
        return [artifact.directory for artifact in artifacts]
    preset = tmp_path_factory.mktemp("preset") / "bart_tiny_beams"
    shutil.copytree(CHECKPOINT, preset)
    file = preset / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **BEAMS}))
    output = tmp_path_factory.mktemp("artifacts") / preset.name
    export(str(preset), TfliteOptions((RECIPES["float32"],)), output)
    export(str(preset), SavedModelOptions(), output)
    return [output, output]


@pytest.fixture(scope="module")
def served(directories):
    """Serve both engines."""
    saved_model, tflite = directories
    models = [
        ServedModel(name=TENSORFLOW, base_path=saved_model / "saved_model", engine=TENSORFLOW),
        ServedModel(name=LITERT, base_path=tflite, engine=LITERT),
    ]
    generator = Generator.from_artifact(tflite)
    with (
        running(models, ServeOptions(port=0, rest_api_port=0)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield Served(
            server.port,
            server.rest_api_port,
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            generator,
            inputs_of(generator),
        )


def inputs_of(generator):
    """Return the inputs of a request for each signature, with equal numbers of rows."""
    sources = [generator.encode(text, truncate=True) for text in TEXTS]
    targets = [list(generator.generate_ids(source, max_length=12).token_ids) for source in sources]
    settings = {
        tensor.name: np.array(SETTINGS[tensor.name], array_dtype(tensor))
        for tensor in contract.GENERATION_INPUTS
    }
    text = {"text": np.array(TEXTS, object)}
    source = padded("encoder", sources)
    target = padded("decoder", targets)
    forward = np.load(CHECKPOINT / "forward.npz")
    ones = np.ones_like(forward["decoder_token_ids"])
    return {
        "serving_default": text,
        "generate_text": text | settings,
        "generate": source | settings,
        "encode": source,
        "score": source | target,
        "backbone": {
            "encoder_token_ids": forward["encoder_token_ids"],
            "encoder_padding_mask": forward["encoder_padding_mask"],
            "decoder_token_ids": forward["decoder_token_ids"],
            "decoder_padding_mask": ones,
        },
        "tokenize": text,
        "detokenize": target,
    }


def padded(side, rows):
    """Return ids and lengths; ids beyond the lengths would change an answer that read them."""
    ids = np.full((len(rows), max(map(len, rows))), 77, np.int32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    return {
        f"{side}_token_ids": ids,
        f"{side}_lengths": np.array([len(row) for row in rows], np.int32),
    }


def array_dtype(tensor):
    return object if tensor.dtype == "string" else tensor.dtype


def over_grpc(served, model, signature, inputs):
    """Call Predict with the official stub; return the outputs."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    response = served.stub.Predict(request, timeout=60)
    assert response.model_spec.name == model
    assert response.model_spec.signature_name == signature
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def over_rest(served, model, signature, inputs, by_row):
    """Predict over REST; return the outputs as over gRPC."""
    given = {name: value.tolist() for name, value in inputs.items()}
    if by_row:
        rows = [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]
        body = {"signature_name": signature, "instances": rows}
    else:
        body = {"signature_name": signature, "inputs": given}
    url = f"http://127.0.0.1:{served.rest_api_port}/v1/models/{model}:predict"
    response = requests.post(url, json=body, timeout=60)
    assert response.status_code == 200, response.text
    tensors = SIGNATURES[signature].outputs
    if by_row:
        rows = response.json()["predictions"]
        rows = [row if len(tensors) > 1 else {tensors[0].name: row} for row in rows]
        outputs = {name: [row[name] for row in rows] for name in rows[0]}
    else:
        outputs = response.json()["outputs"]
        outputs = outputs if len(tensors) > 1 else {tensors[0].name: outputs}
    dtypes = {tensor.name: array_dtype(tensor) for tensor in tensors}
    return {name: array_of(value, dtypes[name]) for name, value in outputs.items()}


def array_of(value, dtype):
    """Return JSON's lists as an array; strings become bytes."""
    array = np.array(value, dtype)
    if dtype is object:
        array = np.vectorize(str.encode, otypes=[object])(array)
    return array


def check_equal(received, expected, tolerance=0.0):
    """Compare outputs; floats may differ by a tolerance."""
    assert set(received) == set(expected)
    for name, array in expected.items():
        assert received[name].dtype == array.dtype, name
        assert received[name].shape == array.shape, name
        if array.dtype == np.float32:
            np.testing.assert_allclose(received[name], array, rtol=0, atol=tolerance, err_msg=name)
        else:
            assert received[name].tolist() == array.tolist(), name


def generated(served, row, **settings):
    """Return the sequences generated from a text's ids, padded with empty ones."""
    source = served.generator.encode(TEXTS[row], truncate=True)
    sequences = served.generator.generate_ids(source, **settings).sequences
    missing = served.generator.generation.num_return_sequences - len(sequences)
    return [*sequences, *[GeneratedSequence("", (), NO_SCORE)] * missing]


def from_text(served, row, **settings):
    """Return the sequences for a text; those of a blank text are empty."""
    if TEXTS[row].strip():
        return generated(served, row, **settings)
    return [GeneratedSequence("", (), 0.0)] * served.generator.generation.num_return_sequences


def settings_of(row):
    """Return a text's settings for the generator."""
    settings = {name: values[row] for name, values in SETTINGS.items()}
    return settings | {"early_stopping": WORDS[settings["early_stopping"]]}


def test_every_signature_of_the_contract_is_asked(served):
    assert set(served.inputs) == set(SIGNATURES)
    for name, inputs in served.inputs.items():
        assert set(inputs) == {tensor.name for tensor in SIGNATURES[name].inputs}


@pytest.mark.parametrize(("model", "signature"), ASKED)
def test_an_answer_over_rest_is_that_over_grpc(served, model, signature):
    inputs = served.inputs[signature]
    answer = over_grpc(served, model, signature, inputs)
    declared = {tensor.name: tensor for tensor in SIGNATURES[signature].outputs}
    assert {name: (array.ndim, array.dtype) for name, array in answer.items()} == {
        name: (len(tensor.axes), array_dtype(tensor)) for name, tensor in declared.items()
    }
    for by_row in (True, False):
        check_equal(over_rest(served, model, signature, inputs, by_row), answer)


@pytest.mark.parametrize("model", [TENSORFLOW, LITERT])
def test_texts_are_those_of_the_generator(served, model):
    answer = over_grpc(served, model, "serving_default", served.inputs["serving_default"])
    best = [from_text(served, row)[0].text for row in range(len(TEXTS))]
    assert [text.decode() for text in answer["generated_text"]] == best

    answer = over_grpc(served, model, "generate_text", served.inputs["generate_text"])
    for row, texts in enumerate(answer["generated_text"]):
        expected = from_text(served, row, **settings_of(row))
        assert [text.decode() for text in texts] == [one.text for one in expected]
        scores = [one.score for one in expected]
        assert answer["scores"][row] == pytest.approx(scores, abs=TOLERANCE)


@pytest.mark.parametrize("model", [TENSORFLOW, LITERT])
def test_ids_are_those_of_the_generator(served, model):
    answer = over_grpc(served, model, "generate", served.inputs["generate"])
    answers = set()
    for row, lengths in enumerate(answer["decoder_lengths"]):
        ids = [answer["decoder_token_ids"][row, place, :end].tolist()
               for place, end in enumerate(lengths)]  # fmt: skip
        expected = generated(served, row, **settings_of(row))
        assert ids == [list(one.token_ids) for one in expected]
        scores = [one.score for one in expected]
        assert answer["scores"][row] == pytest.approx(scores, abs=TOLERANCE)
        answers.add(str(ids))
    assert len(answers) == len(TEXTS)


@pytest.mark.parametrize("model", [TENSORFLOW, LITERT])
def test_text_and_ids_are_those_of_the_tokenizer(served, model):
    answer = over_grpc(served, model, "tokenize", served.inputs["tokenize"])
    for row, length in enumerate(answer["encoder_lengths"]):
        ids = answer["encoder_token_ids"][row, :length].tolist()
        assert ids == served.generator.encode(TEXTS[row], truncate=True)
    answer = over_grpc(served, model, "detokenize", served.inputs["detokenize"])
    expected = [generated(served, row, max_length=12)[0].text for row in range(len(TEXTS))]
    # The first word of a text has no leading space.
    assert [text.decode().removeprefix(" ") for text in answer["text"]] == expected


@pytest.mark.parametrize("model", [TENSORFLOW, LITERT])
@pytest.mark.parametrize("signature", ["generate_text", "generate"])
def test_settings_may_be_left_out_over_grpc(served, model, signature):
    made = from_text if signature == "generate_text" else generated
    settings = {tensor.name for tensor in contract.GENERATION_INPUTS}
    inputs = served.inputs[signature]
    bare = {name: value for name, value in inputs.items() if name not in settings}
    answer = over_grpc(served, model, signature, bare)
    expected = [made(served, row) for row in range(len(TEXTS))]
    scores = [[one.score for one in sequences] for sequences in expected]
    np.testing.assert_allclose(answer["scores"], scores, rtol=0, atol=TOLERANCE)
    # One setting given, the others left out.
    some = bare | {"max_length": inputs["max_length"]}
    answer = over_grpc(served, model, signature, some)
    expected = [made(served, row, max_length=SETTINGS["max_length"][row], min_length=0)
                for row in range(len(TEXTS))]  # fmt: skip
    scores = [[one.score for one in sequences] for sequences in expected]
    np.testing.assert_allclose(answer["scores"], scores, rtol=0, atol=TOLERANCE)
    refused = requests.post(
        f"http://127.0.0.1:{served.rest_api_port}/v1/models/{model}:predict",
        json={"signature_name": signature,
              "inputs": {name: value.tolist() for name, value in bare.items()}},
        timeout=60,
    )  # fmt: skip
    assert refused.status_code == 400
    assert "Missing named input: " in refused.json()["error"]


@pytest.mark.parametrize(("model", "signature"), ASKED)
def test_a_model_needs_a_row_and_a_tokenizer_none(served, model, signature):
    inputs = {name: value[:0] for name, value in served.inputs[signature].items()}
    if signature in ("tokenize", "detokenize"):
        answer = over_grpc(served, model, signature, inputs)
        assert {len(value) for value in answer.values()} == {0}
        return
    with pytest.raises(grpc.RpcError, match="to have at least one row, received none") as caught:
        over_grpc(served, model, signature, inputs)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    body = {"signature_name": signature, "inputs": {name: [] for name in inputs}}
    url = f"http://127.0.0.1:{served.rest_api_port}/v1/models/{model}:predict"
    refused = requests.post(url, json=body, timeout=60)
    assert refused.status_code == 400
    assert "to have at least one row, received none" in refused.json()["error"]


def test_tensors_are_the_golden_ones(served):
    forward = np.load(CHECKPOINT / "forward.npz")
    source, target = forward["encoder_token_ids"], forward["decoder_token_ids"]
    lengths = forward["encoder_padding_mask"].sum(1, dtype=np.int32)
    rows, width = target.shape
    outputs = over_grpc(served, TENSORFLOW, "backbone", served.inputs["backbone"])
    real = forward["encoder_padding_mask"] == 1
    expected = forward["encoder_sequence_output"][real]
    np.testing.assert_allclose(outputs["encoder_sequence_output"][real], expected, atol=TOLERANCE)
    np.testing.assert_allclose(
        outputs["decoder_sequence_output"], forward["decoder_sequence_output"], atol=TOLERANCE
    )
    sources = {"encoder_token_ids": source, "encoder_lengths": lengths}
    outputs = over_grpc(served, TENSORFLOW, "encode", sources)
    np.testing.assert_allclose(outputs["encoder_sequence_output"][real], expected, atol=TOLERANCE)
    targets = {"decoder_token_ids": target, "decoder_lengths": np.full(rows, width, np.int32)}
    outputs = over_grpc(served, TENSORFLOW, "score", sources | targets)
    logits = tf.nn.log_softmax(forward["logits"][:, :-1]).numpy()
    expected = np.take_along_axis(logits, target[:, 1:, None], 2)[..., 0]
    np.testing.assert_allclose(outputs["log_probabilities"][:, 1:], expected, atol=TOLERANCE)
    assert not outputs["log_probabilities"][:, 0].any()


def grpc_metadata(served, model):
    """Return the SignatureDefs of a model."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = model
    packed = served.stub.GetModelMetadata(request, timeout=60).metadata["signature_def"]
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert packed.Unpack(signatures)
    return signatures.signature_def


def tensors_of(signature_def, side):
    """Return {name: (dtype, sizes)} of a SignatureDef's tensors."""
    return {
        name: (info.dtype, [dim.size for dim in info.tensor_shape.dim])
        for name, info in getattr(signature_def, side).items()
    }


def test_metadata_of_both_engines_names_the_same_tensors(served):
    tensorflow, litert = (grpc_metadata(served, model) for model in (TENSORFLOW, LITERT))
    assert {name for name in tensorflow if not name.startswith("__")} == set(SIGNATURES)
    assert set(litert) == set(SHARED)
    for name in SHARED:
        for side in ("inputs", "outputs"):
            assert tensors_of(tensorflow[name], side) == tensors_of(litert[name], side), name
        assert tensorflow[name].method_name == litert[name].method_name
