"""`BartGenerator` on batches as Ray Data passes them, without a cluster."""

import json
import os

import pyarrow as pa
import pytest
from ray import cloudpickle
from support.command import python
from support.many_texts import texts

from bart_export.errors import ArtifactError, ConfigurationError, EngineError, InputError
from bart_export.runtime import Generator
from bart_export.scale.ray import THREADS, BartGenerator
from bart_export.scale.ray_files import job_settings

SETTINGS = {"num_beams": 1, "max_length": 12}
REFUSED = {7: " ", 13: None, 20: "word " * 600}
COLUMNS = {
    "generated_text": pa.string(), "score": pa.float64(), "token_ids": pa.list_(pa.int32()),
    "truncated": pa.bool_(), "error": pa.string(),
}  # fmt: skip


def batch_of(texts, **columns):
    return pa.table({"id": range(len(texts)), "text": texts} | columns)


@pytest.fixture(scope="module")
def location(symmetric_artifact):
    return symmetric_artifact.directory


@pytest.fixture(scope="module")
def generator(location):
    """Return a Generator to compare with."""
    with Generator.from_artifact(location, num_threads=1) as generator:
        yield generator


def test_a_row_has_what_generate_returns_or_the_reason_why_not(location, generator):
    batch = batch_of([REFUSED.get(number, text) for number, text in enumerate(texts(40, 10))])
    answered = BartGenerator(location, **SETTINGS)(batch)
    assert answered.schema == pa.schema([*batch.schema, *map(pa.field, COLUMNS, COLUMNS.values())])
    assert answered.select(["id", "text"]) == batch
    for number, row in enumerate(answered.to_pylist()):
        if number in REFUSED:
            with pytest.raises(InputError) as refusal:
                generator.generate(row["text"], **SETTINGS)
            assert row["error"] == str(refusal.value)
            assert {row[name] for name in COLUMNS} == {None, row["error"]}
        else:
            result = generator.generate(row["text"], **SETTINGS)
            assert row["token_ids"] == list(result.token_ids)
            assert row["generated_text"] == result.text
            assert row["score"] == pytest.approx(result.score, abs=1e-5)
            assert (row["truncated"], row["error"]) == (False, None)


def test_a_text_that_is_not_utf_8_is_refused_alone(location):
    batch = pa.table({"text": pa.array([b"A short text.", b"\xff", None]).view(pa.string())})
    good, wrong, null = BartGenerator(location, **SETTINGS)(batch)["error"].to_pylist()
    assert good is None
    assert "must be valid Unicode" in wrong
    assert "must be a str" in null


def test_the_texts_of_a_batch_are_decoded_together(location):
    called = BartGenerator(location, **SETTINGS, min_length=12)
    scheduler = called.generator.scheduler
    steps = []
    step = scheduler.step
    scheduler.step = lambda: steps.append(len(scheduler.running)) or step()
    called(batch_of(texts(24, 10)))
    assert max(steps) == 24


def test_options_are_those_of_generate(location, generator):
    batch = batch_of(["word " * 600, "", "A short text."]).rename_columns(["id", "body"])
    options = {"truncate": True, "allow_empty": True, **SETTINGS}
    rows = BartGenerator(location, column="body", **options)(batch).to_pylist()
    assert [row["truncated"] for row in rows] == [True, False, False]
    for row in rows:
        assert row["token_ids"] == list(generator.generate(row["body"], **options).token_ids)


def test_several_sequences_are_a_list(location, generator):
    settings = {"num_beams": 3, "num_return_sequences": 2, "max_length": 12}
    answered = BartGenerator(location, **settings)(batch_of(["A short text.", " "]))
    assert answered.column_names[2:] == [*list(COLUMNS)[:3], "sequences", "truncated", "error"]
    first, refused = answered["sequences"].to_pylist()
    expected = generator.generate("A short text.", **settings).sequences
    assert [one["token_ids"] for one in first] == [list(one.token_ids) for one in expected]
    assert refused is None


def test_columns_of_earlier_results_are_replaced(location):
    called = BartGenerator(location, **SETTINGS)
    batch = batch_of(["A short text.", " "])
    earlier = {name: ["earlier"] * 2 for name in ("error", "sequences", "score")}
    assert called(batch_of(batch["text"], **earlier)) == called(batch)


def test_an_engines_error_is_not_a_refusal(location):
    """Ray repeats the batch, instead of recording errors that another attempt would not have."""
    called = BartGenerator(location, **SETTINGS)
    called.generator.close()
    with pytest.raises(EngineError, match="was closed"):
        called(batch_of(["A short text.", " "]))


def test_an_empty_batch_has_the_same_columns(location):
    batch = batch_of(["A short text."])
    called = BartGenerator(location, **SETTINGS)
    assert called(batch[:0]).schema == called(batch).schema


def test_a_copy_answers_the_same(location):
    called = BartGenerator(location, column="text", num_threads=1, **SETTINGS)
    batch = batch_of(texts(4, 10))
    pickled = cloudpickle.dumps(called)
    assert len(pickled) < 1000
    assert cloudpickle.loads(pickled)(batch) == called(batch)


def test_an_artifact_may_be_elsewhere(location):
    batch = batch_of(texts(4, 10))
    expected = BartGenerator(location, **SETTINGS)(batch)
    assert BartGenerator(location.as_uri(), **SETTINGS)(batch) == expected


@pytest.mark.parametrize(
    "batch",
    [
        {"text": ["A text."]},
        pa.table({"body": ["A text."]}),
        pa.table([["A text."], ["Another."]], ["text", "text"]),
        pa.table([["A text."], [1], [2]], ["text", "score", "score"]),
    ],
    ids=["format", "column", "texts", "results"],
)
def test_a_batch_without_texts_is_refused(location, batch):
    called = BartGenerator(location, **SETTINGS)
    with pytest.raises(InputError, match=r"pyarrow\.Table .* with a column 'text'.*, received"):
        called(batch)


def test_an_engine_has_as_many_threads_as_ray_gives_cpus(location, monkeypatch):
    def started(**options):
        before = threads()
        called = BartGenerator(location, **options)
        return called, threads() - before

    monkeypatch.delenv(THREADS, raising=False)
    kept = [started(num_threads=1), started(num_threads=4)]
    monkeypatch.setenv(THREADS, "4,2")  # a list for nested parallel regions
    kept += [started(), started(num_threads=1)]
    one, four, given, overridden = (count for _, count in kept)
    assert four == one + 3
    assert (given, overridden) == (four, one)


def threads():
    """Return the number of threads of this process, native ones included."""
    return len(os.listdir("/proc/self/task"))


def test_what_no_batch_can_change_is_refused_at_once(location, tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="num_beam"):
        BartGenerator(location, num_beam=4)
    with pytest.raises(ConfigurationError, match="return_exceptions"):
        BartGenerator(location, return_exceptions=True)
    with pytest.raises(ConfigurationError, match="max_length must be at most"):
        BartGenerator(location, max_length=1000)
    with pytest.raises(ConfigurationError, match="truncate must be true or false"):
        BartGenerator(location, truncate="yes")
    with pytest.raises(ConfigurationError, match="column must be the name of a column"):
        BartGenerator(location, column=5)
    with pytest.raises(ConfigurationError, match="revision applies to hf:// locations"):
        BartGenerator(location, revision="main")
    with pytest.raises(ArtifactError):
        BartGenerator(tmp_path)
    monkeypatch.setenv(THREADS, "many")
    with pytest.raises(ConfigurationError, match='OMP_NUM_THREADS must be .*, received "many"'):
        BartGenerator(location)


def test_the_settings_of_a_job_are_those_of_its_results(location, generator):
    default = generator.generation.num_beams
    settings = job_settings(location, num_beams=default)
    assert settings == job_settings(location) == json.loads(json.dumps(settings))
    assert settings != job_settings(location, num_beams=default + 1)
    assert settings != job_settings(location, truncate=True)
    with pytest.raises(ConfigurationError, match="truncate must be true or false"):
        job_settings(location, truncate="yes")
    with pytest.raises(ConfigurationError, match="num_beam"):
        job_settings(location, num_beam=1)


def test_ray_is_not_imported_and_pyarrow_is_asked_for():
    program = "import sys; import bart_export.scale.ray; print('ray' in sys.modules)"
    assert python(program).stdout == "False\n"
    done = python(f"import sys; sys.modules['pyarrow'] = None; {program}")
    assert "BartGenerator needs the package pyarrow, which is not installed" in done.stderr
    assert "[ray]" in done.stderr
