"""The comparison of two benchmark reports."""

import json

import pytest
from rich.console import Console

from bart_export.bench import rows
from bart_export.bench.comparison import ReportComparison
from bart_export.bench.rows import Report
from bart_export.errors import InputError

FILE = {"recipe": "float32", "build": "dynamic"}
ASKED = {"num_threads": 2, "source": 64, "num_beams": 4, "new_tokens": 16}


def made_up(size=100, cold=0.5, private=None, speed=10.0, threads=2):
    """Return a report as a JSON object, with a row in every list."""
    asked = {**ASKED, "num_threads": threads}
    way = {"num_threads": threads, "opening": "cold", "until": "text", "seconds": cold}
    speeds = {"encode_seconds": 2.0, "step_seconds": 1.0, "seconds": 4.0}
    file = {"file": "tflite/float32.tflite", "bytes": size, "bytes_per_parameter": size / 10}
    shares = {"encode_share": 0.5, "decode_share": 0.25, "search_share": 0.125}
    rate = {"num_texts": 8, "tokens_per_second": speed, "seconds_per_text": 2.0}
    return {
        "schema_version": 2,
        "artifact": {"preset": "made_up", "parameter_count": 10},
        "machine": {"processor": "a processor", "architecture": "one", "cores": 2},
        "settings": {"new_tokens": 16, "num_threads": [threads], "runs": 1},
        "files": [{**FILE, **file}],
        "openings": [{**FILE, **way}],
        "memory": [{**FILE, **asked, "private_bytes": private, "shared_bytes": 5}],
        "generation": [{**FILE, **asked, **speeds, "tokens_per_second": speed}],
        "skipped": [],
        "throughput": [{**FILE, **asked, **rate, **shares, "peak_bytes": size}],
    }


def compare(here, there):
    """Return a comparison as a JSON object and as text."""
    comparison = ReportComparison(Report.from_dict(here), Report.from_dict(there))
    console = Console(width=200)
    with console.capture() as text:
        console.print(comparison.tables())
    return comparison.to_dict(), text.get()


def test_ratios_are_this_report_s_figures_over_the_other_s():
    here = made_up(size=150, cold=0.25, private=30, speed=40.0)
    compared, text = compare(here, made_up(private=20))
    lists = (compared[name] for name in rows.LISTS)
    (file,), (opening,), (memory,), (generation,), (throughput,) = lists
    assert file == {**FILE, "bytes": 1.5, "bytes_per_parameter": 1.5}
    assert opening["seconds"] == 0.5
    assert (memory["private_bytes"], memory["shared_bytes"]) == (1.5, 1.0)
    assert generation == {
        **FILE, **ASKED, "encode_seconds": 1.0, "step_seconds": 1.0, "seconds": 1.0,
        "tokens_per_second": 4.0,
    }  # fmt: skip
    assert throughput == {
        **FILE, **ASKED, "num_texts": 8, "tokens_per_second": 4.0, "seconds_per_text": 1.0,
        "encode_share": 1.0, "decode_share": 1.0, "search_share": 1.0, "peak_bytes": 1.5,
    }  # fmt: skip
    assert compared["only_here"] == compared["only_there"] == []
    assert compared["machine"]["processor"] == "a processor"
    lines = [line.split() for line in text.splitlines() if line.startswith(" float32")]
    assert [line[-1] for line in lines] == ["1.50", "–", "1.00", "4.00", "1.50"]
    assert "made_up on a processor, 2 cores" in text
    assert "counterpart" not in text


def test_what_one_side_did_not_measure_has_no_ratio():
    compared, _ = compare(made_up(cold=None, private=None), made_up(private=20))
    assert compared["openings"][0]["seconds"] is None
    assert compared["memory"][0]["private_bytes"] is None


def test_rows_without_counterpart_are_counted_and_said_in_a_line():
    compared, text = compare(made_up(threads=1), made_up(threads=8))
    lists = [row["list"] for row in compared["only_here"]]
    assert lists == ["openings", "memory", "generation", "throughput"]
    assert {row["num_threads"] for row in compared["only_there"]} == {8}
    assert "4 rows of this report have no counterpart: num_threads 1." in text
    assert "4 rows of the other report have no counterpart: num_threads 8." in text


def test_a_report_from_before_throughput_is_read_and_compared():
    older = made_up()
    del older["throughput"]
    compared, text = compare(made_up(), older)
    assert compared["throughput"] == []
    assert [row["list"] for row in compared["only_here"]] == ["throughput"]
    assert "Throughput" not in text
    assert compared["generation"][0]["tokens_per_second"] == 1.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps({**made_up(), "schema_version": 1}), "schema version 2, received one of 1"),
        (json.dumps({"schema_version": 2}), "is not a complete report: it lacks artifact"),
        (json.dumps(made_up(cold="x")), "seconds must be a number, received"),
        ("[]", "received none"),
        ("no JSON", "received none"),
    ],
)
def test_what_is_no_report_of_this_schema_is_refused(tmp_path, content, words):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        rows.read(path)
