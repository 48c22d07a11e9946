"""A short measurement has every length that a file has room for, and is told by rounds."""

import contextlib

import pytest

from bart_export.config import GenerationConfig
from bart_export.quality.speed import measurements
from bart_export.quality.speed.measurements import Measured, Model
from bart_export.runtime.engines import open_engine

SHAPES = {"source_lengths": [16], "target_length": 17, "num_beams": [1]}


@pytest.fixture
def opened():
    """Return a list that the names of opened files are added to."""
    return []


@pytest.fixture
def files(symmetric_artifact, opened):
    """Return a file twice, the second time as if it was a static build."""
    ((file, entry),) = symmetric_artifact.files("tflite").items()

    def opener(name):
        def opening():
            opened.append(name)
            return contextlib.nullcontext(open_engine(symmetric_artifact, file, num_threads=1))

        return opening

    return {
        "dynamic": Measured(entry, opener("dynamic")),
        "static": Measured({**entry, "shapes": SHAPES}, opener("static")),
    }


def model(symmetric_artifact, **settings):
    return Model(symmetric_artifact.generation.replace(num_beams=2, **settings), 32)


def test_a_row_has_every_length_that_a_file_has_room_for(files, symmetric_artifact):
    positions = symmetric_artifact.config.max_sequence_length
    dynamic, static = measurements.measure(files, model(symmetric_artifact), export=5)
    assert (dynamic["file"], dynamic["export"], static["file"]) == ("dynamic", 5, "static")
    pairs = [(row["source"], row["num_beams"]) for row in dynamic["sources"]]
    assert pairs == [(source, beams) for beams in (1, 2) for source in (16, 32)]
    lengths = [length for length in (16, 32, 64) if length < positions]
    assert [(row["num_beams"], row["new_tokens"]) for row in dynamic["lengths"]] == [
        (beams, length) for beams in (1, 2) for length in lengths
    ]
    assert [(row["source"], row["num_beams"]) for row in static["sources"]] == [(16, 1)]
    assert static["lengths"] == []  # of the longest source


def test_a_text_takes_longer_than_its_beginning_and_all_take_time(files, symmetric_artifact):
    for row in measurements.measure(files, model(symmetric_artifact), export=1):
        for one in row["sources"]:
            assert 0 < one["token_seconds"] < one["token_seconds"] + one["encode_seconds"]
        for beams in (1, 2):
            seconds = [one["seconds"] for one in row["lengths"] if one["num_beams"] == beams]
            assert seconds == sorted(seconds)


def test_files_take_turns_and_long_ones_are_asked_once(
    files, symmetric_artifact, opened, monkeypatch
):
    (row, _) = measurements.measure(files, model(symmetric_artifact), export=1)
    assert row["rounds"] == measurements.ROUNDS
    assert opened == ["dynamic", "static"] * measurements.ROUNDS
    opened.clear()
    monkeypatch.setattr(measurements, "ENOUGH", 0.0)
    (row, _) = measurements.measure(files, model(symmetric_artifact), export=1)
    assert (row["rounds"], opened) == (1, ["dynamic", "static"])


def test_a_clock_has_the_encoder_and_every_token(symmetric_artifact):
    ((file, _),) = symmetric_artifact.files("tflite").items()
    engine = open_engine(symmetric_artifact, file, num_threads=1)
    settings = measurements.forced_settings(symmetric_artifact.generation, 5, 2)
    clock = measurements.generate(engine, [0, 5, 2], settings)
    assert len(clock) == 2 + 5
    assert clock == sorted(clock)


@pytest.mark.parametrize(
    ("max_length", "prepared", "lengths", "sources"),
    [
        (20, 160, [16, 32, 64], [16, 32, 64, 128]),
        (142, 1024, [16, 32, 64, 128], [16, 32, 64, 128, 256, 512, 1024]),
        (20, 8, [16, 32, 64], [8]),
    ],
)
def test_lengths_are_those_that_a_model_is_made_for(max_length, prepared, lengths, sources):
    model = Model(GenerationConfig(max_length=max_length, num_beams=4), prepared)
    assert (model.new_tokens, model.sources, model.num_beams) == (lengths, sources, [1, 4])
