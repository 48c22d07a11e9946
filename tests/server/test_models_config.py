"""The models to serve, from `models.config`, a request or the command line, and their engines."""

import contextlib
import pathlib
import threading

import pytest
from google.protobuf import text_format
from support import made_up_artifacts
from support.served_directories import add_version, wait_until
from tensorflow_serving.config import model_server_config_pb2

from bart_export.artifact.manifest import FileEntry
from bart_export.errors import ArtifactError, ConfigurationError
from bart_export.server import messages, models_config
from bart_export.server.models_config import choose_engine
from bart_export.server.status import Code, StatusError
from bart_export.server.versions import LITERT, TENSORFLOW, ServedModel, VersionPolicy


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
def test_files_and_official_messages_give_the_same_models(tmp_path, case):
    text, models = TEXTS[case]
    (tmp_path / "models.config").write_text(f"# a comment\n{text}\n")
    assert models_config.read_config(tmp_path / "models.config") == models
    official = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    ours = messages.ModelServerConfig.FromString(official.SerializeToString())
    assert models_config.from_proto(official) == models_config.from_proto(ours) == models


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
        "Expected every model to have a name; the one at /models/m has none",
    ),
    "no platform": (listed(f'name: "m" {AT}'), f"{NO_PLATFORM}none"),
    "an unknown platform": (
        listed(f'name: "m" {AT} model_platform: "caffe"'), f"{NO_PLATFORM}caffe"
    ),
}  # fmt: skip


def parsed(text):
    return text_format.Parse(text, messages.ModelServerConfig(), descriptor_pool=messages.POOL)


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_models_are_refused(case):
    text, message = REFUSED[case]
    with pytest.raises(StatusError) as error:
        models_config.from_proto(parsed(text))
    assert (error.value.code, error.value.message) == (Code.INVALID_ARGUMENT, message)


MUST_HOLD = "must hold a tensorflow.serving.ModelServerConfig as text"
# Content of a file, None for no file, and words of the line that refuses it.
BAD_FILES = [
    (None, "cannot be read: No such file"),
    (listed('name: "m"').encode(), "Expected model m to have an absolute path"),
    (b"#\n" * 2**20, "cannot be read: it has more than 1,048,576 bytes"),
    (b"\\" * 2**16, "as text: it has 64 backslashes in a row"),
    (b"model_config_list { " + b"a" * 2**19, "must hold"),
    (b"model_config_list {", MUST_HOLD),
    (listed(MODEL + "color: 3").encode(), "color"),
    (b"\xff\xfe", MUST_HOLD),
]


@pytest.mark.parametrize(("content", "words"), BAD_FILES)
def test_the_error_for_an_invalid_file_names_it_in_one_line(tmp_path, content, words):
    path = tmp_path / "models.config"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as error:
        models_config.read_config(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def artifact(tmp_path):
    """Return the directory of an artifact that has a `.tflite` and no SavedModel."""
    return made_up_artifacts.write(tmp_path / "artifact", {"tflite/a.tflite": b""}).directory


def test_a_platform_needs_its_files(artifact):
    entry = f'name: "m" base_path: "{artifact}" model_platform:'
    (model,) = models_config.from_proto(parsed(listed(f'{entry} "litert"')))
    assert (model.engine, model.base_path) == (LITERT, artifact)
    with pytest.raises(StatusError, match="no files of the target saved_model") as error:
        models_config.from_proto(parsed(listed(f'{entry} "tensorflow"')))
    assert error.value.code == Code.INVALID_ARGUMENT


def test_models_are_named_after_their_directories(artifact, tmp_path, monkeypatch):
    add_version(tmp_path / "half_plus_two", 1)
    (tmp_path / "current").symlink_to(tmp_path / "half_plus_two")
    monkeypatch.chdir(tmp_path)
    paths = [artifact, pathlib.Path("half_plus_two/."), tmp_path / "current"]
    models = models_config.served_models(paths)
    assert [(model.name, model.engine, model.base_path) for model in models] == [
        (artifact.name, "litert", artifact),
        ("half_plus_two", "tensorflow", tmp_path / "half_plus_two"),
        ("current", "tensorflow", tmp_path / "current"),  # a link stays one
    ]
    assert {model.policy for model in models} == {VersionPolicy(1)}


def test_equal_names_and_missing_directories_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="both named model"):
        models_config.served_models([tmp_path / "a/model", tmp_path / "b/model"])
    for name in ("absent", "too long " * 30):
        with pytest.raises(ArtifactError, match=f"There is no directory .*{name}"):
            models_config.served_models([tmp_path / name])


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(listed(MODEL))
    return path


@contextlib.contextmanager
def following(path, errors=()):
    """Follow a file for the length of a block; return the model names of each list."""
    lists, errors, stopped = [], list(errors), threading.Event()

    def configure(models):
        lists.append([model.name for model in models])
        if errors:
            raise errors.pop(0)

    served = models_config.read_config(path)
    arguments = (path, served, configure, 0.005, stopped)
    thread = threading.Thread(target=models_config.follow_config, args=arguments)
    thread.start()
    try:
        yield lists
    finally:
        stopped.set()
        thread.join(60)
        assert not thread.is_alive()


def replace(path, text):
    """Replace the file atomically."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def rename(path, name):
    """Rename the model in the file."""
    replace(path, listed(MODEL.replace('name: "m"', f'name: "{name}"')))


def test_a_changed_file_is_applied(config_file):
    with following(config_file) as lists:
        replace(config_file, f"# the same\n{listed(MODEL)}")
        for names in (["n"], ["n", "o"]):
            rename(config_file, names[-1])
            wait_until(lambda names=names: lists == [[name] for name in names])


@pytest.mark.parametrize("harm", [lambda path: replace(path, "{"), pathlib.Path.unlink])
def test_an_invalid_file_is_logged_once_and_changes_nothing(config_file, caplog, harm):
    with following(config_file) as lists:
        harm(config_file)
        wait_until(lambda: caplog.records)
        rename(config_file, "n")
        wait_until(lambda: lists == [["n"]])
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{config_file} was not applied: ")


def test_a_refused_list_is_retried_until_it_is_accepted(config_file, caplog):
    errors = [StatusError(Code.FAILED_PRECONDITION, "a label\nwaits")] * 2
    with following(config_file, errors) as lists:
        rename(config_file, "n")
        wait_until(lambda: len(lists) >= 3)
        rename(config_file, "o")
        wait_until(lambda: lists == [["n"]] * 3 + [["o"]])
    (record,) = caplog.records
    assert record.getMessage() == f"{config_file} was not applied: a label waits"


def test_the_list_before_a_refused_one_is_applied_again(config_file):
    with following(config_file, [StatusError(Code.UNKNOWN, "it is broken")] * 9999) as lists:
        rename(config_file, "n")
        wait_until(lambda: lists)
        rename(config_file, "m")
        wait_until(lambda: ["m"] in lists)


@pytest.fixture
def make_artifact(tmp_path, monkeypatch):
    """Return a function that makes an artifact with a file for each target given."""
    fields = made_up_artifacts.manifest

    def with_targets(files, *rest):
        named = {
            name: FileEntry(entry.bytes, entry.sha256, name.split("/")[0])
            if not name.startswith("tflite")
            else entry
            for name, entry in files.items()
        }
        return fields(named, *rest)

    monkeypatch.setattr(made_up_artifacts, "manifest", with_targets)

    def make(*targets):
        contents = {f"{target}/1/file": b"" for target in targets}
        made_up_artifacts.write(tmp_path / "a", contents)
        return tmp_path / "a"

    return make


# The targets of an artifact, the engine requested, and the engine and subdirectory chosen.
ENGINES = [
    (["saved_model", "tflite"], None, (LITERT, ".")),
    (["tflite", "saved_model"], TENSORFLOW, (TENSORFLOW, "saved_model")),
    (["edgetpu", "saved_model"], None, (TENSORFLOW, "saved_model")),
]


@pytest.mark.parametrize(("targets", "requested", "chosen"), ENGINES)
def test_an_artifact_is_served_by_the_fastest_engine(make_artifact, targets, requested, chosen):
    directory = make_artifact(*targets)
    engine, subdirectory = chosen
    assert choose_engine(directory, requested) == (engine, directory / subdirectory)


@pytest.mark.parametrize("requested", [None, TENSORFLOW])
@pytest.mark.parametrize(
    ("name", "exists"), [("model", True), ("model", False), ("too long " * 30, False)]
)
def test_other_directories_are_saved_models(tmp_path, requested, name, exists):
    if exists:
        add_version(tmp_path / name, 1)
    assert choose_engine(tmp_path / name, requested) == (TENSORFLOW, tmp_path / name)


# The targets of an artifact, the engine requested, and words of the refusal.
WITHOUT_FILES = [
    (
        ["tflite"],
        TENSORFLOW,
        "for the engine tensorflow. Export it again with --target saved_model, or use the engine "
        "litert.",
    ),
    (["saved_model"], LITERT, "no files of the target tflite for the engine litert"),
    (
        ["edgetpu"],
        None,
        "no files of the target tflite or saved_model. Export it again with --target tflite.",
    ),
]


@pytest.mark.parametrize(("targets", "requested", "words"), WITHOUT_FILES)
def test_an_engine_without_files_is_refused(make_artifact, targets, requested, words):
    with pytest.raises(ArtifactError) as error:
        choose_engine(make_artifact(*targets), requested)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_litert_serves_only_artifacts(tmp_path):
    add_version(tmp_path, 1)
    with pytest.raises(ArtifactError, match=r"engine litert serves artifacts, but .* no manifest"):
        choose_engine(tmp_path, LITERT)


def test_a_version_directory_is_refused_as_a_base_path(tmp_path):
    with pytest.raises(ArtifactError, match="one version of a SavedModel") as error:
        choose_engine(add_version(tmp_path / "model", 1))
    assert f"numbered versions: {tmp_path / 'model'}." in str(error.value)
