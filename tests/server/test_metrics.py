"""Metrics as read by Prometheus' own parser, under TensorFlow Serving's names."""

import asyncio
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bart_export.errors import InputError
from bart_export.server.metrics import Metrics
from bart_export.server.status import Code, StatusError

IN_PROGRESS = (":bart_export:requests_in_progress", (("model_name", "m"),))


def samples(metrics):
    """Return {(name, sorted label pairs): value}."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StatusError(Code.UNAVAILABLE, "full"), "UNAVAILABLE"),
        (InputError("too long"), "INVALID_ARGUMENT"),
        (asyncio.CancelledError(), "CANCELLED"),
        (KeyError("x"), "INTERNAL"),
    ],
)
def test_a_request_that_fails_is_counted_by_its_code_and_not_timed(error, status):
    metrics = Metrics()
    assert samples(metrics) == {}
    kind = StatusError if isinstance(error, Exception) else type(error)
    with pytest.raises(kind) as raised, metrics.request("m", "predict", "REST"):
        raise error
    assert error in (raised.value, raised.value.__cause__)
    read = samples(metrics)
    labels = (("model_name", "m"), ("status", status))
    assert read.pop((":tensorflow:serving:request_count", labels)) == 1
    assert read.pop(IN_PROGRESS) == 0
    assert read == {}


def test_a_request_is_in_progress_until_it_is_counted_and_timed():
    metrics = Metrics()
    began = time.perf_counter()
    with metrics.request("m", "predict", "REST"):
        assert samples(metrics) == {IN_PROGRESS: 1}
    microseconds = 1e6 * (time.perf_counter() - began)
    read = samples(metrics)
    labels = (("API", "predict"), ("entrypoint", "REST"), ("model_name", "m"))
    assert read[IN_PROGRESS] == 0
    count = (":tensorflow:serving:request_count", (("model_name", "m"), ("status", "OK")))
    assert read[count] == 1
    assert read[":tensorflow:serving:request_latency_count", labels] == 1
    assert 0 < read[":tensorflow:serving:request_latency_sum", labels] < microseconds
