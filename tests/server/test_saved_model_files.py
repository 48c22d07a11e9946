"""Whole and torn SavedModels are told apart as TensorFlow wrote them, without TensorFlow."""

import os
import pathlib
import random
import shutil

import pytest

from bart_export.server import saved_model_files

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return SavedModels by what is particular about them."""
    import tensorflow as tf

    class WithAsset(tf.Module):
        def __init__(self, path):
            super().__init__()
            self.weight = tf.Variable(tf.ones([300, 40]))
            self.words = tf.Variable(["a", "bc"])
            self.asset = tf.saved_model.Asset(path)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
        def double(self, x):
            return {"y": x * self.weight[0, 0] * 2, "length": tf.io.read_file(self.asset)}

    class Empty(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
        def double(self, x):
            return {"y": x * 2}

    directory = tmp_path_factory.mktemp("saved_models")
    (directory / "vocabulary.txt").write_text("a\n")
    for name, module in (
        ("asset", WithAsset(str(directory / "vocabulary.txt"))),
        ("plain", Empty()),
    ):
        tf.saved_model.save(module, directory / name, signatures={"d": module.double})
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None])
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": x * 2})
        builder = v1.saved_model.Builder(str(directory / "no variables"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"d": signature})
        builder.save()
    return directory


def copy(written, name, target):
    shutil.copytree(written / name, target)
    return target


@pytest.mark.parametrize("name", ["asset", "plain", "no variables"])
def test_what_tensorflow_writes_is_whole(written, name):
    assert saved_model_files.problem(written / name) == ""
    assert (written / name / "variables/variables.index").exists() == (name != "no variables")


# A file of the model, and what is said once it is missing.
FILES = {
    "saved_model.pb": "saved_model.pb is missing",
    "assets/vocabulary.txt": "assets/vocabulary.txt is missing",
    "variables/variables.index": "variables/variables.index is missing",
    "variables/variables.data-00000-of-00001": (
        "variables/variables.data-00000-of-00001 is missing"
    ),
}


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(written, tmp_path, file):
    model = copy(written, "asset", tmp_path / "1")
    (model / file).unlink()
    assert saved_model_files.problem(model) == FILES[file]


@pytest.mark.parametrize("file", [name for name in FILES if not name.startswith("assets")])
def test_a_file_cut_anywhere_is_torn(written, tmp_path, file):
    model = copy(written, "asset", tmp_path / "1")
    content = (model / file).read_bytes()
    cuts = range(0, len(content), max(1, len(content) // 200))
    for cut in [*cuts, len(content) - 1]:
        (model / file).write_bytes(content[:cut])
        problem = saved_model_files.problem(model)
        assert pathlib.Path(file).name in problem, f"cut after {cut} bytes"
        assert "\n" not in problem


def test_a_cut_file_of_variables_is_told_with_its_sizes(written, tmp_path):
    model = copy(written, "asset", tmp_path / "1")
    path = model / "variables/variables.data-00000-of-00001"
    size = path.stat().st_size
    os.truncate(path, 1000)
    assert saved_model_files.problem(model) == (
        f"variables/variables.data-00000-of-00001 has 1000 of {size} bytes"
    )


def test_a_graph_without_content_is_torn(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")  # its schema's version, and no more
    assert saved_model_files.problem(tmp_path) == "saved_model.pb has no graph"


def test_a_directory_that_cannot_be_looked_into_is_told(tmp_path):
    (tmp_path / "1").write_bytes(b"")
    assert saved_model_files.problem(tmp_path / "1") == "saved_model.pb is missing"
    (tmp_path / "2/saved_model.pb").mkdir(parents=True)
    assert saved_model_files.problem(tmp_path / "2") == "saved_model.pb is missing"


def test_damage_is_never_more_than_a_line(written, tmp_path):
    """Bytes changed at random may go unseen, but do not end the server's thread."""
    model = copy(written, "asset", tmp_path / "1")
    chance = random.Random(0)
    for file in ("saved_model.pb", "variables/variables.index"):
        content = (model / file).read_bytes()
        told = set()
        for _ in range(300):
            damaged = bytearray(content)
            for position in chance.sample(range(len(content)), 5):
                damaged[position] = chance.randrange(256)
            (model / file).write_bytes(damaged)
            told.add(saved_model_files.problem(model))
        assert len(told) > 1
        (model / file).write_bytes(content)


@pytest.mark.parametrize(
    ("tensors", "shards"), [(3, 2), (6000, 1)], ids=["two shards", "an index of many blocks"]
)
def test_an_index_tells_the_length_of_every_shard(tmp_path, tensors, shards):
    import tensorflow as tf

    chance = random.Random(0)
    parts = [str(tmp_path / f"part-{shard}") for shard in range(shards)]
    for shard, part in enumerate(parts):
        names = [f"{chance.random()}/a long name of a variable/{shard}" for _ in range(tensors)]
        values = [tf.fill([shard + 2], float(shard)) for _ in names]
        tf.raw_ops.SaveV2(
            prefix=part, tensor_names=names, shape_and_slices=[""] * tensors, tensors=values
        )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=parts, destination_prefix=str(tmp_path / "variables")
    )
    index = tmp_path / "variables.index"
    assert saved_model_files.data_sizes(index.read_bytes()) == {
        path.name: path.stat().st_size for path in tmp_path.glob("variables.data-*")
    }
    assert len(list(tmp_path.glob("variables.data-*"))) == shards
    assert tensors < 6000 or index.stat().st_size > 2 * 2**17
