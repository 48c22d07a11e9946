"""From a version directory to a servable that is warm, or a reason why not."""

import logging
import sys
from concurrent.futures import Future

import numpy as np
import pytest
from support.arithmetic import Arithmetic
from support.arithmetic_server import open_arithmetic

from bart_export.errors import ArtifactError, MissingExtra
from bart_export.server import opening
from bart_export.server.messages import PredictRequest
from bart_export.server.metrics import Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.sources import ServedModel
from bart_export.server.status import Code, StatusError
from bart_export.server.tensors import to_proto
from bart_export.server.warmup import REQUESTS, write_records


@pytest.fixture
def opened(monkeypatch):
    """The servables that were opened."""
    servables = []

    def open_one(path, options):
        servables.append(open_arithmetic(path, options))
        return servables[-1]

    monkeypatch.setitem(opening.ENGINES, "tensorflow", open_one)
    return servables


def version(path, *values):
    """Write a version directory with a warm-up request for each value of x."""
    requests = [
        PredictRequest(model_spec={"name": "m"}, inputs={"x": to_proto(np.array([value]))})
        for value in values
    ]
    write_records(path / REQUESTS, requests)
    return path


def open_version(path, metrics, **fields):
    served = ServedModel(name="m", base_path=path.parent, engine="tensorflow")
    return opening.opener(ServeOptions(**fields), metrics)(served, 1, path)


FLOAT, TEXT = np.float32(1), "text"


def test_a_version_answers_its_warm_up_requests_before_it_is_handed_out(tmp_path, opened, caplog):
    metrics = Metrics()
    with caplog.at_level(logging.INFO):
        servable = open_version(version(tmp_path / "1", FLOAT, FLOAT), metrics)
    assert servable is opened[0]
    assert "2 requests warmed it up" in caplog.text
    labels = f'model_path="{tmp_path / "1"}",status="OK"'
    assert f":tensorflow:serving:model_warmup_latency_count{{{labels}}} 1.0" in metrics.exposition()


def test_a_warm_up_request_that_fails_fails_the_version_and_frees_it(tmp_path, opened):
    metrics = Metrics()
    with pytest.raises(StatusError, match="Expects arg.0. to be float but string") as caught:
        open_version(version(tmp_path / "1", FLOAT, TEXT), metrics)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert opened[0].closed
    assert 'status="INVALID_ARGUMENT"' in metrics.exposition()


def test_a_warm_up_request_that_is_not_answered_ends_with_the_time_of_the_load(
    tmp_path, opened, monkeypatch
):
    """As one does that waits for a batch which is not full."""
    monkeypatch.setattr(Arithmetic, "submit", lambda *_: Future())
    with pytest.raises(StatusError, match="Warmup record 1 .* Timed out waiting") as caught:
        open_version(version(tmp_path / "1", FLOAT), Metrics(), load_seconds=0.1)
    assert caught.value.code == Code.DEADLINE_EXCEEDED
    assert opened[0].closed


def test_warm_up_can_be_left_out(tmp_path, opened):
    metrics = Metrics()
    servable = open_version(version(tmp_path / "1", TEXT), metrics, warmup=False)
    assert not servable.closed
    assert "warmup_latency_count" not in metrics.exposition()


def test_a_version_without_warm_up_requests_is_not_in_the_metrics(tmp_path, opened):
    metrics = Metrics()
    (tmp_path / "1").mkdir()
    open_version(tmp_path / "1", metrics)
    assert "warmup_latency_count" not in metrics.exposition()


def test_the_tensorflow_engine_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtra, match=r"pip install .*\[export\]"):
        opening.ENGINES["tensorflow"](tmp_path, ServeOptions())


def test_an_artifact_that_was_exchanged_meanwhile_is_not_served_as_the_one_that_was_found(
    symmetric_artifact,
):
    served = ServedModel(name="m", base_path=symmetric_artifact.directory, engine="litert")
    open_version = opening.opener(ServeOptions(), Metrics())
    exports = symmetric_artifact.manifest.exports
    with pytest.raises(ArtifactError, match=f"export {exports + 1}, but export {exports} took"):
        open_version(served, exports + 1, symmetric_artifact.directory)
    open_version(served, exports, symmetric_artifact.directory).close()
