"""SavedModels run as in TensorFlow Serving, whose messages were recorded from a real server."""

import re
import shutil
import threading
import time

import numpy as np
import pytest
from support.command import python
from support.made_up_saved_models import (
    example,
    floats,
    strings,
    write_assorted,
    write_half_plus_two,
)
from support.served_directories import wait_until

from bart_export.server import open_version, tensorflow_engine
from bart_export.server.metrics import Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.servable import QUEUE_FULL, Call, Limits
from bart_export.server.status import Code, StatusError
from bart_export.server.versions import TENSORFLOW, ServedModel

THREE, FOREVER = np.array([3], np.int32), np.array([2**31 - 1], np.int32)


@pytest.fixture(scope="module")
def assorted_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("assorted") / "1"
    write_assorted(directory)
    # The asset must come from the SavedModel, not from where it was.
    (directory.parent / "vocabulary.txt").unlink()
    return directory


@pytest.fixture(scope="module")
def half_plus_two_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("half_plus_two") / "123"
    write_half_plus_two(directory)
    return directory


@pytest.fixture(scope="module")
def assorted(assorted_directory):
    servable = tensorflow_engine.open_saved_model(assorted_directory, ServeOptions())
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def half_plus_two(half_plus_two_directory):
    servable = tensorflow_engine.open_saved_model(half_plus_two_directory, ServeOptions())
    yield servable
    servable.close()


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


def call(signature, outputs, limits=None, **inputs):
    return Call(
        signature=signature, inputs=inputs, outputs=tuple(outputs), limits=limits or Limits()
    )


def answer(servable, signature, *outputs, limits=None, **inputs):
    """Return the values of some outputs of a call."""
    result = servable.submit(call(signature, outputs, limits, **inputs)).result(60)
    return [result[name] for name in outputs]


def error_of(future):
    error = future.exception(60)
    assert isinstance(error, StatusError)
    return error.code, error.message


def test_half_plus_two(half_plus_two):
    (y,) = answer(half_plus_two, "serving_default", "y", x=floats([1.0], [2.0], [5.0]))
    assert (y.tolist(), y.dtype) == ([[2.5], [3.0], [4.5]], np.float32)
    inputs = strings(example(x=2.0), example(x=20.0))
    (values,) = answer(half_plus_two, "classify_x_to_y", "scores", inputs=inputs)
    assert values.tolist() == [[3.0], [12.0]]


def test_signature_defs_have_dtypes_shapes_methods_and_defaults(assorted, half_plus_two):
    scale = assorted.signature_defs["scale"]
    assert {name: info.dtype for name, info in scale.inputs.items()} == {"x": 1, "factor": 1}
    assert scale.inputs["x"].tensor_shape.dim[0].size == -1
    assert list(scale.defaults["factor"].float_val) == [3.0]
    assert half_plus_two.signature_defs["regress_x_to_y"].method_name == (
        "tensorflow/serving/regress"
    )


STRINGS = [b"a\xff\x00b", "ü".encode(), b""]
# A signature, its inputs, and the outputs to ask for, in this order.
ANSWERS = {
    "strings": ("echo", {"text": strings(*STRINGS)}, {"text": strings(*STRINGS)}),
    "no strings": ("echo", {"text": strings()}, {"text": strings()}),
    "scalar": ("scalar", {"x": np.float32(1)}, {"y": np.array(2, np.float32)}),
    "asset": (
        "lookup",
        {"text": strings(b"two", b"zero", b"three")},
        {"ids": np.array([2, 0, -1])},
    ),
    "default": ("scale", {"x": floats(1, 2)}, {"product": floats(3, 6)}),
    "no default": ("scale", {"x": floats(1), "factor": floats(5)}, {"product": floats(5)}),
    "one output": ("scale", {"x": floats(6)}, {"quotient": floats(2)}),
    "order": ("scale", {"x": floats(6)}, {"quotient": floats(2), "product": floats(18)}),
    "another rank": ("scale", {"x": floats([1, 2], [3, 4])}, {"product": floats([3, 6], [9, 12])}),
    "rank 0": ("scale", {"x": np.float32(1)}, {"product": floats(3)}),
    "strided": ("scale", {"x": floats(1, 2, 3, 4)[::2]}, {"product": floats(3, 9)}),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_outputs(assorted, case):
    signature, inputs, expected = ANSWERS[case]
    outputs = assorted.submit(call(signature, expected, **inputs)).result(60)
    assert list(outputs) == list(expected)
    for name, array in expected.items():
        assert type(outputs[name]) is np.ndarray
        np.testing.assert_array_equal(outputs[name], array, strict=True)


# A signature, its inputs, and what TensorFlow says of them.
WRONG = {
    "dtype": (
        "scale", {"x": np.array([1], np.int32)},
        r"Expects arg\[1\] to be float but int32 is provided",
    ),
    "strings": (
        "echo", {"text": floats(1)}, r"Expects arg\[0\] to be string but float is provided"
    ),
    "kernel": (
        "scale", {"x": floats(1, 2), "factor": floats(1, 2, 3)},
        r"Incompatible shapes: \[[23]\] vs\. \[[23]\]",
    ),
    "no tensors": ("__saved_model_init_op", {}, ".*NoOp.*"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_get_tensorflows_message(assorted, case):
    signature, inputs, message = WRONG[case]
    outputs = list(assorted.signature_defs[signature].outputs)
    code, text = error_of(assorted.submit(call(signature, outputs, **inputs)))
    assert code is Code.INVALID_ARGUMENT
    assert re.fullmatch(message, text)


def test_a_run_stops_at_its_deadline(assorted):
    limits = Limits(deadline=time.monotonic() + 0.3)
    future = assorted.submit(call("count", ["steps"], limits, steps=FOREVER))
    assert error_of(future) == (Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
    # The thread is free again, so the run has really ended.
    assert answer(assorted, "count", "steps", steps=THREE)[0].tolist() == [3]


def hold(servable):
    """Let runs of "count" wait, and return the event that they wait for."""
    run, released = servable.run, threading.Event()

    def wait_and_run(signature, *arguments):
        assert signature != "count" or released.wait(60)
        return run(signature, *arguments)

    servable.run = wait_and_run
    return released


@pytest.mark.parametrize(("code", "seconds"), [(Code.CANCELLED, 60), (Code.DEADLINE_EXCEEDED, 0.5)])
def test_cancelled_and_late_calls_are_not_run(opened, code, seconds):
    servable = opened(workers=1)
    released = hold(servable)
    servable.submit(call("count", ["steps"], steps=THREE))
    with pytest.raises(StatusError) as refused:
        servable.submit(call("echo", ["text"], Limits(deadline=0.0), text=strings(b"a")))
    assert refused.value.code is Code.DEADLINE_EXCEEDED
    limits = Limits(deadline=time.monotonic() + seconds)
    waiting = servable.submit(call("count", ["steps"], limits, steps=FOREVER))
    if code is Code.CANCELLED:
        limits.stop.set()
    wait_until(lambda: limits.stop.is_set() or limits.remaining() == 0)
    released.set()
    assert error_of(waiting)[0] is code


def test_calls_are_refused_while_the_queue_is_full(opened):
    servable = opened(workers=1, queue_size=2)
    released = hold(servable)
    steps = THREE, THREE, floats([3])
    accepted = [servable.submit(call("count", ["steps"], steps=each)) for each in steps]
    with pytest.raises(StatusError) as refused:
        servable.submit(call("echo", ["text"], text=strings(b"a")))
    assert (refused.value.code, refused.value.message) == (Code.UNAVAILABLE, QUEUE_FULL)
    released.set()
    assert [future.exception(60) is None for future in accepted] == [True, True, False]
    # Room is made as calls end, whether well or not.
    assert answer(servable, "echo", "text", text=strings(b"a"))[0].tolist() == [b"a"]


def test_workers_run_in_parallel(opened):
    servable = opened(workers=2)
    released = hold(servable)
    busy = servable.submit(call("count", ["steps"], steps=THREE))
    assert answer(servable, "echo", "text", text=strings(b"a"))[0].tolist() == [b"a"]
    assert not busy.done()
    released.set()


def test_streaming_is_refused(assorted):
    with pytest.raises(StatusError, match="LiteRT engine") as refused:
        assorted.stream("a", {}, lambda *_: None, Limits())
    assert refused.value.code is Code.UNIMPLEMENTED
    assert not assorted.streams


def with_short_variables(directory):
    (path,) = (directory / "variables").glob("*.data-*")
    path.write_bytes(path.read_bytes()[:3])


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: (directory / "saved_model.pb").unlink(),
        lambda directory: (directory / "saved_model.pb").write_bytes(b"\xff\x00garbage"),
        lambda directory: shutil.rmtree(directory / "variables"),
        with_short_variables,
    ],
    ids=["no graph", "garbage", "no variables", "short variables"],
)
def test_the_error_for_a_damaged_model_is_one_line(
    half_plus_two_directory, tmp_path, opened, capfd, damage
):
    directory = shutil.copytree(half_plus_two_directory, tmp_path / "1")
    damage(directory)
    with pytest.raises(StatusError) as refused:
        opened(directory)
    message = refused.value.message
    assert message.startswith(f"{directory} must hold a SavedModel with the tag 'serve', but ")
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_tensorflow_prints_nothing(half_plus_two_directory):
    program = """
import pathlib, sys
import numpy as np
from bart_export.server import tensorflow_engine
from bart_export.server.options import ServeOptions
from bart_export.server.servable import Call
servable = tensorflow_engine.open_saved_model(pathlib.Path(sys.argv[1]), ServeOptions())
call = Call(signature="classify_x_to_y", inputs={"inputs": np.array([b"no example"], object)},
            outputs=("scores",))
assert "parse" in str(servable.submit(call).exception())
servable.close()
"""
    run = python(program, half_plus_two_directory)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("Graph execution error:\n\nRead less.\nBut\n\t [[{{node R}}]]", "Read less. But"),
        (
            "2 root error(s) found.\n  (0) INVALID_ARGUMENT: Too long\n\t [[{{node a}}]]\n"
            "\t [[b]]\n  (1) INVALID_ARGUMENT: Too long\n\t [[{{node a}}]]\n"
            "0 successful operations.\n0 derived errors ignored.",
            "Too long",
        ),
    ],
)
def test_messages_have_one_line_and_no_node_names(message, line):
    assert tensorflow_engine.without_nodes(message) == line


BATCHES_OF_FOUR = "max_batch_size { value: 4 } batch_timeout_micros { value: 60000000 }"


def with_parameters(directory, tmp_path, text):
    """Return a copy of a version directory with batching parameters."""
    copied = shutil.copytree(directory, tmp_path / "1")
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
    futures = [servable.submit(call("sums", ["sum", "rows"], x=x)) for x in inputs]
    results = [future.result(60) for future in futures]
    assert [result["sum"].tolist() for result in results] == [[3.0, 7.0], [11.0], [15.0]]
    assert [result["rows"].tolist() for result in results] == [[4, 4], [4], [4]]


def test_batching_can_be_disabled(assorted_directory, tmp_path, opened):
    directory = with_parameters(assorted_directory, tmp_path, BATCHES_OF_FOUR)
    servable = opened(directory, batching=False)
    assert servable.submit(call("sums", ["rows"], x=floats([1, 2]))).result(60)[
        "rows"
    ].tolist() == [1]


def test_defaults_are_repeated_for_each_row_of_a_batch(assorted_directory, tmp_path, opened):
    servable = opened(with_parameters(assorted_directory, tmp_path, BATCHES_OF_FOUR))
    calls = [{"x": floats(1, 2)}, {"x": floats(3)}, {"x": floats(4), "factor": floats(5)}]
    futures = [servable.submit(call("scale", ["product"], **inputs)) for inputs in calls]
    products = [future.result(60)["product"].tolist() for future in futures]
    assert products == [[3.0, 6.0], [9.0], [20.0]]


BATCH_AT_ONCE = "max_batch_size { value: 4 }"
INVALID = Code.INVALID_ARGUMENT
# A signature, its outputs and inputs, and the code and words of the refusal.
NOT_BATCHED = {
    "scalar output": (
        "sums", "total", {"x": floats([1])},
        Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions",
    ),
    "too many rows": (
        "sums", "sum", {"x": np.ones([5, 1], np.float32)},
        INVALID, "Task size 5 is larger than maximum input batch size 4",
    ),
    "dtype": (
        "sums", "sum", {"x": np.ones([1, 1], np.int32)},
        INVALID, "Expects arg[0] to be float but int32 is provided",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_BATCHED)
def test_calls_that_cannot_be_batched_are_refused(assorted_directory, tmp_path, opened, case):
    signature, output, inputs, code, message = NOT_BATCHED[case]
    servable = opened(with_parameters(assorted_directory, tmp_path, BATCH_AT_ONCE))
    with pytest.raises(StatusError) as refused:
        servable.submit(call(signature, [output], **inputs)).result(60)
    assert (refused.value.code, refused.value.message) == (code, message)


def test_invalid_batching_parameters_fail_the_load(assorted_directory, tmp_path, opened):
    text = "max_batch_size { value: 8 } allowed_batch_sizes: 4"
    with pytest.raises(StatusError, match="last entry was 4; expected 8"):
        opened(with_parameters(assorted_directory, tmp_path, text))


@pytest.fixture(scope="module")
def exported(saved_model_artifact):
    """Return an export's servables with and without batching."""
    version = saved_model_artifact.directory / "saved_model/1"
    served = ServedModel(name="m", base_path=version.parent, engine=TENSORFLOW)
    options = [
        ServeOptions(workers=1, warmup=False, batching=batching) for batching in (True, False)
    ]
    servables = [open_version.opener(each, Metrics())(served, 1, version) for each in options]
    yield servables
    for servable in servables:
        servable.close()


def test_a_split_call_has_the_outputs_of_a_single_batch(exported):
    """The longest rows of the parts differ."""
    texts = [b"A library.", *[b"A"] * 7, b"A much longer text about a library that reads.", b""]

    def answer(signature, **inputs):
        outputs = tuple(exported[0].signature_defs[signature].outputs)
        return [one.submit(call(signature, outputs, **inputs)).result(60) for one in exported]

    batched, whole = answer("tokenize", text=strings(*texts))
    np.testing.assert_equal(batched, whole)
    assert whole["encoder_lengths"][8] > whole["encoder_lengths"][:8].max()
    lengths = np.array([4] * 9 + [9], np.int32)
    batched, whole = answer("generate", **whole, max_length=lengths, min_length=lengths)
    scores = [batched.pop("scores"), whole.pop("scores")]
    np.testing.assert_equal(batched, whole)
    np.testing.assert_allclose(*scores, rtol=1e-4)
    assert np.unique(whole["decoder_lengths"]).tolist() == [4, 9]
