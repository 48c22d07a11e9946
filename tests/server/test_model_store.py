"""The version that answers a request: names, numbers, labels, and replaced lists of models."""

import threading

import pytest
from support.served_directories import (
    add_version,
    latest,
    refusal,
    running_store,
    served,
    states,
    wait_until,
)

from bart_export.server.model_store import ModelSpec
from bart_export.server.status import Code, StatusError
from bart_export.server.versions import LITERT, TENSORFLOW, ServedModel, State, VersionPolicy

LABELS = {"stable": 1, "canary": 2}
BOTH = VersionPolicy(specific=frozenset({1, 2}))


@pytest.fixture
def base_path(tmp_path):
    """Return a base path with versions 1 and 2."""
    for number in (1, 2):
        add_version(tmp_path / "model", number)
    return tmp_path / "model"


@pytest.fixture
def labelled(store, base_path):
    """Return a store that serves both versions of a model, with labels."""
    store.configure([served(base_path, policy=BOTH, labels=LABELS)])
    return store


def test_a_label_waits_for_its_version_when_another_answers_first(
    store, opener, base_path, monkeypatch
):
    serve, gate = store._serve, threading.Event()
    opener.gates[1] = gate

    def serve_until_one_answers(models):
        serve(models)
        wait_until(lambda: any(one.state == State.AVAILABLE for one in store.versions))
        threading.Timer(0.1, gate.set).start()

    monkeypatch.setattr(store, "_serve", serve_until_one_answers)
    store.configure([served(base_path, policy=BOTH, labels=LABELS)])
    assert [latest(store, label=label) for label in LABELS] == [1, 2]


def test_labels_can_be_moved_and_removed(labelled, base_path):
    assert [latest(labelled, label=label) for label in LABELS] == [1, 2]
    moved = {"stable": 2, "canary": 2, "last": 1}
    labelled.configure([served(base_path, policy=BOTH, labels=moved)])
    assert [latest(labelled, label=label) for label in moved] == [2, 2, 1]
    labelled.configure([served(base_path, policy=BOTH)])
    assert refusal(lambda: latest(labelled, label="stable"))[0] == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("held", "asked"),
    [({}, {"new": 3}), ({"old": 1}, {"old": 3}), ({"old": 1}, {"old": 2, "new": 3})],
)
def test_a_label_needs_an_available_version(store, base_path, held, asked):
    store.configure([served(base_path, policy=BOTH, labels=held)])
    models = [served(base_path, policy=BOTH, labels=asked)]
    assert refusal(lambda: store.configure(models)) == (
        Code.FAILED_PRECONDITION,
        "Request to assign label to version 3 of model m, "
        "which is not currently available for inference",
    )
    assert store.labels["m"] == held


def test_a_new_list_replaces_the_previous_one(store, opener, base_path, tmp_path):
    add_version(tmp_path / "other", 4)
    store.configure([served(base_path)])
    store.configure([served(tmp_path / "other", "other")])
    assert latest(store, "other") == 4
    assert refusal(lambda: latest(store)) == (
        Code.NOT_FOUND,
        "Servable not found for request: Latest(m)",
    )
    wait_until(lambda: states(store) == {2: State.END})
    assert list(store.served) == ["other"]
    store.configure([served(base_path), served(tmp_path / "other", "other")])
    assert (latest(store), latest(store, "other")) == (2, 4)
    assert opener.attempts == [2, 4, 2]


@pytest.mark.parametrize(
    ("models", "text"),
    [
        ([("n", TENSORFLOW), ("m", TENSORFLOW), ("n", TENSORFLOW)],
         "Illegal to list model n multiple times in config list"),
        ([("n", TENSORFLOW), ("m", LITERT)],
         "Illegal to change a model's platform. For model m platform was tensorflow "
         "and new platform requested is litert"),
        ([], "Expected a list of models, received none. Still serving m"),
    ],
)  # fmt: skip
def test_an_invalid_list_changes_nothing(store, base_path, models, text):
    store.configure([served(base_path)])
    listed = [ServedModel(name=name, base_path=base_path, engine=engine) for name, engine in models]
    assert refusal(lambda: store.configure(listed)) == (Code.INVALID_ARGUMENT, text)
    assert list(store.served) == ["m"]
    assert latest(store) == 2


def test_models_that_do_not_become_available_are_reported(store, opener, base_path, tmp_path):
    (tmp_path / "empty").mkdir()
    opener.errors[7] = [StatusError(Code.INVALID_ARGUMENT, "no graph\nin it")]
    add_version(tmp_path / "broken", 7)
    models = [served(tmp_path / name, name) for name in ("broken", "empty", "absent")]
    code, text = refusal(lambda: store.configure([served(base_path), *models]))
    assert code == Code.UNKNOWN
    assert text.startswith(
        "3 model(s) did not become available: {{name: broken version: 7} due to error: "
        "INVALID_ARGUMENT: no graph in it, {name: empty} due to error: NOT_FOUND: No versions of "
        f"servable empty found under base path {tmp_path / 'empty'}, {{name: absent}} due to "
        f"error: NOT_FOUND: {tmp_path / 'absent'} cannot be listed"
    )
    assert latest(store) == 2
    assert list(store.served) == ["m", "broken", "empty", "absent"]
    add_version(tmp_path / "absent", 1)
    wait_until(lambda: any(version.model.name == "absent" for version in store.versions))
    wait_until(lambda: states(store, "absent") == {1: State.AVAILABLE})


def test_a_list_that_cannot_be_applied_removes_nothing(store, opener, base_path, tmp_path):
    store.configure([served(base_path, labels={"stable": 2})])
    wrong = [served(tmp_path / "absent", "absent")]
    for _ in range(2):  # a second attempt is no better
        assert refusal(lambda: store.configure(wrong))[0] == Code.UNKNOWN
        assert latest(store, label="stable") == 2
    add_version(tmp_path / "absent", 1)
    wait_until(lambda: any(version.model.name == "absent" for version in store.versions))
    labelled = [served(tmp_path / "absent", "absent", labels={"stable": 3})]
    assert refusal(lambda: store.configure(labelled))[0] == Code.FAILED_PRECONDITION
    assert latest(store, label="stable") == 2
    store.configure(wrong)
    assert list(store.served) == ["absent"]
    assert latest(store, "absent") == 1
    assert refusal(lambda: latest(store))[0] == Code.NOT_FOUND


def test_stopping_unloads_everything_and_waits_for_calls(opener, base_path, tmp_path):
    add_version(tmp_path / "other", 5)
    models = [served(base_path), served(tmp_path / "other", "other")]
    with running_store(opener) as store:
        store.configure(models)
        with store.lease(ModelSpec("m")):
            stopping = threading.Thread(target=store.stop)
            stopping.start()
            wait_until(lambda: opener.of(5).closed.is_set())
            assert stopping.is_alive()
            assert not opener.of(2).closed.is_set()
        stopping.join(60)
        assert not stopping.is_alive()
        wait_until(lambda: opener.of(2).closed.is_set())
        assert refusal(lambda: store.configure(models))[0] == Code.UNAVAILABLE


def test_stopping_interrupts_configure(opener, base_path):
    opener.gates[2] = threading.Event()
    with running_store(opener) as store:
        told = []
        configuring = threading.Thread(
            target=lambda: told.append(refusal(lambda: store.configure([served(base_path)])))
        )
        configuring.start()
        wait_until(lambda: opener.attempts == [2])
        assert told == []
        threading.Timer(0.1, opener.gates[2].set).start()
        store.stop()
        configuring.join(60)
        (code, text) = told[0]
        assert code == Code.UNKNOWN
        assert "{name: m} due to error: UNAVAILABLE: The server is stopping" in text


def test_stopping_gives_up_on_a_call_that_never_ends(opener, base_path, caplog):
    with running_store(opener) as store:
        store.configure([served(base_path)])
        with store.lease(ModelSpec("m")):
            store.stop(0.02)
            assert "not unloaded after 0.02 s" in caplog.text
            assert not opener.of(2).closed.is_set()
