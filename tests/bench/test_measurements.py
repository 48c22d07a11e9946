"""The short measurement of an export: its work, rounds and medians."""

import contextlib

import pytest

from bart_export.bench import measurements
from bart_export.bench.measurements import MeasurableFile, Timing
from bart_export.config import GenerationConfig
from bart_export.contract import StaticShapes
from bart_export.runtime.engine_choice import open_engine
from bart_export.runtime.generator import ModelInfo

SHAPES = StaticShapes((16,), 17, (1,))


@pytest.fixture
def opened():
    """Return a list to which the names of opened files are added."""
    return []


@pytest.fixture
def files(symmetric_artifact, opened):
    """Return the same file twice, as a dynamic and as a static build."""
    (file,) = symmetric_artifact.files("tflite")

    def opener(name):
        def opening():
            opened.append(name)
            return contextlib.nullcontext(open_engine(symmetric_artifact, file, num_threads=1))

        return opening

    return {
        "dynamic": MeasurableFile(None, opener("dynamic")),
        "static": MeasurableFile(SHAPES, opener("static")),
    }


def model(symmetric_artifact, **settings):
    generation = symmetric_artifact.generation.replace(num_beams=2, **settings)
    return ModelInfo(symmetric_artifact.config, None, generation, 32)


def test_a_row_has_every_number_of_beams_that_a_file_has_room_for(files, symmetric_artifact):
    dynamic, static = measurements.measure(files, model(symmetric_artifact), export=5)
    assert (dynamic.file, dynamic.export, static.file) == ("dynamic", 5, "static")
    new_tokens = symmetric_artifact.generation.max_length - 1
    works = [(row.source, row.num_beams, row.new_tokens) for row in dynamic.lengths]
    assert works == [(32, beams, new_tokens) for beams in (1, 2)]
    assert static.lengths == ()  # of the longest source
    for row in dynamic.lengths:
        assert 0 < row.encode_seconds < row.seconds
        assert row.fastest <= row.seconds <= row.slowest


def test_a_figure_is_the_median_of_its_rounds_beside_their_ends():
    rounds = [Timing(0.1, 0, 1.0), Timing(0.3, 0, 5.0), Timing(0.2, 0, 2.0)]
    assert measurements.measured_length(64, 4, 31, rounds).to_dict() == {
        "source": 64, "num_beams": 4, "new_tokens": 31,
        "encode_seconds": 0.2, "seconds": 2.0, "fastest": 1.0, "slowest": 5.0,
    }  # fmt: skip


def test_files_take_turns_and_long_ones_are_asked_once(
    files, symmetric_artifact, opened, monkeypatch
):
    (row, _) = measurements.measure(files, model(symmetric_artifact), export=1)
    assert row.rounds == measurements.ROUNDS
    assert opened == ["dynamic", "static"] * measurements.ROUNDS
    opened.clear()
    monkeypatch.setattr(measurements, "ENOUGH", 0.0)
    (row, _) = measurements.measure(files, model(symmetric_artifact), export=1)
    assert (row.rounds, opened) == (1, ["dynamic", "static"])


@pytest.mark.parametrize(
    ("max_length", "prepared", "new_tokens", "source"),
    [(20, 160, 19, 160), (142, 1024, 63, 512), (2, 8, 1, 8)],
)
def test_the_length_is_one_that_a_model_is_made_for(max_length, prepared, new_tokens, source):
    generation = GenerationConfig(max_length=max_length, num_beams=4)
    info = ModelInfo(None, None, generation, prepared)
    assert measurements.workload(info) == (source, new_tokens, [1, 4])
