"""A model's versions are loaded, retried, replaced and unloaded during calls."""

import logging
import threading
import time

import pytest
from support.served_directories import (
    add_version,
    latest,
    refusal,
    remove_version,
    running_store,
    served,
    states,
    wait_for_polls,
    wait_until,
)

from bart_export.server.model_store import ModelSpec
from bart_export.server.status import Code, StatusError
from bart_export.server.versions import State, VersionPolicy


@pytest.fixture
def base_path(tmp_path):
    add_version(tmp_path / "model", 1)
    return tmp_path / "model"


def test_no_call_fails_while_versions_change_under_load(store, opener, base_path):
    """Four clients, while versions 2 and 3 appear. Old ones are closed once unused."""
    store.configure([served(base_path)])
    seen, failures, ended = [set() for _ in range(4)], [], threading.Event()

    def call(versions):
        while not ended.is_set():
            try:
                with store.lease(ModelSpec("m")) as lease:
                    versions.add(lease.version)
                    if lease.servable.number != lease.version:
                        failures.append("another version's servable")
                    for _ in range(20):
                        if lease.servable.closed.is_set():
                            failures.append(f"version {lease.version} closed while it was held")
            except Exception as error:
                failures.append(error)

    clients = [threading.Thread(target=call, args=(versions,)) for versions in seen]
    for client in clients:
        client.start()
    try:
        for number in (1, 2, 3):
            if number > 1:
                add_version(base_path, number)
            wait_until(lambda number=number: all(number in versions for versions in seen))
        wait_until(lambda: opener.of(1).closed.is_set() and opener.of(2).closed.is_set())
    finally:
        ended.set()
        for client in clients:
            client.join()
    assert failures == []
    wait_until(lambda: states(store) == {1: State.END, 2: State.END, 3: State.AVAILABLE})
    assert opener.attempts == [1, 2, 3]


def test_a_servable_in_use_is_closed_only_after_its_call(store, opener, base_path):
    store.configure([served(base_path)])
    with store.lease(ModelSpec("m")) as lease:
        add_version(base_path, 2)
        wait_until(lambda: states(store) == {1: State.UNLOADING, 2: State.AVAILABLE})
        assert latest(store) == 2
        code, text = refusal(lambda: latest(store, version=1))
        assert (code, text) == (Code.NOT_FOUND, "Servable not found for request: Specific(m, 1)")
        assert not lease.servable.closed.is_set()
    wait_until(lambda: states(store) == {1: State.END, 2: State.AVAILABLE})
    assert opener.of(1).closed.is_set()


def test_a_broken_version_is_skipped_until_it_changes(store, opener, base_path, tmp_path):
    store.configure([served(base_path)])
    opener.errors[3] = [OSError("it is cut")]
    torn = add_version(tmp_path, 3)
    (torn / "assets").symlink_to("nowhere")
    torn = torn.rename(base_path / "3")
    wait_until(lambda: states(store) == {1: State.AVAILABLE, 3: State.END})
    wait_for_polls(opener, 3)
    add_version(base_path, 2)
    wait_until(lambda: latest(store) == 2)
    (torn / "variables").mkdir()
    wait_until(lambda: latest(store) == 3)
    assert opener.attempts == [1, 3, 2, 3]
    assert len(store.versions) == 3  # the one that failed is forgotten


def test_an_older_version_is_served_if_the_latest_is_broken(store, opener, base_path):
    add_version(base_path, 2)
    opener.errors[2] = [OSError("it is cut")]
    store.configure([served(base_path)])
    assert latest(store) == 1
    assert states(store) == {1: State.AVAILABLE, 2: State.END}


def test_a_broken_only_version_is_loaded_again_when_it_changes(store, opener, base_path):
    opener.errors[1] = [OSError("it is cut")]
    code, reason = refusal(lambda: store.configure([served(base_path)]))
    assert (code, "it is cut" in reason) == (Code.UNKNOWN, True)
    (base_path / "1/variables").mkdir()
    wait_until(lambda: states(store) == {1: State.AVAILABLE})
    assert opener.attempts == [1, 1]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StatusError(Code.DATA_LOSS, "it\nis cut"), Code.DATA_LOSS, "it is cut"),
        (MemoryError(), Code.UNKNOWN, "MemoryError"),
    ],
)
def test_a_version_that_fails_ends_and_the_old_one_stays(
    store, opener, base_path, caplog, error, code, message
):
    store.configure([served(base_path)])
    opener.errors[2] = [error]
    add_version(base_path, 2)
    wait_until(lambda: states(store) == {1: State.AVAILABLE, 2: State.END})
    (status,) = store.status(ModelSpec("m", version=2))
    assert (status.code, status.message) == (code, message)
    assert latest(store) == 1
    add_version(base_path, 3)
    wait_until(lambda: latest(store) == 3)
    assert opener.attempts == [1, 2, 3]
    assert caplog.messages == [f"m: version 2 cannot be loaded: {message}"]


def test_a_version_that_is_no_longer_wanted_is_closed_after_loading(store, opener, base_path):
    store.configure([served(base_path)])
    opener.gates[2] = threading.Event()
    add_version(base_path, 2)
    wait_until(lambda: opener.attempts == [1, 2])
    threading.Timer(0.05, opener.gates[2].set).start()
    store.stop()
    assert states(store) == {1: State.END, 2: State.END}
    assert opener.of(2).closed.is_set()


def test_a_load_that_fails_after_its_model_was_removed_does_not_end_polling(
    store, opener, base_path, tmp_path
):
    add_version(tmp_path / "other", 1)
    opener.errors[2], opener.gates[2] = [OSError("damaged")], threading.Event()
    store.configure([served(base_path)])
    add_version(base_path, 2)
    wait_until(lambda: opener.attempts == [1, 2])
    store.configure([served(tmp_path / "other", "other")])
    opener.gates[2].set()
    wait_until(lambda: states(store)[2] == State.END)
    add_version(tmp_path / "other", 3)
    wait_until(lambda: latest(store, "other") == 3)


def test_a_model_removed_before_its_poll_does_not_end_polling(store, opener, base_path, tmp_path):
    add_version(tmp_path / "other", 1)
    other = served(tmp_path / "other", "other")
    store.configure([served(base_path), other])
    opener.polling.clear()
    polls = opener.polls
    wait_until(lambda: opener.polls > polls)
    store.configure([served(tmp_path / "elsewhere"), other])
    store.configure([other])
    opener.polling.set()
    add_version(tmp_path / "other", 3)
    wait_until(lambda: latest(store, "other") == 3)


def test_a_poll_that_ends_after_its_model_was_removed_changes_nothing(store, opener, base_path):
    store.configure([served(base_path)])
    opener.polling.clear()
    polls = opener.polls
    wait_until(lambda: opener.polls > polls)
    store.stop()
    opener.polling.set()
    store.thread.join(60)
    assert states(store) == {1: State.END}


# Policy, versions that are there, and those that are served, in the order of their loading.
POLICIES = [
    (VersionPolicy(), [1, 2, 10], [10]),
    (VersionPolicy(2), [1, 2, 10], [10, 2]),
    (VersionPolicy(5), [1, 2], [2, 1]),
    (VersionPolicy(latest=None), [1, 2, 10], [10, 2, 1]),
    (VersionPolicy(specific=frozenset({1, 2})), [1, 2, 10], [2, 1]),
    (VersionPolicy(specific=frozenset({2, 99})), [1, 2, 10], [2]),
]


@pytest.mark.parametrize(("policy", "present", "loaded"), POLICIES)
def test_a_policy_chooses_the_versions(store, opener, tmp_path, policy, present, loaded):
    for number in present:
        add_version(tmp_path / "model", number)
    store.configure([served(tmp_path / "model", policy=policy)])
    assert opener.attempts == loaded
    assert states(store) == dict.fromkeys(loaded, State.AVAILABLE)
    assert [latest(store, version=number) for number in loaded] == loaded
    assert latest(store) == loaded[0]


def test_a_new_policy_is_applied_one_version_at_a_time(store, opener, base_path):
    for number in (2, 3):
        add_version(base_path, number)
    store.configure([served(base_path)])
    opener.gates[2] = threading.Event()
    store.configure([served(base_path, policy=VersionPolicy(specific=frozenset({1, 2})))])
    wait_until(lambda: opener.attempts == [3, 2])
    wait_for_polls(opener, 2)
    assert states(store) == {2: State.LOADING, 3: State.AVAILABLE}
    opener.gates[2].set()
    one_and_two = {1: State.AVAILABLE, 2: State.AVAILABLE, 3: State.END}
    wait_until(lambda: states(store) == one_and_two)


def test_a_missing_version_is_logged_once(store, base_path, caplog):
    store.configure([served(base_path, policy=VersionPolicy(specific=frozenset({1, 7, 8})))])
    add_version(base_path, 2)
    add_version(base_path, 8)
    wait_until(lambda: latest(store) == 8)
    assert caplog.text.count("Version 7, 8 of servable m not found") == 1


def test_rolling_back_loads_the_old_version_before_unloading_the_new_one(store, opener, base_path):
    add_version(base_path, 2)
    store.configure([served(base_path)])
    opener.gates[1] = threading.Event()
    remove_version(base_path, 2)
    wait_until(lambda: opener.attempts == [2, 1])
    assert states(store) == {1: State.LOADING, 2: State.AVAILABLE}
    assert latest(store) == 2
    opener.gates[1].set()
    wait_until(lambda: states(store) == {1: State.AVAILABLE, 2: State.END})


def test_a_version_wanted_again_while_unloading_is_loaded_again(store, opener, base_path):
    store.configure([served(base_path)])
    with store.lease(ModelSpec("m")) as lease:
        add_version(base_path, 2)
        wait_until(lambda: states(store).get(1) == State.UNLOADING)
        remove_version(base_path, 2)
        wait_until(lambda: latest(store) == 1)
        assert states(store)[1] == State.AVAILABLE
        assert not lease.servable.closed.is_set()
    wait_until(lambda: lease.servable.closed.is_set())
    assert opener.attempts == [1, 2, 1]
    wait_until(lambda: states(store) == {1: State.AVAILABLE, 2: State.END})


def test_a_missing_base_path_changes_nothing(store, opener, base_path, caplog):
    store.configure([served(base_path)])
    base_path.rename(base_path.with_name("away"))
    wait_for_polls(opener, 3)
    assert latest(store) == 1
    base_path.with_name("away").rename(base_path)
    add_version(base_path, 2)
    wait_until(lambda: latest(store) == 2)
    assert caplog.text.count("cannot be listed") == 1


def test_removing_all_versions_unloads_the_model(store, opener, base_path):
    store.configure([served(base_path)])
    remove_version(base_path, 1)
    wait_until(lambda: states(store) == {1: State.END})
    assert refusal(lambda: latest(store))[0] == Code.NOT_FOUND
    assert opener.of(1).closed.is_set()


def test_a_new_base_path_is_served_without_a_gap(store, opener, base_path, tmp_path):
    store.configure([served(base_path)])
    opener.gates[1] = threading.Event()
    new = add_version(tmp_path / "elsewhere", 1)
    store.configure([served(tmp_path / "elsewhere")])
    wait_until(lambda: opener.attempts == [1, 1])
    assert latest(store) == 1
    assert states(store) == {1: State.AVAILABLE}
    opener.gates[1].set()
    wait_until(lambda: opener.opened[0].closed.is_set())
    with store.lease(ModelSpec("m")) as lease:
        assert lease.servable.path == new
    assert states(store) == {1: State.AVAILABLE}


def test_a_new_base_path_without_versions_ends_none(store, opener, base_path, tmp_path):
    store.configure([served(base_path)])
    (tmp_path / "elsewhere").mkdir()
    store.configure([served(tmp_path / "elsewhere")])
    wait_for_polls(opener, 3)
    assert latest(store) == 1
    add_version(tmp_path / "elsewhere", 2)
    wait_until(lambda: states(store) == {1: State.END, 2: State.AVAILABLE})


def test_polling_can_be_disabled(opener, base_path, tmp_path):
    with running_store(opener, poll_seconds=0) as store:
        store.configure([served(base_path)])
        add_version(base_path, 2)
        add_version(tmp_path / "other", 1)
        store.configure([served(base_path), served(tmp_path / "other", "other")])
        wait_until(lambda: opener.polls == 4)  # of each list, and after each load
        time.sleep(0.05)  # there is nothing that could be waited for
        assert opener.polls == 4
        assert states(store) == {1: State.AVAILABLE}


def test_each_event_is_one_line_of_the_log(store, base_path, tmp_path, caplog):
    caplog.set_level(logging.INFO, "bart_export.server")
    store.configure([served(base_path)])
    add_version(base_path, 2)
    wait_until(lambda: states(store)[1] == State.END)
    add_version(tmp_path / "n", 1)
    store.configure([served(tmp_path / "n", "n")])
    wait_until(lambda: states(store)[2] == State.END)
    lines = [line for record in caplog.records if (line := record.getMessage()).startswith("m:")]
    assert sorted(line.split(" in ")[0] for line in lines) == [
        "m: loaded version 1",
        "m: loaded version 2",
        "m: no longer served",
        f"m: serving {base_path} (tensorflow)",
        "m: unloaded version 1",
        "m: unloaded version 2",
    ]
