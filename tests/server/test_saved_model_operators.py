"""An artifact's SavedModel is loaded only if its graph has the operators of an export."""

import shutil

import pytest
import tensorflow as tf
from support import made_up_artifacts
from support.tokenizer_samples import vocabulary_of
from tensorflow.core.framework import node_def_pb2
from tensorflow.core.protobuf import saved_model_pb2

from bart_export.config import GenerationConfig
from bart_export.convert import saved_model
from bart_export.errors import ArtifactError
from bart_export.model import BartBackbone
from bart_export.server import open_version
from bart_export.server.metrics import Metrics
from bart_export.server.options import ServeOptions
from bart_export.server.tensorflow_engine import OPERATORS, check_operators
from bart_export.server.versions import TENSORFLOW, ServedModel
from bart_export.text.added_tokens import AddedToken
from bart_export.text.tokenizer import BartTokenizer

FILE = "saved_model.pb"


def read(directory):
    return saved_model_pb2.SavedModel.FromString((directory / FILE).read_bytes())


@pytest.fixture
def directory(saved_model_artifact, tmp_path):
    """Return a version directory with only a graph."""
    shutil.copy(saved_model_artifact.directory / "saved_model/1" / FILE, tmp_path)
    return tmp_path


def change(directory, edit):
    """Edit the graph of a version directory in place."""
    content = read(directory)
    (graph,) = content.meta_graphs
    edit(graph)
    (directory / FILE).write_bytes(content.SerializeToString())


def node_of(graph, name):
    (found,) = [node for node in graph.graph_def.node if node.name == name.partition(":")[0]]
    return found


def function_of(graph, node):
    name = node.attr["f"].func.name
    (found,) = [one for one in graph.graph_def.library.function if one.signature.name == name]
    return found


def operators_of(directory):
    (graph,) = read(directory).meta_graphs
    functions = [one.node_def for one in graph.graph_def.library.function]
    return {node.op for nodes in (graph.graph_def.node, *functions) for node in nodes}


def test_an_export_is_accepted(directory):
    assert operators_of(directory) <= OPERATORS
    check_operators(directory)


MERGES = [("\u0120", "a"), ("a", "b")]
ADDED = [AddedToken("<hl>", lstrip=True), AddedToken("ab", single_word=True, rstrip=True)]
BEAMS = {"num_beams": 2, "no_repeat_ngram_size": 2, "forced_eos_token_id": 2}


@pytest.mark.slow
def test_the_operators_are_those_of_exports_with_all_settings(directory, tmp_path):
    vocabulary = vocabulary_of(MERGES)
    for token in ADDED:
        vocabulary.setdefault(token.content, len(vocabulary))
    tokenizer = BartTokenizer(vocabulary, MERGES, ADDED)
    found = operators_of(directory)
    for activation, generation in (("relu", BEAMS), ("gelu_new", {}), ("silu", {})):
        backbone = BartBackbone(
            vocabulary_size=len(vocabulary),
            num_layers=1,
            num_heads=1,
            hidden_dim=4,
            intermediate_dim=4,
            max_sequence_length=32,
            activation_function=activation,
        )
        written = tmp_path / activation
        settings = GenerationConfig(**generation)
        saved_model.write_saved_model(backbone, tokenizer, settings, 32, "bfloat16", written)
        found |= operators_of(written)
    assert found == OPERATORS


def read_in_a_function(graph):
    graph.graph_def.library.function[0].node_def.add(name="r", op="ReadFile")


def save_again(graph):
    again = graph.graph_def.node.add()
    again.CopyFrom(node_of(graph, graph.saver_def.save_tensor_name))
    again.name = "again"


def save_at_load(graph):
    saving = graph.saver_def.save_tensor_name.partition(":")[0]
    graph.graph_def.node.add(name="first", op="NoOp").input.append(f"^{saving}")


def save_as_an_answer(graph):
    graph.signature_def["tokenize"].outputs["text"].name = graph.saver_def.save_tensor_name


def save_as_main(graph):
    saving = graph.saver_def.save_tensor_name.partition(":")[0]
    graph.collection_def["saved_model_main_op"].node_list.value[:] = [saving]


def save_when_restoring(graph):
    restoring = function_of(graph, node_of(graph, graph.saver_def.restore_op_name))
    restoring.node_def.add(name="s", op="SaveV2")


def save_under_another_name(graph):
    function = graph.graph_def.library.function.add()
    function.CopyFrom(function_of(graph, node_of(graph, graph.saver_def.save_tensor_name)))
    function.signature.name = "Tanh"


SAVING = "has MergeV2Checkpoints, SaveV2 at "


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (save_under_another_name, "has the operators Tanh, "),
        (read_in_a_function, "has the operators ReadFile, which bart-export never writes"),
        (save_again, f"{SAVING}again"),
        (save_at_load, SAVING),
        (save_as_an_answer, SAVING),
        (save_as_main, SAVING),
        (save_when_restoring, "has RestoreV2, SaveV2 at "),
    ],
)
def test_operators_that_access_files_are_refused(directory, edit, message):
    change(directory, edit)
    with pytest.raises(ArtifactError, match=message) as caught:
        check_operators(directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("name", ["saved_model.cpb", "saved_model.pbtxt"])
def test_other_formats_of_the_graph_are_refused(directory, name):
    (directory / name).touch()
    with pytest.raises(ArtifactError, match=f"has {name} next to"):
        check_operators(directory)


@pytest.mark.parametrize("size", [1, 1 << 36])
def test_an_unreadable_graph_is_refused(directory, size):
    with (directory / FILE).open("wb") as file:
        file.write(b"\xff")
        file.truncate(size)
    with pytest.raises(ArtifactError, match=r"saved_model.pb that cannot be read: ") as caught:
        check_operators(directory)
    assert "\n" not in str(caught.value)


def test_a_graph_that_writes_a_file_is_not_loaded(saved_model_artifact, tmp_path):
    """The manifest matches, because anybody can write one. Loading alone would write the file."""
    made = shutil.copytree(saved_model_artifact.directory, tmp_path / "made")
    victim = tmp_path / "written"

    def write_at_load(graph):
        nodes = graph.graph_def.node
        for name, value in (("place", str(victim)), ("content", "hacked")):
            constant = node_def_pb2.NodeDef(name=name, op="Const")
            constant.attr["dtype"].type = tf.string.as_datatype_enum
            constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
            nodes.append(constant)
        nodes.add(name="w", op="WriteFile").input.extend(["place", "content"])
        node_of(graph, graph.signature_def["__saved_model_init_op"].outputs[
            "__saved_model_init_op"].name).input.append("^w")  # fmt: skip

    change(made / "saved_model/1", write_at_load)
    made_up_artifacts.reseal(made)
    served = ServedModel(name="m", base_path=made / "saved_model", engine=TENSORFLOW)
    options = ServeOptions(warmup=False, workers=1)
    with pytest.raises(ArtifactError, match="has the operators WriteFile"):
        open_version.opener(options, Metrics())(served, 1, made / "saved_model/1")
    assert not victim.exists()
