"""Batching parameters: the text that TensorFlow Serving reads, and what it refuses."""

import pytest
from google.protobuf import text_format

from bart_export.server import messages
from bart_export.server.batching import Parameters, read_parameters
from bart_export.server.status import Code, StatusError

ALL_FIELDS = """
max_batch_size { value: 8 } batch_timeout_micros { value: 7 } max_enqueued_batches { value: 6 }
num_batch_threads { value: 5 } thread_pool_name { value: "pool" } allowed_batch_sizes: 4
allowed_batch_sizes: 8 pad_variable_length_inputs: true
enable_large_batch_splitting { value: true } max_execution_batch_size { value: 3 }
"""


def test_every_field_of_the_message_is_read(tmp_path):
    path = tmp_path / "parameters"
    path.write_text(ALL_FIELDS)
    parameters = read_parameters(path)
    assert parameters == Parameters(
        max_batch_size=8,
        batch_timeout_micros=7,
        max_enqueued_batches=6,
        num_batch_threads=5,
        thread_pool_name="pool",
        allowed_batch_sizes=(4, 8),
        pad_variable_length_inputs=True,
        enable_large_batch_splitting=True,
        max_execution_batch_size=3,
    )
    message = text_format.Parse(ALL_FIELDS, messages.BatchingParameters())
    assert len(message.ListFields()) == len(message.DESCRIPTOR.fields)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_batch_size: 8", "Expected"),
        ("max_batch { value: 8 }", "no field named"),
        ("max_batch_size {}", "max_batch_size must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        ("max_enqueued_batches { value: -1 }", "max_enqueued_batches must be non-negative; was -1"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        (
            f"batch_timeout_micros {{ value: {2**63 - 1} }}",
            f"batch_timeout_micros must be at most 3600000000; was {2**63 - 1}",
        ),
        ("num_batch_threads { value: 257 }", "num_batch_threads must be at most 256; was 257"),
        (
            "max_batch_size { value: 10001 } allowed_batch_sizes: 1 allowed_batch_sizes: 10001",
            "max_batch_size must be at most 10000; was 10001",
        ),
        (
            f"max_enqueued_batches {{ value: {2**62} }}",
            f"max_enqueued_batches must be at most {2**31}; was {2**62}",
        ),
        (
            "allowed_batch_sizes: 1 " * 1001,
            "The number of allowed_batch_sizes must be at most 1000; was 1001",
        ),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 4",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; "
            "expected 8",
        ),
        ("allowed_batch_sizes: 1", "last entry was 1; expected 1000"),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 2 allowed_batch_sizes: 2 "
            "allowed_batch_sizes: 4",
            "allowed_batch_sizes entries must be monotonically increasing; were 2, 2, 4",
        ),
        (
            "max_batch_size { value: 4 } max_execution_batch_size { value: 5 }",
            "max_execution_batch_size must be at most max_batch_size, 4; was 5",
        ),
        ("\xff", "codec"),
        (None, "No such file"),
    ],
)
def test_wrong_parameters_are_refused_by_name(tmp_path, text, reason):
    path = tmp_path / "parameters"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(StatusError) as refused:
        read_parameters(path)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.message.startswith(str(path))
    assert reason in refused.value.message
    assert "\n" not in refused.value.message
