"""The SavedModel target: signatures, operators, versions, and that a wrong one is not committed."""

import json
import re
import shutil

import pytest
import tensorflow as tf
from support.made_up_artifacts import contents
from support.paths import DISTILLED, SYMMETRIC
from tensorflow.core.protobuf import saved_model_pb2

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.config import GenerationConfig
from bart_export.errors import ConfigurationError, VerificationFailed
from bart_export.export.options import SavedModelOptions, TfliteOptions
from bart_export.export.pipeline import export
from bart_export.export.saved_model_target import next_version
from bart_export.graph import sequences
from bart_export.graph.saved_model_signatures import defaults
from bart_export.recipes.table import RECIPES

VERSION = "saved_model/1"


@pytest.fixture(scope="module")
def meta_graph(saved_model_artifact):
    content = saved_model_artifact.path(f"{VERSION}/saved_model.pb").read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    return graph


@pytest.fixture(scope="module")
def loaded(saved_model_artifact):
    return tf.saved_model.load(str(saved_model_artifact.directory / VERSION))


@pytest.fixture
def earlier(saved_model_artifact, tmp_path):
    """Return a copy of the artifact, to export over."""
    shutil.copytree(saved_model_artifact.directory, tmp_path / "made")
    return Artifact.open(tmp_path / "made")


def test_signatures_are_those_of_the_contract(meta_graph):
    found = {
        name: definition
        for name, definition in meta_graph.signature_def.items()
        if not name.startswith("__")
    }
    declared = {one.name: one for one in contract.saved_model_signatures()}
    assert set(found) == set(declared)
    for name, definition in found.items():
        assert definition.method_name == "tensorflow/serving/predict"
        for side in ("inputs", "outputs"):
            tensors = getattr(declared[name], side)
            infos = getattr(definition, side)
            assert set(infos) == {tensor.name for tensor in tensors}
            for tensor in tensors:
                info = infos[tensor.name]
                assert tf.as_dtype(info.dtype).name == tensor.dtype, (name, tensor)
                assert len(info.tensor_shape.dim) == len(tensor.axes), (name, tensor)
                # Batches are put together by a server, which knows no sizes.
                assert info.tensor_shape.dim[0].size == -1


def test_settings_have_the_presets_values_as_defaults(meta_graph, saved_model_artifact):
    generation = saved_model_artifact.generation
    for name in ("generate_text", "generate"):
        found = {
            key: tf.make_ndarray(value).tolist()
            for key, value in meta_graph.signature_def[name].defaults.items()
        }
        assert found == {
            "max_length": [generation.max_length],
            "min_length": [generation.min_length],
            "length_penalty": [generation.length_penalty],
            "repetition_penalty": [generation.repetition_penalty],
            "early_stopping": [str(generation.early_stopping).lower().encode()],
        }
    assert not meta_graph.signature_def["serving_default"].defaults


def test_the_graph_is_of_core_operators_without_python_and_without_compilation(meta_graph):
    operators = set(meta_graph.meta_info_def.stripped_op_list.op[i].name
                    for i in range(len(meta_graph.meta_info_def.stripped_op_list.op)))  # fmt: skip
    core = {name for name in dir(tf.raw_ops) if not name.startswith("_")}
    assert operators - core <= {"_Arg", "_Retval"}
    assert not {name for name in operators if "PyFunc" in name}
    nodes = [*meta_graph.graph_def.node]
    for function in meta_graph.graph_def.library.function:
        nodes += function.node_def
        assert not any("Xla" in name for name in function.attr)
    assert not any("Xla" in name for node in nodes for name in node.attr)
    assert len(nodes) > 1000


@pytest.fixture(scope="module")
def generate_text(loaded, saved_model_artifact):
    """Return `generate_text(texts, **settings)`: texts and scores of `generate_text`."""

    def generate(texts, **settings):
        given = {name: tf.constant(value) for name, value in settings.items()}
        given = {**defaults(saved_model_artifact.generation), **given}
        outputs = loaded.signatures["generate_text"](text=tf.constant(texts), **given)
        return [outputs[name].numpy()[:, 0].tolist() for name in ("generated_text", "scores")]

    return generate


@pytest.fixture(scope="module")
def generate_step_by_step(loaded, saved_model_artifact):
    """Return a function that generates texts by `tokenize`, `generate` and `detokenize`."""

    def generate(texts, **settings):
        given = {name: tf.constant(value) for name, value in settings.items()}
        given = {**defaults(saved_model_artifact.generation), **given}
        source = loaded.signatures["tokenize"](text=tf.constant(texts))
        ids = loaded.signatures["generate"](**source, **given)
        best = {name: ids[name][:, 0] for name in ("decoder_token_ids", "decoder_lengths")}
        return loaded.signatures["detokenize"](**best)["text"].numpy().tolist()

    return generate


def test_texts_go_in_and_come_out(loaded, generate_step_by_step):
    texts = ["A library.", "The river rose — überall 🐈.", ""]

    def answered(*texts):
        return loaded.signatures["serving_default"](text=tf.constant(texts))["generated_text"]

    best = answered(*texts).numpy().tolist()
    assert best[:2] == [one.removeprefix(b" ") for one in generate_step_by_step(texts)[:2]]
    assert best[2] == b""
    assert best == [answered(one).numpy()[0] for one in texts]
    assert any(one.decode("utf-8") for one in best)


def test_a_text_does_not_begin_with_the_space_that_says_that_a_word_begins(
    generate_text, generate_step_by_step
):
    texts = [f"{chr(code)} text" for code in range(0x21, 0x61)]
    whole = generate_step_by_step(texts, max_length=[4])
    assert generate_text(texts, max_length=[4])[0] == [one.removeprefix(b" ") for one in whole]
    assert any(one.startswith(b" ") for one in whole)


def test_a_text_without_a_word_gets_none(generate_text):
    spaces = "".join(map(chr, filter(lambda code: chr(code).isspace(), range(0x3001))))
    texts = ["", " ", spaces, "\u200b", "a", f"{spaces}a{spaces}", b" \xff"]
    generated, scores = generate_text(texts, min_length=[9])
    blank = [True, True, True, False, False, False, False]
    assert [text == b"" for text in generated] == blank
    assert [score == 0 for score in scores] == blank


def test_one_value_stands_for_every_row(generate_text):
    def generated(*max_length):
        texts = ["one text", "another text"]
        return generate_text(texts, max_length=max_length, min_length=[0])[0]

    assert generated(5) == generated(5, 5)
    longer = generated(5, 20)
    assert longer[0] == generated(5)[0]
    assert longer[1] != generated(5)[1]


def test_the_manifest_says_what_it_is(saved_model_artifact):
    manifest = saved_model_artifact.manifest
    files = saved_model_artifact.files("saved_model")
    assert f"{VERSION}/saved_model.pb" in files
    assert {entry.version for entry in files.values()} == {1}
    memory = files[f"{VERSION}/saved_model.pb"].memory
    assert memory.measured and 10**8 < memory.loaded <= memory.peak < 4 * 10**9
    (row,) = manifest.verification
    assert row.file == VERSION
    assert row.tokens == row.texts == 1.0
    assert 0 < row.log_probabilities < 1e-3 and row.questions >= 3
    cases = json.loads(saved_model_artifact.path("golden.json").read_bytes())["cases"]
    assert sum(VERSION in case["files"] for case in cases) == row.questions


@pytest.mark.slow
def test_versions_count_up_and_other_targets_stay(earlier):
    configuration = earlier.directory / "serving" / "models.config"
    written = configuration.read_text(encoding="utf-8")
    configuration.write_text("# edited\n", encoding="utf-8")
    # The same source to another target: both are there, and what was edited is as it was.
    options = TfliteOptions((RECIPES["float32"],))
    both = export(str(SYMMETRIC), options, earlier.directory)
    assert set(both.files("tflite")) == {"tflite/float32.tflite"}
    assert set(both.files("saved_model")) == set(earlier.files("saved_model"))
    assert both.manifest.exports == 2
    assert configuration.read_text(encoding="utf-8") == "# edited\n"
    rows = [row.file for row in both.manifest.verification]
    assert rows == ["tflite/float32.tflite", VERSION]
    # Another source: the next version, beside the one a server may go back to.
    options = SavedModelOptions(num_beams=1, dtype="bfloat16")
    new = export(str(DISTILLED), options, earlier.directory)
    files = new.files("saved_model")
    assert new.manifest.saved_model_versions == [1, 2]
    assert {entry.dtype for entry in files.values() if entry.version == 2} == {"bfloat16"}
    assert new.files("tflite") == {}
    labels = re.findall(r'key: "(\w+)" value: (\d)', configuration.read_text(encoding="utf-8"))
    assert labels == [("stable", "1"), ("canary", "2")]
    assert "canary" not in written
    for name in files:
        new.path(name, rehash=True)
    assert next_version(new.directory) == 3
    cases = json.loads(new.path("golden.json").read_bytes())["cases"]
    assert {name for case in cases for name in case["files"]} == {VERSION, "saved_model/2"}
    variables = "saved_model/{}/variables/variables.data-00000-of-00001"
    sizes = [new.manifest.files[variables.format(number)].bytes for number in (1, 2)]
    assert sizes[1] < sizes[0]


@pytest.mark.slow
def test_a_model_that_answers_otherwise_is_not_committed(earlier, monkeypatch):
    before = contents(earlier.directory)
    right = sequences.padding_mask
    monkeypatch.setattr(
        sequences, "padding_mask", lambda lengths, length: right(lengths - 1, length)
    )
    with pytest.raises(VerificationFailed, match="^saved_model/2 differs from"):
        export(str(SYMMETRIC), SavedModelOptions(), earlier.directory)
    assert contents(earlier.directory) == before


@pytest.mark.parametrize(
    ("names", "expected"), [((), 1), (("1",), 2), (("7", "12", "draft", "3x"), 13)]
)
def test_the_next_version_is_above_all_that_are_there(tmp_path, names, expected):
    for name in names:
        (tmp_path / "saved_model" / name).mkdir(parents=True)
    assert next_version(tmp_path) == expected


def test_options_that_contradict_are_told():
    with pytest.raises(ConfigurationError, match='float32, bfloat16, received "int8"'):
        SavedModelOptions(dtype="int8")
    with pytest.raises(ConfigurationError, match="num_return_sequences"):
        SavedModelOptions(num_return_sequences=3).settings(GenerationConfig(num_beams=2))
    with pytest.raises(ConfigurationError, match="do_sample=True"):
        SavedModelOptions().settings(GenerationConfig(do_sample=True))
    settings = SavedModelOptions(num_beams=4, num_return_sequences=2).settings(GenerationConfig())
    assert (settings.num_beams, settings.num_return_sequences) == (4, 2)
