"""What is asked to be served, as text, as a message or as arguments, becomes records of models."""

import pathlib

import pytest
from google.protobuf import text_format
from support import made_up_artifacts
from support.served_directories import add_version, wait_until
from tensorflow_serving.config import model_server_config_pb2

from bart_export.errors import ArtifactError, ConfigurationError
from bart_export.server import messages, model_config
from bart_export.server.model_config import ConfigWatcher
from bart_export.server.sources import TENSORFLOW, All, Latest, ServedModel, Specific
from bart_export.server.status import Code, StatusError


def listed(*models):
    """Return a ModelServerConfig of these models as text."""
    return f"model_config_list {{ {' '.join(f'config {{ {model} }}' for model in models)} }}"


MODEL = 'name: "m" base_path: "/models/m" model_platform: "tensorflow"'


def record(name="m", base_path="/models/m", **fields):
    return ServedModel(name=name, base_path=pathlib.Path(base_path), engine=TENSORFLOW, **fields)


# Text, and the records that it stands for.
TEXTS = {
    "one model": (listed(MODEL), [record()]),
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
        [record(policy=Latest(2))],
    ),
    "all": (listed(MODEL + "model_version_policy { all {} }"), [record(policy=All())]),
    "no policy": (listed(MODEL + "model_version_policy {}"), [record()]),
    "versions named": (
        listed(MODEL + "model_version_policy { specific { versions: 1 versions: 12 } }"),
        [record(policy=Specific(frozenset({1, 12})))],
    ),
    "labels": (
        listed(
            MODEL + 'version_labels { key: "stable" value: 1 } '
            'version_labels { key: "canary" value: 2 }'
        ),
        [record(labels={"stable": 1, "canary": 2})],
    ),
    "a log": (
        listed(MODEL + 'logging_config { log_collector_config { type: "file" } }'), [record()]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_a_file_lists_models(tmp_path, case):
    text, models = TEXTS[case]
    (tmp_path / "models.config").write_text(f"# a comment\n{text}\n")
    assert model_config.read(tmp_path / "models.config") == models


@pytest.mark.parametrize("case", TEXTS)
def test_the_official_message_says_the_same(case):
    text, models = TEXTS[case]
    official = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    assert model_config.from_proto(official) == models
    ours = messages.ModelServerConfig.FromString(official.SerializeToString())
    assert model_config.from_proto(ours) == models


# Text that is a ModelServerConfig and lists what cannot be served, and what is said.
ONLY_LISTS = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
    "Only ModelConfigList is currently supported"
)
REFUSED = {
    "nothing": ("", ONLY_LISTS),
    "another kind of list": ('custom_model_config { type_url: "a/b" }', ONLY_LISTS),
    "a relative base path": (
        listed('name: "m" base_path: "models/m" model_platform: "tensorflow"'),
        "Expected model m to have an absolute path or URI; got base_path()=models/m",
    ),
    "no base path": (
        listed('name: "m" model_platform: "tensorflow"'),
        "Expected model m to have an absolute path or URI; got base_path()=",
    ),
    "a bucket": (
        listed('name: "m" base_path: "gs://models/m" model_platform: "tensorflow"'),
        "Expected model m to have an absolute path or URI; got base_path()=gs://models/m",
    ),
    "no name": (
        listed('base_path: "/models/m" model_platform: "tensorflow"'),
        "Expected every model to have a name; that of /models/m has none",
    ),
    "no platform": (
        listed('name: "m" base_path: "/models/m"'),
        "Expected model m to have the model_platform tensorflow or litert, received none",
    ),
    "two platforms": (
        listed(MODEL + "model_type: TENSORFLOW"),
        "Expected model m to have the model_platform tensorflow or litert, received tensorflow and "
        "tensorflow",
    ),
    "another old name": (
        listed('name: "m" base_path: "/models/m" model_type: OTHER'),
        "Expected model m to have the model_platform tensorflow or litert, received model_type 2",
    ),
    "an unknown platform": (
        listed('name: "m" base_path: "/models/m" model_platform: "caffe"'),
        "Expected model m to have the model_platform tensorflow or litert, received caffe",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused(case):
    text, told = REFUSED[case]
    config = text_format.Parse(text, messages.ModelServerConfig(), descriptor_pool=messages.POOL)
    with pytest.raises(StatusError) as error:
        model_config.from_proto(config)
    assert (error.value.code, error.value.message) == (Code.INVALID_ARGUMENT, told)


# Content of a file, and words of the line that refuses it.
BAD_FILES = [
    (listed('name: "m"').encode(), "Expected model m to have an absolute path"),
    (b"#\n" * 2**20, "as text: it has more than 1048576 bytes"),
    (b"\\" * 2**16, "as text: it has 64 backslashes in a row"),
    (b"model_config_list { " + b"a" * 2**19, "must hold"),
    (b"model_config_list {", "must hold a tensorflow.serving.ModelServerConfig as text"),
    (listed(MODEL + "color: 3").encode(), "color"),
    (b"\xff\xfe", "must hold a tensorflow.serving.ModelServerConfig as text"),
]


@pytest.mark.parametrize(("content", "words"), BAD_FILES)
def test_a_bad_file_is_refused_by_name_in_one_line(tmp_path, content, words):
    path = tmp_path / "models.config"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as error:
        model_config.read(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"models\.config cannot be read: No such file"):
        model_config.read(tmp_path / "models.config")


@pytest.fixture
def artifact(tmp_path):
    """Return the directory of an artifact that has a `.tflite` and no SavedModel."""
    return made_up_artifacts.write(tmp_path / "artifact", {"tflite/a.tflite": b""}).directory


PLACE = 'name: "m" base_path: "{path}" model_platform: "{platform}"'


def test_an_artifact_may_be_listed(artifact):
    text = listed(PLACE.format(path=artifact, platform="litert"))
    config = text_format.Parse(text, messages.ModelServerConfig(), descriptor_pool=messages.POOL)
    (model,) = model_config.from_proto(config)
    assert (model.engine, model.base_path) == ("litert", artifact)


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        ("tensorflow", "no files of the target saved_model"),
        ("litert", "engine litert serves artifacts"),
    ],
)
def test_a_platform_that_has_no_files_is_refused(artifact, platform, words):
    path = {"tensorflow": artifact, "litert": artifact.parent}[platform]
    text = listed(PLACE.format(path=path, platform=platform))
    config = text_format.Parse(text, messages.ModelServerConfig(), descriptor_pool=messages.POOL)
    with pytest.raises(StatusError, match=words) as error:
        model_config.from_proto(config)
    assert error.value.code == Code.INVALID_ARGUMENT


def test_arguments_name_models_after_their_directories(artifact, tmp_path, monkeypatch):
    add_version(tmp_path / "half_plus_two", 1)
    monkeypatch.chdir(tmp_path)
    paths = [artifact, pathlib.Path("half_plus_two/.")]
    models = model_config.served_models(paths)
    assert [(model.name, model.engine, model.base_path) for model in models] == [
        (artifact.name, "litert", artifact),
        ("half_plus_two", "tensorflow", tmp_path / "half_plus_two"),
    ]
    assert {model.policy for model in models} == {Latest(1)}


def test_two_directories_of_one_name_are_refused(tmp_path):
    paths = [tmp_path / "a/model", tmp_path / "b/model"]
    with pytest.raises(ConfigurationError, match="both named model"):
        model_config.served_models(paths)


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="There is no directory .*absent"):
        model_config.served_model("m", tmp_path / "absent")


def test_a_link_stays_one(tmp_path):
    add_version(tmp_path / "release-1", 1)
    (tmp_path / "current").symlink_to(tmp_path / "release-1")
    assert model_config.served_model("m", tmp_path / "current").base_path == tmp_path / "current"


class Configured:
    """What a store would be told, and how it answers."""

    def __init__(self):
        self.lists = []
        self.errors = []

    def configure(self, models):
        self.lists.append([model.name for model in models])
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(listed(MODEL))
    return path


@pytest.fixture
def configured():
    return Configured()


@pytest.fixture
def watcher(config_file, configured):
    served = model_config.read(config_file)
    watcher = ConfigWatcher(config_file, served, configured.configure, 0.01)
    yield watcher
    watcher.stop()


def rename(path, name):
    """Have the file list the model under another name."""
    path.write_text(listed(MODEL.replace('name: "m"', f'name: "{name}"')))


def test_a_changed_file_is_followed(watcher, config_file, configured):
    watcher.start()
    config_file.write_text(f"# the same\n{listed(MODEL)}")
    rename(config_file, "n")
    wait_until(lambda: configured.lists == [["n"]])
    rename(config_file, "o")
    wait_until(lambda: configured.lists == [["n"], ["o"]])
    watcher.stop()
    watcher.thread.join(5)
    assert not watcher.thread.is_alive()


def test_what_lists_the_same_is_not_configured_again(watcher, config_file, configured):
    config_file.write_text(f"# the same\n{listed(MODEL)}")
    watcher.look()
    assert configured.lists == []


@pytest.mark.parametrize("harm", [lambda path: path.write_text("{"), lambda path: path.unlink()])
def test_a_bad_file_is_told_once_and_changes_nothing(
    watcher, config_file, configured, caplog, harm
):
    harm(config_file)
    for _ in range(3):
        watcher.look()
    assert configured.lists == []
    (told,) = caplog.records
    assert told.getMessage().startswith(f"{config_file} is not followed: ")
    rename(config_file, "n")
    watcher.look()
    assert configured.lists == [["n"]]


def test_a_list_that_is_refused_is_tried_until_it_is_accepted(
    watcher, config_file, configured, caplog
):
    configured.errors = [StatusError(Code.FAILED_PRECONDITION, "a label\nwaits")] * 2
    rename(config_file, "n")
    for _ in range(4):
        watcher.look()
    assert configured.lists == [["n"]] * 3
    (told,) = caplog.records
    assert told.getMessage() == f"{config_file} is not followed: a label waits"
