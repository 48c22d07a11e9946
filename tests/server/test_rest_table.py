"""The REST service with real models, row by row.

The rows that ask for text run against each engine; those for SavedModels of all types against
TensorFlow alone.
"""

import contextlib
import shutil

import pytest
from support import made_up_artifacts
from support.made_up_saved_models import write_half_plus_two
from support.rest_rows import ANY_ENGINE
from support.rest_server import served
from support.saved_model_rows import SAVED_MODEL
from support.typed_saved_model import write_text, write_typed

from bart_export.server.metrics import Metrics
from bart_export.server.models import ModelStore
from bart_export.server.open_version import opener
from bart_export.server.options import ServeOptions
from bart_export.server.versions import LITERT, TENSORFLOW, ServedModel, VersionPolicy

ENGINES = (TENSORFLOW, LITERT)
OPTIONS = ServeOptions(load_retries=0)


@contextlib.contextmanager
def serving(models, find_versions):
    """Serve models over REST, opened by the server's own opener."""
    store = ModelStore(opener(OPTIONS, Metrics()), OPTIONS, find_versions)
    try:
        store.configure(models)
        with served(store, OPTIONS) as server:
            yield server
    finally:
        store.stop()


def text_model(base_path, engine):
    return ServedModel(
        name="text",
        base_path=base_path,
        engine=engine,
        policy=VersionPolicy(latest=None),
        labels={"stable": 1},
    )


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    """Serve the made-up SavedModels."""
    root = tmp_path_factory.mktemp("models")
    models = [text_model(root / "text", TENSORFLOW)]
    for name, write in (("half_plus_two", write_half_plus_two), ("typed", write_typed)):
        models.append(ServedModel(name=name, base_path=root / name, engine=TENSORFLOW))
        (root / name).mkdir()
        write(root / name / "1")
    (root / "text").mkdir()
    write_text(root / "text" / "1")
    shutil.copytree(root / "text" / "1", root / "text" / "2")

    def find_versions(served_model):
        return {int(path.name): path for path in served_model.base_path.iterdir()}

    with serving(models, find_versions) as server:
        yield server


@pytest.fixture(scope="module")
def artifact(mini_artifact, tmp_path_factory):
    """Serve the embedded preset's artifact twice, as two versions."""
    first, second = mini_artifact.directory, tmp_path_factory.mktemp("artifacts") / "second"
    made_up_artifacts.export_again(second, mini_artifact, 2)
    with serving([text_model(first, LITERT)], lambda _: {1: first, 2: second}) as server:
        yield server


SERVERS = {TENSORFLOW: "saved_models", LITERT: "artifact"}


def names(rows):
    """Return a short name for each row."""
    return [
        f"{number}-{method}-{path[-30:]}-{status}"
        for number, (method, path, _, status, _) in enumerate(rows)
    ]


def check(server, method, path, body, status, expected):
    answer = server.ask(method, path, body)
    assert answer.status == status, answer.text
    if path.startswith("/v1/"):
        assert answer.headers["Content-Type"] == "application/json"
    if isinstance(expected, dict):
        assert answer.json == expected
    elif isinstance(expected, bytes):
        assert answer.body == expected
    elif status != 200 and path.startswith("/v1/"):
        assert list(answer.json) == ["error"]
        assert expected in answer.json["error"]
    else:
        assert expected in answer.text


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", ANY_ENGINE, ids=names(ANY_ENGINE))
def test_text(request, engine, row):
    check(request.getfixturevalue(SERVERS[engine]), *row)


@pytest.mark.parametrize("row", SAVED_MODEL, ids=names(SAVED_MODEL))
def test_saved_models(saved_models, row):
    check(saved_models, *row)
