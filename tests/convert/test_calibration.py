"""Calibration: ranges are those of real searches, in every signature; samples are counted."""

import hashlib
import json

import numpy as np
import pytest
from support.golden_cases import preset_of

from bart_export import contract
from bart_export.artifact.manifest import Calibration
from bart_export.checkpoints import resolve
from bart_export.contract import StaticShapes
from bart_export.convert import calibration, tflite
from bart_export.export.target import calibration_texts
from bart_export.export.tflite_target import calibrate_file
from bart_export.graph.parameters import InferenceParameters
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.generator import ModelInfo
from bart_export.runtime.search import run, search
from bart_export.verify.data import read_texts
from bart_export.verify.golden import TEXTS

FILE, STATIC_FILE = "tflite/float32.tflite", "tflite/float32.static.tflite"
GIVEN = TEXTS[:2]


def logits_range(engine, sources, generation, num_beams):
    """Return the range of all logits of a search over each source, and how many steps it took."""
    ranges = []

    def step(*arguments):
        logits, state = engine.step(*arguments)
        ranges.append((logits.min(), logits.max()))  # a search changes them in place
        return logits, state

    settings = generation.replace(num_beams=num_beams)
    for source in sources:
        run(search(settings), step, engine.start(source, num_beams, settings.max_length))
    lows, highs = zip(*ranges, strict=True)
    return (min(lows), max(highs)), len(ranges)


def sources_of(artifact):
    return list(map(ModelInfo.from_artifact(artifact).encode, GIVEN))


def test_ranges_are_those_of_the_searches_that_the_preset_asks_for(mini_artifact):
    path, sources = mini_artifact.path(FILE), sources_of(mini_artifact)
    ranges, samples = calibrate_file(path, ModelInfo.from_artifact(mini_artifact), None, GIVEN)
    engine = open_compiled_model(path, mini_artifact.config)
    steps = 0
    for signature, beams in (("decode", 4), ("decode_single", 1), ("decode_draft", 1)):
        expected, taken = logits_range(engine, sources, mini_artifact.generation, beams)
        received = ranges[f"{signature}/token_embedding/output"]
        assert received == pytest.approx(expected, abs=1e-3)
        steps += taken
    assert samples == steps + 3 * len(sources)
    # Every activation that is computed has a range, and no constant has.
    assert ranges.keys() == {
        name
        for _, names in calibration.activation_names(path.read_bytes()).values()
        for name in names.values()
    }
    assert not [name for name in ranges if name.endswith("/weights")]


def test_a_static_build_is_calibrated_bucket_by_bucket(static_artifact):
    path, sources = static_artifact.path(STATIC_FILE), sources_of(static_artifact)
    shapes = StaticShapes((32, 160), target_length=32, num_beams=(1, 4), draft_length=5)
    ranges, _ = calibrate_file(path, ModelInfo.from_artifact(static_artifact), shapes, GIVEN)
    buckets = static_artifact.buckets(STATIC_FILE)
    engine = open_compiled_model(path, static_artifact.config, buckets)
    assert min(map(len, sources)) > 32  # cut in the smaller bucket
    cut = [(*source[:31], source[-1]) for source in sources]
    expected, _ = logits_range(engine, cut, static_artifact.generation, 4)
    assert ranges["decode_32_4/token_embedding/output"] == pytest.approx(expected, abs=1e-3)
    decoders = [bucket.name for bucket in buckets if bucket.signature.name != "encode"]
    assert {f"{name}/token_embedding/output" for name in decoders} <= ranges.keys()


def test_drafts_and_several_sources_are_calibrated_like_single_rows(symmetric_artifact, tmp_path):
    checkpoint = resolve.read(resolve.find(preset_of(symmetric_artifact)).directory)
    parameters = InferenceParameters(checkpoint.config, checkpoint.weights.__getitem__)
    positions = checkpoint.config.max_sequence_length
    buckets = contract.static_buckets(checkpoint.config, (8,), positions, (1, 2), 7, (1, 3))
    path, found, lengths = tmp_path / "static.tflite", {}, {}
    tflite.write_signatures(parameters, buckets, path)

    def search(model, token_ids, num_beams, longest):
        name, state = model.decoder.name, model.start(token_ids, num_beams, longest)
        lengths[name], found[name] = longest, []
        beam_index = np.arange(num_beams, dtype=np.int32)
        for token in (2, 5, 9):
            logits, state = model.step(state, beam_index + token, beam_index[::-1])
            found[name].append(logits)

    calibration.calibrate(path, checkpoint.config, buckets, [(0, 5, 2)], search, 1)
    assert lengths.pop("decode_draft_8") == positions - 6
    assert set(lengths.values()) == {positions}
    for name, single in (
        ("decode_draft_8", "decode_8_1"),
        ("decode_8_1_3", "decode_8_1"),
        ("decode_8_2_3", "decode_8_2"),
    ):
        np.testing.assert_allclose(found[name], found[single], atol=1e-4)


def test_a_preset_that_decodes_greedily_still_calibrates_the_signature_of_beams(symmetric_artifact):
    config, asked = symmetric_artifact.config, []

    def search_nothing(model, token_ids, num_beams, longest):
        asked.append((model.decoder.name, tuple(token_ids), num_beams, longest))
        model.start(token_ids, num_beams, longest)

    path, buckets = symmetric_artifact.path(FILE), contract.tflite_buckets(config, None)
    calibration.calibrate(path, config, buckets, [(0, 5, 2)], search_nothing, 1)
    longest = config.max_sequence_length
    assert asked == [
        ("decode", (0, 5, 2), 2, longest),
        ("decode_single", (0, 5, 2), 1, longest),
        ("decode_draft", (0, 5, 2), 1, longest),
    ]


def test_texts_are_the_given_ones_then_the_presets_then_the_golden_ones(tmp_path):
    texts, golden = calibration_texts(None, tmp_path)
    assert (golden.origin, texts) == ("golden", TEXTS)
    own, mine = tmp_path / "calibration.jsonl", tmp_path / "mine.jsonl"
    for path in (own, mine):
        path.write_text(json.dumps({"text": f"Of {path.name}."}) + "\n", encoding="utf-8")
    for given, path, origin in ((None, own, "preset"), (read_texts(mine), mine, "given")):
        entry = Calibration(1, None, origin, hashlib.sha256(path.read_bytes()).hexdigest())
        assert calibration_texts(given, tmp_path) == ([f"Of {path.name}."], entry)


def test_the_embedded_preset_ships_texts():
    texts, shipped = calibration_texts(None, resolve.find("bart_mini_en").directory)
    assert (shipped.origin, shipped.texts, len(texts)) == ("preset", 32, 32)
