"""Records of models from `models.config`, from a request's message and from the command line."""

import contextlib
import pathlib
import threading

import pytest
from google.protobuf import text_format
from support import made_up_artifacts
from support.served_directories import add_version, wait_until
from tensorflow_serving.config import model_server_config_pb2

from bart_export.errors import ArtifactError, ConfigurationError
from bart_export.server import messages, sources
from bart_export.server.sources import TENSORFLOW, ServedModel, VersionPolicy
from bart_export.server.status import Code, StatusError


def listed(*models):
    """Return a ModelServerConfig of these models as text."""
    return f"model_config_list {{ {' '.join(f'config {{ {model} }}' for model in models)} }}"


MODEL = 'name: "m" base_path: "/models/m" model_platform: "tensorflow"'
LABELS = "".join(
    f'version_labels {{ key: "{label}" value: {number} }}'
    for label, number in (("stable", 1), ("canary", 2))
)


def record(name="m", **fields):
    path = pathlib.Path("/models/m")
    return ServedModel(name=name, base_path=path, engine=TENSORFLOW, **fields)


# Text, and the records that it stands for.
TEXTS = {
    "no model": ("model_config_list {}", []),
    "two models": (
        listed(MODEL, MODEL.replace('name: "m"', 'name: "n"')), [record(), record("n")]
    ),
    "the old name of the platform": (
        listed('name: "m" base_path: "/models/m" model_type: TENSORFLOW'), [record()]
    ),
    "the latest": (listed(MODEL + "model_version_policy { latest {} }"), [record()]),
    "the latest two": (
        listed(MODEL + "model_version_policy { latest { num_versions: 2 } }"),
        [record(policy=VersionPolicy(2))],
    ),
    "all": (
        listed(MODEL + "model_version_policy { all {} }"),
        [record(policy=VersionPolicy(latest=None))],
    ),
    "no policy": (listed(MODEL + "model_version_policy {}"), [record()]),
    "versions named": (
        listed(MODEL + "model_version_policy { specific { versions: 1 versions: 12 } }"),
        [record(policy=VersionPolicy(specific=frozenset({1, 12})))],
    ),
    "labels": (listed(MODEL + LABELS), [record(labels={"stable": 1, "canary": 2})]),
    "a log": (
        listed(MODEL + 'logging_config { log_collector_config { type: "file" } }'), [record()]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_a_file_and_the_official_message_list_models(tmp_path, case):
    text, models = TEXTS[case]
    (tmp_path / "models.config").write_text(f"# a comment\n{text}\n")
    assert sources.read_config(tmp_path / "models.config") == models
    official = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    ours = messages.ModelServerConfig.FromString(official.SerializeToString())
    assert sources.from_proto(official) == sources.from_proto(ours) == models


ONLY_LISTS = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
    "Only ModelConfigList is currently supported"
)
NO_PATH = "Expected model m to have an absolute path or URI; got base_path()="
NO_PLATFORM = "Expected model m to have the model_platform tensorflow or litert, received "
AT = 'base_path: "/models/m"'
# Text that is a ModelServerConfig and lists what cannot be served, and what is said.
REFUSED = {
    "nothing": ("", ONLY_LISTS),
    "another kind of list": ('custom_model_config { type_url: "a/b" }', ONLY_LISTS),
    "a relative base path": (
        listed(MODEL.replace("/models", "models")), f"{NO_PATH}models/m"
    ),
    "no base path": (listed('name: "m" model_platform: "tensorflow"'), NO_PATH),
    "a bucket": (listed(MODEL.replace("/models", "gs://models")), f"{NO_PATH}gs://models/m"),
    "no name": (
        listed(f'{AT} model_platform: "tensorflow"'),
        "Expected every model to have a name; that of /models/m has none",
    ),
    "no platform": (listed(f'name: "m" {AT}'), f"{NO_PLATFORM}none"),
    "another old name": (listed(f'name: "m" {AT} model_type: OTHER'), f"{NO_PLATFORM}model_type 2"),
    "an unknown platform": (
        listed(f'name: "m" {AT} model_platform: "caffe"'), f"{NO_PLATFORM}caffe"
    ),
}  # fmt: skip


def parsed(text):
    return text_format.Parse(text, messages.ModelServerConfig(), descriptor_pool=messages.POOL)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused(case):
    text, message = REFUSED[case]
    with pytest.raises(StatusError) as error:
        sources.from_proto(parsed(text))
    assert (error.value.code, error.value.message) == (Code.INVALID_ARGUMENT, message)


MUST_HOLD = "must hold a tensorflow.serving.ModelServerConfig as text"
# Content of a file, None for no file, and words of the line that refuses it.
BAD_FILES = [
    (None, "cannot be read: No such file"),
    (listed('name: "m"').encode(), "Expected model m to have an absolute path"),
    (b"#\n" * 2**20, "as text: it has more than 1048576 bytes"),
    (b"\\" * 2**16, "as text: it has 64 backslashes in a row"),
    (b"model_config_list { " + b"a" * 2**19, "must hold"),
    (b"model_config_list {", MUST_HOLD),
    (listed(MODEL + "color: 3").encode(), "color"),
    (b"\xff\xfe", MUST_HOLD),
]


@pytest.mark.parametrize(("content", "words"), BAD_FILES)
def test_a_bad_file_is_refused_by_name_in_one_line(tmp_path, content, words):
    path = tmp_path / "models.config"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as error:
        sources.read_config(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def artifact(tmp_path):
    """Return the directory of an artifact that has a `.tflite` and no SavedModel."""
    return made_up_artifacts.write(tmp_path / "artifact", {"tflite/a.tflite": b""}).directory


# A platform, where the base path is from the artifact, and why that is refused.
PLATFORMS = [
    ("litert", ".", None),
    ("tensorflow", ".", "no files of the target saved_model"),
    ("litert", "..", "engine litert serves artifacts"),
]


@pytest.mark.parametrize(("platform", "place", "refusal"), PLATFORMS)
def test_a_platform_needs_its_files(artifact, platform, place, refusal):
    path = (artifact / place).resolve()
    text = listed(f'name: "m" base_path: "{path}" model_platform: "{platform}"')
    if refusal is None:
        (model,) = sources.from_proto(parsed(text))
        assert (model.engine, model.base_path) == (platform, path)
        return
    with pytest.raises(StatusError, match=refusal) as error:
        sources.from_proto(parsed(text))
    assert error.value.code == Code.INVALID_ARGUMENT


def test_arguments_name_models_after_their_directories(artifact, tmp_path, monkeypatch):
    add_version(tmp_path / "half_plus_two", 1)
    (tmp_path / "current").symlink_to(tmp_path / "half_plus_two")
    monkeypatch.chdir(tmp_path)
    paths = [artifact, pathlib.Path("half_plus_two/."), tmp_path / "current"]
    models = sources.served_models(paths)
    assert [(model.name, model.engine, model.base_path) for model in models] == [
        (artifact.name, "litert", artifact),
        ("half_plus_two", "tensorflow", tmp_path / "half_plus_two"),
        ("current", "tensorflow", tmp_path / "current"),  # a link stays one
    ]
    assert {model.policy for model in models} == {VersionPolicy(1)}


def test_arguments_that_cannot_be_served_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="both named model"):
        sources.served_models([tmp_path / "a/model", tmp_path / "b/model"])
    with pytest.raises(ArtifactError, match="There is no directory .*absent"):
        sources.served_models([tmp_path / "absent"])


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(listed(MODEL))
    return path


@contextlib.contextmanager
def following(path, errors=()):
    """Follow a file for the length of a block; return the names of the lists configured."""
    lists, errors, stopped = [], list(errors), threading.Event()

    def configure(models):
        lists.append([model.name for model in models])
        if errors:
            raise errors.pop(0)

    served = sources.read_config(path)
    arguments = (path, served, configure, 0.005, stopped)
    thread = threading.Thread(target=sources.follow_config, args=arguments)
    thread.start()
    try:
        yield lists
    finally:
        stopped.set()
        thread.join(5)
        assert not thread.is_alive()


def rename(path, name):
    """Have the file list the model under another name, at once."""
    path.with_suffix(".new").write_text(listed(MODEL.replace('name: "m"', f'name: "{name}"')))
    path.with_suffix(".new").rename(path)


def test_a_changed_file_is_followed(config_file):
    with following(config_file) as lists:
        config_file.write_text(f"# the same\n{listed(MODEL)}")
        for names in (["n"], ["n", "o"]):
            rename(config_file, names[-1])
            wait_until(lambda names=names: lists == [[name] for name in names])


@pytest.mark.parametrize("harm", [lambda path: path.write_text("{"), lambda path: path.unlink()])
def test_a_bad_file_is_told_once_and_changes_nothing(config_file, caplog, harm):
    with following(config_file) as lists:
        harm(config_file)
        wait_until(lambda: caplog.records)
        rename(config_file, "n")
        wait_until(lambda: lists == [["n"]])
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{config_file} is not followed: ")


def test_a_list_that_is_refused_is_tried_until_it_is_accepted(config_file, caplog):
    errors = [StatusError(Code.FAILED_PRECONDITION, "a label\nwaits")] * 2
    with following(config_file, errors) as lists:
        rename(config_file, "n")
        wait_until(lambda: len(lists) >= 3)
        rename(config_file, "o")
        wait_until(lambda: lists == [["n"]] * 3 + [["o"]])
    (record,) = caplog.records
    assert record.getMessage() == f"{config_file} is not followed: a label waits"
