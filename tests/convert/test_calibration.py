"""Calibration: ranges are those of real searches, in every signature; samples are counted."""

import hashlib
import json

import numpy as np
import pytest

from bart_export.convert import calibration, tflite
from bart_export.errors import InputError
from bart_export.export import calibration_texts
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.search import run, search
from bart_export.text.tokenizer import BartTokenizer
from bart_export.verify.golden import TEXTS

FILE = "tflite/float32.tflite"
STATIC_FILE = "tflite/float32.static.tflite"


class Watched:
    """An engine that keeps the logits of its steps and the cross tensors' reach."""

    def __init__(self, engine):
        self.engine = engine
        self.logits = []

    def start(self, *arguments):
        return self.engine.start(*arguments)

    def step(self, *arguments):
        logits, state = self.engine.step(*arguments)
        self.logits.append(logits.copy())  # a search changes them in place
        return logits, state


def logits_range(engine, sources, generation, num_beams):
    """Return the range of all logits of a search over each source, and how many steps it took."""
    watched = Watched(engine)
    settings = generation.replace(num_beams=num_beams)
    for source in sources:
        run(search(settings), watched.step, watched.start(source, num_beams, settings.max_length))
    together = np.stack([[one.min(), one.max()] for one in watched.logits])
    return (together[:, 0].min(), together[:, 1].max()), len(watched.logits)


@pytest.fixture(scope="module")
def sources(mini_artifact):
    tokenizer = BartTokenizer.from_artifact(mini_artifact)
    return [tokenizer.encode(text, 160, truncate=True) for text in TEXTS[:2]]


def calibrated(artifact, file, buckets, sources):
    texts = calibration_texts.Texts(("",), "given", "")
    calibrator = calibration_texts.calibrator(texts, ModelInfo.from_artifact(artifact))
    return calibration.calibrate(
        artifact.path(file), artifact.config, buckets, sources, calibrator.search, 4
    )


def test_ranges_are_those_of_the_searches_that_the_preset_asks_for(mini_artifact, sources):
    buckets = tflite.buckets(mini_artifact.config, None)
    found = calibrated(mini_artifact, FILE, buckets, sources)
    engine = open_compiled_model(mini_artifact.path(FILE), mini_artifact.config)
    steps = 0
    for signature, beams in (("decode", 4), ("decode_single", 1)):
        expected, taken = logits_range(engine, sources, mini_artifact.generation, beams)
        received = found.ranges[f"{signature}/token_embedding/output"]
        assert received == pytest.approx(expected, abs=1e-3)
        steps += taken
    assert found.samples == steps + 2 * len(sources)
    assert found.texts == len(sources)
    # Every activation that is computed has a range, and no constant has.
    assert found.ranges.keys() == {
        name
        for _, names in calibration.activations(mini_artifact.path(FILE).read_bytes()).values()
        for name in names.values()
    }
    assert not [name for name in found.ranges if name.endswith("/weights")]


def test_a_static_build_is_calibrated_bucket_by_bucket(static_artifact, sources):
    config = static_artifact.config
    buckets = static_artifact.buckets(STATIC_FILE)
    short = [source for source in sources if len(source) > 32]
    assert short  # cut in the smaller bucket
    found = calibrated(static_artifact, STATIC_FILE, buckets, sources)
    engine = open_compiled_model(static_artifact.path(STATIC_FILE), config, buckets)
    cut = [(*one[:31], one[-1]) if len(one) > 32 else one for one in sources]
    expected, _ = logits_range(engine, cut, static_artifact.generation, 4)
    assert found.ranges["decode_32_4/token_embedding/output"] == pytest.approx(expected, abs=1e-3)
    decoders = [bucket.name for bucket in buckets if bucket.signature.name != "encode"]
    for name in decoders:
        assert f"{name}/token_embedding/output" in found.ranges


def test_a_calibrator_runs_once(symmetric_artifact):
    config = symmetric_artifact.config
    asked = []

    def search_nothing(model, token_ids, num_beams, longest):
        asked.append((model.decoder.name, tuple(token_ids), num_beams, longest))
        model.start(token_ids, num_beams, longest)

    calibrator = calibration.Calibrator(config, [(0, 5, 2)], search_nothing, 1)
    buckets = tflite.buckets(config, None)
    first = calibrator(symmetric_artifact.path(FILE), buckets)
    assert calibrator(symmetric_artifact.path(FILE), buckets) is first
    # A preset that decodes greedily still has a signature for several beams.
    longest = config.max_sequence_length
    assert asked == [
        ("decode", (0, 5, 2), 2, longest),
        ("decode_single", (0, 5, 2), 1, longest),
    ]


def test_texts_are_the_given_ones_then_the_presets_then_the_golden_ones(tmp_path):
    preset = tmp_path / "preset"
    preset.mkdir()
    golden = calibration_texts.texts(None, preset)
    assert (golden.origin, golden.texts) == ("golden", TEXTS)
    own = preset / "calibration.jsonl"
    own.write_text(json.dumps({"text": "The preset's own."}) + "\n", encoding="utf-8")
    shipped = calibration_texts.texts(None, preset)
    assert (shipped.origin, shipped.texts) == ("preset", ("The preset's own.",))
    given_file = tmp_path / "mine.jsonl"
    given_file.write_text(json.dumps({"text": "Mine."}) + "\n", encoding="utf-8")
    given = calibration_texts.texts(given_file, preset)
    assert (given.origin, given.texts) == ("given", ("Mine.",))
    for texts, path in ((shipped, own), (given, given_file)):
        assert texts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    own.write_text(json.dumps({"text": "The preset's own!"}) + "\n", encoding="utf-8")
    assert calibration_texts.texts(None, preset).sha256 != shipped.sha256
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):
        calibration_texts.texts(tmp_path / "nowhere.jsonl", preset)


def test_the_embedded_preset_ships_texts(mini_artifact):
    from bart_export.checkpoints import resolve

    shipped = calibration_texts.texts(None, resolve.find("bart_mini_en").directory)
    assert (shipped.origin, len(shipped.texts)) == ("preset", 32)
    counted = calibration.Calibration({}, 32, 700)
    assert shipped.entry(counted).to_dict() == {
        "texts": 32, "samples": 700, "origin": "preset", "sha256": shipped.sha256
    }  # fmt: skip
