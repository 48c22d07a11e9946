"""A Beam pipeline generates what a Generator does, and loses no text."""

import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import apache_beam as beam
import pyarrow.parquet
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from bart_export.contract import static_buckets
from bart_export.errors import ConfigurationError, InputError
from bart_export.runtime.generator import Generator
from bart_export.runtime.sizing import sizing_of
from bart_export.scale import check_parameters, checked_settings
from bart_export.scale.beam import BartModelHandler, error_rows, result_row

ROOT = Path(__file__).parents[2]
HEADLINES = ROOT / "tests/data/mini_model/headlines_4_beams.jsonl"
TEXTS = [json.loads(line)["text"] for line in HEADLINES.read_text(encoding="utf-8").splitlines()]
SHORT = [" ".join(text.split()[: 3 + n % 5]) for n, text in enumerate(TEXTS[:24])]
SETTINGS = {"num_beams": 1, "max_length": 12}
REFUSED = [
    "", " \n", "a word " * 500, None, 7, {"id": 1}, {"id": 2, "text": None}, [], ["two", "texts"],
]  # fmt: skip


@pytest.fixture(scope="module")
def location(symmetric_artifact):
    return str(symmetric_artifact.directory)


@pytest.fixture(scope="module")
def generator(location):
    with Generator.from_artifact(location, num_threads=1) as generator:
        yield generator


@pytest.fixture
def run(tmp_path):
    """Return a function that returns the good and the failed rows, and the metrics."""

    def run(elements, handler, exc_class=InputError, settings=SETTINGS):
        pipeline = beam.Pipeline(runner=FnApiRunner())
        infer = RunInference(handler, inference_args=settings)
        predictions, dead = (
            pipeline
            | beam.Create(elements, reshuffle=False)
            | infer.with_exception_handling(exc_class=exc_class)
        )
        letters = (dead.failed_inferences, *dead.failed_postprocessing) | beam.Flatten()
        for name, rows in (
            ("good", predictions | beam.Map(result_row)),
            ("failed", letters | beam.FlatMap(error_rows)),
        ):
            sink = beam.io.WriteToText(str(tmp_path / name), num_shards=1)
            rows | f"Convert {name}" >> beam.Map(json.dumps) | f"Write {name}" >> sink
        result = pipeline.run()
        metrics = {
            each.key.metric.name: each.committed
            for kind in result.metrics().query().values()
            for each in kind
        }
        return *(rows_of(tmp_path, name) for name in ("good", "failed")), metrics

    return run


def rows_of(folder, name):
    return [
        json.loads(line)
        for path in sorted(folder.glob(f"{name}-*"))
        for line in path.read_text().splitlines()
    ]


def test_the_rows_are_those_of_a_generator_with_the_items_of_their_texts(run, generator, location):
    elements = [{"id": number, "text": text} for number, text in enumerate(SHORT)]
    good, failed, metrics = run([*elements, "A plain text."], BartModelHandler(location))
    texts = [*SHORT, "A plain text."]
    results = generator.generate(texts, **SETTINGS)
    wanted = [
        {**(element if isinstance(element, dict) else {"text": element}), **result.to_dict()}
        for element, result in zip([*elements, "A plain text."], results, strict=True)
    ]
    assert failed == []
    assert sorted(good, key=json.dumps) == sorted(wanted, key=json.dumps)
    assert metrics["num_inferences"] == len(texts)
    assert metrics["generated_tokens"] == sum(len(row["token_ids"]) - 1 for row in wanted)
    assert metrics["refused_texts"] == 0


def test_a_refused_text_is_alone_among_the_dead_letters(run, location):
    elements = [*({"id": str(number), "text": text} for number, text in enumerate(SHORT[:4]))]
    elements[2:2] = REFUSED
    good, failed, metrics = run(elements, BartModelHandler(location))
    assert sorted(row["id"] for row in good) == ["0", "1", "2", "3"]
    messages = [row.pop("error") for row in failed]
    texts = [each if isinstance(each, dict) else {"text": each} for each in REFUSED]
    assert sorted(failed, key=json.dumps) == sorted(texts, key=json.dumps)
    assert len([one for one in messages if "must not be blank" in one]) == 2
    assert len([one for one in messages if "must be a str" in one]) == 6
    assert metrics["inference_request_batch_size"].max == len(elements)  # one batch
    assert metrics["refused_texts"] == len(REFUSED)


def test_a_refused_text_ends_a_pipeline_that_has_no_place_for_it(location):
    pipeline = beam.Pipeline(runner=FnApiRunner())
    texts = pipeline | beam.Create([*SHORT[:2], ""])
    texts | RunInference(BartModelHandler(location), inference_args=SETTINGS)
    with pytest.raises(Exception, match="A text must not be blank"):
        pipeline.run()


def test_parameters_that_the_model_cannot_have_end_a_pipeline(run, location):
    with pytest.raises(Exception, match="max_length must be at most"):
        run(SHORT[:2], BartModelHandler(location), settings={"max_length": 1000})


def test_a_size_that_a_static_build_does_not_have_is_not_about_a_text(generator, monkeypatch):
    buckets = static_buckets(generator.engine.config, [64], 24, [1, 2])
    monkeypatch.setattr(generator.engine, "sizing", sizing_of(generator.engine.config, buckets))
    sampled = {"num_beams": 1, "do_sample": True, "num_return_sequences": 4}
    for settings in ({"num_beams": 4}, {"max_length": 25}, sampled):
        with pytest.raises(ConfigurationError, match="must be at most .* in this static build"):
            checked_settings(generator, {"num_beams": 2, "max_length": 24, **settings})
    assert checked_settings(generator, {"num_beams": 2, "max_length": 24}).max_length == 24


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"return_exceptions": True}, "Unknown parameter"),
        ({"texts": []}, "Unknown parameter"),
        ({1: 2}, "must be a mapping"),
        (["seed"], "must be a mapping"),
        (0, "must be a mapping"),
        ({"special_tokens": None}, "special_tokens must be true or false, received null"),
        ({"truncate": "yes"}, "truncate must be true or false"),
        ({"num_beams": "4"}, "num_beams must be an integer"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer of at least 1"),
        ({"top_p": 2}, "top_p must be"),
    ],
)
def test_invalid_parameters_are_refused_before_a_pipeline_runs(location, settings, words):
    texts = beam.Pipeline(runner=FnApiRunner()) | beam.Create(SHORT[:2])
    infer = RunInference(BartModelHandler(location), inference_args=settings)
    with pytest.raises(ConfigurationError, match=words):
        texts | infer


def test_parameters_that_some_artifact_accepts_are_not_refused_before_it_is_open():
    for settings in (
        {"num_beams": 4, "num_return_sequences": 2, "min_length": 56, "eos_token_id": [2, 3]},
        {"seed": 3, "top_k": 5}, {"do_sample": True}, {"do_sample": False}, {"truncate": True},
        {"max_new_tokens": 5, "min_new_tokens": 2, "prompt_lookup_num_tokens": 3},
    ):  # fmt: skip
        check_parameters(settings)


class ClosedHandler(BartModelHandler):
    """Its engine fails."""

    def load_model(self):
        generator = super().load_model()
        generator.close()
        return generator


def test_an_engines_error_fails_the_batch_once(run, location):
    with pytest.raises(Exception, match="The Generator was closed"):
        run([*SHORT[:3], ""], ClosedHandler(location))
    good, failed, _ = run([*SHORT[:3], ""], ClosedHandler(location), exc_class=Exception)
    assert good == []
    assert sorted(row["text"] for row in failed) == ["", *sorted(SHORT[:3])]
    assert all("EngineError" in row["error"] for row in failed)


def test_batches_are_bounded_by_tokens(run, location):
    texts = [letter * 4 * 255 for letter in "abcdefgh"] + ["i" * 8000]
    handler = BartModelHandler(location, batch_tokens=1024)
    good, failed, metrics = run(texts, handler, settings={**SETTINGS, "truncate": True})
    assert (len(good), failed) == (9, [])
    assert metrics["inference_request_batch_size"].max == 4
    assert metrics["inference_request_batch_size"].min == 1  # the longest has a batch to itself
    assert metrics["inference_request_batch_size"].count == 3
    with pytest.raises(ConfigurationError, match="batch_tokens must be an integer of at least"):
        BartModelHandler(location, batch_tokens=1023)
    for use in (BartModelHandler, handler.update_model_path):
        with pytest.raises(ConfigurationError, match="must be a string or a path, received 5"):
            use(5)


def test_a_handler_is_plain_values(location):
    handler = BartModelHandler(location, recipe="float32", num_threads=2)
    copy = pickle.loads(pickle.dumps(handler))
    assert vars(copy) == vars(handler)
    with copy.load_model() as model:
        assert model.generate(SHORT[0], **SETTINGS).text
    assert vars(copy) == vars(handler)
    assert not copy.share_model_across_processes()


def test_a_models_refresh_opens_the_other_artifact(location, tmp_path):
    handler = BartModelHandler(location)
    handler.update_model_path("")  # Beam's path before the first refresh
    assert handler.location == location
    other = str(shutil.copytree(location, tmp_path / "other"))
    handler.update_model_path(other)
    with handler.load_model() as model:
        (prediction,) = handler.run_inference(SHORT[:1], model, SETTINGS)
        assert prediction.inference.token_ids == model.generate(SHORT[0], **SETTINGS).token_ids
    assert prediction.model_id == other
    assert other in model.source


@pytest.fixture(scope="module")
def example():
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location(
        "beam_summarize", ROOT / "examples/beam_summarize.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_replaces_its_files_and_keeps_what_it_cannot_read(
    example, location, generator, capsys, tmp_path
):
    texts = [*SHORT[:6], "a long text " * 2000]
    lines = [json.dumps({"id": n, "text": text}).encode() for n, text in enumerate(texts)]
    unusable = {
        b"{": "must be a JSON object",
        b'{"id": 7, "text": ""}': "must not be blank",
        "\ud800".encode("utf-8", "surrogatepass"): "must be UTF-8",
        b'{"id": 8, "text": "a lone \\ud800"}': "must be valid Unicode",
        b"": "must be a JSON object",
        b'{"id": 9, "text": 7}': 'must have a string "text", received 7',
    }
    lines[3:3] = unusable
    (tmp_path / "texts.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\n")
    flags = [
        "--runner=FnApiRunner",
        f"--failed={tmp_path}/failed.jsonl",
        "--shards=2",
        "--truncate",
    ]

    def summarize(name, suffix):
        output = f"--output={tmp_path / name}{suffix}"
        with pytest.raises(SystemExit, match="1"):
            example.main([location, f"--input={tmp_path}/texts.jsonl", output, *flags])
        refused = f'{len(unusable)} of {len(lines)} texts: see "error" in the files of {tmp_path}'
        assert capsys.readouterr().err == f"No result for {refused}/failed.jsonl.\n"
        return sorted(path.name for path in tmp_path.glob(f"{name}-*"))

    for _ in range(2):
        names = ["headlines-00000-of-00002.jsonl", "headlines-00001-of-00002.jsonl"]
        assert summarize("headlines", ".jsonl") == names
        rows = {row["id"]: row for row in rows_of(tmp_path, "headlines")}
        assert len(rows_of(tmp_path, "headlines")) == len(rows) == 7
        for number, result in enumerate(generator.generate(texts, truncate=True)):
            assert rows[number] == {"id": number, "text": texts[number], **result.to_dict()}
        failed = {str(row["text"]): row["error"] for row in rows_of(tmp_path, "failed")}
        refused = ("{", "", "\ufffd" * 3, lines[6].decode(), "7")
        assert failed.keys() == {*refused}
        for text, words in zip(refused, ("JSON object", "", "UTF-8", "Unicode", "7"), strict=True):
            assert words in failed[text]
        ids = [row.get("id") for row in rows_of(tmp_path, "failed")]
        assert sorted(filter(None, ids)) == [7, 9]
        assert len(ids) == len(unusable)
    assert example.columns({"id": None, "text": 7})["id"] is None
    summarize("table", ".parquet")
    tables = [pyarrow.parquet.read_table(path) for path in tmp_path.glob("table-*")]
    table = [row for table in tables for row in table.to_pylist()]
    assert {row["id"]: row["generated_text"] for row in table} == {
        str(number): row["generated_text"] for number, row in rows.items()
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--input=x.json"], "--input must end in .txt or .jsonl or .ndjson"),
        (["--output=o.csv"], "--output must end in .jsonl or .parquet"),
        (["--failed=./x/../o.JSONL"], "--output and --failed must name different files"),
        (["--failed=s3://key:secret@x/o?token=a"], "or .parquet, received s3://x/o"),
        (["--input=[a-z]*.jsonl", "--shards=3"], "must not match the files of --output"),
        (["--input=./f-00000-of-00001.jsonl"], "must not match the files of --failed"),
        (["--shards=0"], "error: --shards must be at least 1, received 0"),
        (["--shard=s3://key:secret@x"], "unknown arguments: --shard=s3://x"),
        (["--shard=2", "--runner=FnApiRunner"], "unknown arguments: --shard=2"),
        (["another.txt"], "unknown arguments: another.txt"),
        (["--direct_num_workers=two"], "invalid int value: 'two'"),
        (["--runner=Nope"], "Unexpected pipeline runner: Nope"),
        (["--failed=o.parquet"], "No files found based on the file pattern"),
    ],
)
def test_the_example_refuses_what_it_or_beam_would_ignore(
    example, location, capsys, tmp_path, options, said
):
    given = [f"--input={tmp_path}/x.txt", "--output=o.jsonl", "--failed=f.jsonl", *options]
    with pytest.raises(SystemExit, match="2"):
        example.main([location, *given])
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("options", [[], ["--direct_running_mode=multi_threading"]])
def test_the_example_says_in_one_line_why_its_pipeline_failed(
    example, location, capsys, tmp_path, options
):
    (tmp_path / "x.txt").write_text("A text.\n")
    (tmp_path / "file").touch()
    output = tmp_path / "file/o.jsonl"
    given = [f"--input={tmp_path}/x.txt", f"--output={output}", f"--failed={tmp_path}/f.jsonl"]
    with pytest.raises(SystemExit, match="2"):
        example.main([location, *given, "--runner=FnApiRunner", *options])
    *before, line = capsys.readouterr().err.splitlines()
    assert not before or options  # a thread of a worker prints a traceback
    assert line.startswith("Error: [Errno ")
    assert str(output.parent) in line


def test_the_example_opens_the_artifact_before_it_starts_workers(example, capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        example.main([str(tmp_path), "--input=x.txt", "--output=o.jsonl", "--failed=f.jsonl"])
    assert "has no manifest.json" in capsys.readouterr().err.splitlines()[-1]
