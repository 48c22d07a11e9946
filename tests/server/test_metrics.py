"""The numbers as Prometheus reads them, under TensorFlow Serving's names."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bart_export.server.metrics import (
    FAMILIES,
    LATENCY,
    REQUEST_COUNT,
    REQUEST_LATENCY,
    Metrics,
)
from bart_export.server.status import Code, StatusError


def samples(metrics):
    """Return {(name, labels as sorted pairs): value}, as Prometheus' own parser reads them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition())
        for sample in family.samples
    }


def test_a_counter_has_the_name_that_tensorflow_serving_gives_it():
    metrics = Metrics()
    metrics.increment(REQUEST_COUNT, "m", "OK")
    metrics.increment(REQUEST_COUNT, "m", "OK", by=2)
    labels = (("model_name", "m"), ("status", "OK"))
    assert samples(metrics) == {(":tensorflow:serving:request_count", labels): 3}


def test_a_histogram_counts_what_is_at_most_each_bound():
    metrics = Metrics()
    for microseconds in (3, 10, 18, 19, 1e12):
        metrics.observe(REQUEST_LATENCY, microseconds, "m", "predict", "REST")
    buckets = [value for (name, _), value in samples(metrics).items() if name.endswith("_bucket")]
    assert (buckets[:4], buckets[-2:], len(buckets)) == ([2, 3, 4, 4], [4, 5], len(LATENCY) + 1)
    read = {name: value for (name, _), value in samples(metrics).items()}
    assert read[f"{REQUEST_LATENCY.name}_sum"] == 1000000000050
    assert read[f"{REQUEST_LATENCY.name}_count"] == 5
    assert 20 * 60 * 0.9 < LATENCY[-1] / 1e6 < 20 * 60 * 1.3


def test_prometheus_reads_back_every_family_and_any_label():
    metrics = Metrics()
    awkward = 'a "quoted" C:\\new\nline'
    for family in FAMILIES:
        labels = [awkward] * len(family.labels)
        if family.bounds:
            metrics.observe(family, 7, *labels)
        else:
            metrics.increment(family, *labels, by=7)
    read = samples(metrics)
    for family in FAMILIES:
        name = family.name + ("_sum" if family.bounds else "")
        assert read[name, tuple((label, awkward) for label in sorted(family.labels))] == 7


@pytest.mark.parametrize(
    ("error", "status", "refused"),
    [
        (StatusError(Code.INVALID_ARGUMENT, "no"), "INVALID_ARGUMENT", 0),
        (StatusError(Code.UNAVAILABLE, "full"), "UNAVAILABLE", 1),
        (asyncio.CancelledError(), "CANCELLED", 0),
        (KeyError("x"), "INTERNAL", 0),
    ],
)
def test_a_request_that_fails_is_counted_by_its_code_and_not_timed(error, status, refused):
    metrics = Metrics()
    with pytest.raises(type(error)), metrics.request("m", "predict", "REST"):
        raise error
    read = samples(metrics)
    assert read.pop((REQUEST_COUNT.name, (("model_name", "m"), ("status", status)))) == 1
    assert read.pop((":bart_export:requests_in_progress", (("model_name", "m"),))) == 0
    assert read.pop((":bart_export:refused_count", (("model_name", "m"),)), 0) == refused
    assert read == {}


def test_a_request_is_in_progress_until_it_is_counted_and_timed():
    metrics = Metrics()
    in_progress = (":bart_export:requests_in_progress", (("model_name", "m"),))
    with metrics.request("m", "predict", "REST"):
        assert samples(metrics) == {in_progress: 1}
    read = samples(metrics)
    labels = (("API", "predict"), ("entrypoint", "REST"), ("model_name", "m"))
    assert read[in_progress] == 0
    assert read[REQUEST_COUNT.name, (("model_name", "m"), ("status", "OK"))] == 1
    assert read[f"{REQUEST_LATENCY.name}_count", labels] == 1
    assert 0 < read[f"{REQUEST_LATENCY.name}_sum", labels] < 1e6
