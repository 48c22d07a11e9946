"""The fixtures of the Kotlin tests: their content, updates and atomic replacement."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bart_export.config import GenerationConfig
from bart_export.text.tokenizer import BartTokenizer

ROOT = Path(__file__).parents[1]
NAMES = {"libLiteRt.path", "stamp.json", "written"}


@pytest.fixture(scope="module")
def fixtures():
    """Return the tool's module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        import android_fixtures

        yield android_fixtures


@pytest.fixture
def quick(fixtures, monkeypatch):
    """Return the tool with a small fixture, and a list of its writes."""
    written = []

    def write(directory):
        written.append(directory)
        (directory / "written").write_text(str(len(written)))

    monkeypatch.setattr(fixtures, "write", write)
    return fixtures, written


def names(directory):
    return {path.name for path in directory.iterdir()}


def test_what_is_there_is_kept_while_nothing_changes(quick, tmp_path, capsys):
    fixtures, written = quick
    fixtures.make(tmp_path / "made")
    fixtures.make(tmp_path / "made")
    assert len(written) == 1
    assert capsys.readouterr().out == f"{tmp_path / 'made'} is up to date\n"
    assert names(tmp_path / "made") == NAMES
    assert names(tmp_path) == {"made"}


@pytest.mark.parametrize("kind", ["versions", "sources"])
def test_what_a_change_made_old_is_made_anew(quick, tmp_path, kind):
    fixtures, _ = quick
    fixtures.make(tmp_path / "made")
    path = tmp_path / "made" / "stamp.json"
    stamp = json.loads(path.read_text())
    stamp[kind].pop(next(iter(stamp[kind])))
    path.write_text(json.dumps(stamp))
    fixtures.make(tmp_path / "made")
    assert (tmp_path / "made" / "written").read_text() == "2"
    stamp = fixtures.stamp()
    assert fixtures.found(tmp_path / "made") == stamp
    assert {"bart_export/runtime/search.py", "tools/mini_model/test.jsonl"} <= set(stamp["sources"])
    assert names(tmp_path) == {"made"}


def test_a_run_that_ends_early_leaves_what_was_there(quick, tmp_path, monkeypatch):
    fixtures, _ = quick
    fixtures.make(tmp_path / "made")
    (tmp_path / "made" / "stamp.json").write_text("{}")

    def killed(directory):
        (directory / "written").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fixtures, "write", killed)
        for place in ("made", "new"):
            with pytest.raises(KeyboardInterrupt):
                fixtures.make(tmp_path / place)
    assert (tmp_path / "made" / "written").read_text() == "1"
    assert names(tmp_path) == {"made"}
    fixtures.make(tmp_path / "made")
    fixtures.make(tmp_path / "new")
    assert names(tmp_path) == {"made", "new"}
    assert names(tmp_path / "made") == names(tmp_path / "new") == NAMES


def test_the_library_is_that_of_this_environment_though_nothing_changed(quick, tmp_path):
    fixtures, _ = quick
    fixtures.make(tmp_path / "made")
    (tmp_path / "made" / "libLiteRt.path").write_text("/nowhere\n0\n")
    fixtures.make(tmp_path / "made")
    library, version = (tmp_path / "made" / "libLiteRt.path").read_text().splitlines()
    assert Path(library).is_file()
    assert version == fixtures.stamp()["versions"]["ai-edge-litert"]


def test_a_run_that_changes_nothing_does_not_import_tensorflow(quick, tmp_path):
    fixtures, _ = quick
    fixtures.make(tmp_path / "made")
    program = (
        "import sys, android_fixtures\nandroid_fixtures.main()\n"
        "print({'tensorflow', 'keras', 'ai_edge_litert'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "--output", str(tmp_path / "made")],
        cwd=ROOT / "tools",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.splitlines() == [f"{tmp_path / 'made'} is up to date", "set()"], run.stderr


@pytest.fixture(scope="module")
def made_up(fixtures):
    """Return the module of the fixtures without a model."""
    return fixtures.android_searches


@pytest.fixture(scope="module")
def searches(made_up):
    return list(made_up.search_rows())


def test_searches_are_of_every_kind_and_settings_decide_them(made_up, searches):
    assert len(searches) == made_up.SEARCHES
    others = {
        "early_stopping": (True, False, "never"),
        "length_penalty": (0.0, 2.0),
        "no_repeat_ngram_size": (0,),
        "min_length": (0,),
        "repetition_penalty": (1.0,),
        "forced_bos_token_id": (None,),
        "forced_eos_token_id": (None,),
        "seed": (5,),
    }
    decided = {
        name: sum(
            decides(made_up, row, name, value)
            for row in searches
            for value in values
            if row["generation"]["do_sample"] or name != "seed"
        )
        for name, values in others.items()
    }
    assert min(decided.values()) >= 10, decided
    beams = {row["generation"]["num_beams"] for row in searches}
    assert beams == {1, 2, 3, 4, 5}
    assert any(len(row["hypotheses"]) > 1 for row in searches)


def decides(made_up, row, name, value):
    """Return whether another value of a setting changes the result of a search."""
    try:
        generation = GenerationConfig.from_dict({**row["generation"], name: value})
        other = made_up.search_row(row["vocabulary_size"], generation)
    except ValueError:
        return True
    return made_up.tokens_of(other) != made_up.tokens_of(row)


def test_searches_settle_the_best_sequence_and_are_json(searches):
    for row in searches:
        settled = [token for tokens in row["settled"] for token in tokens]
        assert settled == list(row["hypotheses"][0]["token_ids"][1:])
        assert json.loads(json.dumps(row))["generation"] == row["generation"]


def test_drafts_begin_and_end_often_and_are_json(made_up):
    rows = [json.loads(json.dumps(row)) for row in made_up.draft_rows()]
    ends = 0
    for row in rows:
        assert len(row["drafts"]) == len(row["averages"]) == len(row["tokens"])
        ends += sum(bool(one) and not other for one, other in itertools.pairwise(row["drafts"]))
        assert max(map(len, row["drafts"])) <= row["max_tokens"]
    assert ends > 2 * len(rows)


def test_pieces_joined_are_the_text_and_many_are_cut(fixtures):
    folder = ROOT / "tests" / "data" / "vocabulary"
    tokenizer = BartTokenizer.from_files(folder / "vocabulary.json", folder / "merges.txt")
    rows = list(fixtures.incremental_rows())
    for row in rows:
        assert "".join(row["pieces"]) + row["finish"] == tokenizer.detokenize(row["ids"])
    assert sum(row["finish"] != "" for row in rows) > 50
    texts = ["".join(row["pieces"]) for row in rows]
    assert sum("\ufffd" in text for text in texts) > 200
    assert any("👩‍👩‍👧‍👦" in text for text in texts)
    assert any(set(row["ids"]) & tokenizer.special_token_ids for row in rows)
