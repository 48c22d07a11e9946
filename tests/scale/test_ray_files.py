"""What a job of Ray Data is told before its first task, about its rows and its checkpoint."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bart_export.errors import InputError
from bart_export.scale.ray_files import open_checkpoint, open_rows

TABLE = pa.table({"id": [1, 2], "text": ["a", "b"]})
WRONG = {
    "a null id": ([{"id": 1, "text": "a"}, {"id": None, "text": "b"}], "but row 2 has none"),
    "no id": ([{"id": 1, "text": "a"}, {"text": "b"}], "but row 2 has none"),
    "an id twice": ([{"id": n % 4, "text": "a"} for n in range(5)], "but 2 rows have the id 0"),
    "a string twice": ([{"id": "é", "text": "a"}] * 3, 'but 3 rows have the id "é"'),
    "other ids": ([{"id": 1.5, "text": "a"}], "integers or strings as 'id'"),
    "large ids": ([{"id": 1 << 70, "text": "a"}], "received double and string"),
    "ids of two kinds": ([{"id": 1, "text": "a"}, {"id": "b", "text": "b"}], "cannot be used"),
    "no ids": ([{"text": "a"}], "must have 'id' and 'text', received"),
    "no texts": ([{"id": 1, "body": "a"}], 'received ["id", "body"]'),
    "numbers for texts": ([{"id": 1, "text": 2}], "strings as 'text', received int64 and int64"),
    "not UTF-8": (b'{"id": 1, "text": "a"}\n{"id": 2, "text": "\xff"}', "Invalid UTF8"),
    "not JSON": (b'{"id": 1, "text": "a"}\nnot', "JSON parse error"),
    "an array": (b'[{"id": 1, "text": "a"}]', "JSON parse error"),
    "a name twice": (b'{"id": 1, "id": 2, "text": "a"}', "was specified twice"),
}  # fmt: skip


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(("rows", "words"), WRONG.values(), ids=WRONG)
def test_rows_that_a_checkpoint_would_confuse_are_refused(tmp_path, rows, words):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(rows if isinstance(rows, bytes) else lines(rows))
    with pytest.raises(InputError) as refusal:
        open_rows(str(path))
    assert words in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_source_is_a_file_or_a_directory_of_one_format(tmp_path):
    def names(source):
        rows = open_rows(str(source))
        return rows and [path[len(str(tmp_path)) :] for path in rows.files]

    with pytest.raises(InputError, match='received "no file"'):
        names(tmp_path / "absent.jsonl")
    for name in ("a.jsonl", "b.ndjson", "later/c.JSON.gz", "empty.jsonl", "README", "_d/d.parquet"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        row = b"\xef\xbb\xbf" + lines([{"id": name, "text": "a" * 3_000_000}]) + b"\n"
        path.write_bytes(gzip.compress(row) if name.endswith("gz") else row)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert names(tmp_path) == ["/a.jsonl", "/b.ndjson", "/later/c.JSON.gz"]
    assert names(tmp_path / "a.jsonl") == ["/a.jsonl"]
    assert names(tmp_path / "empty.jsonl") is None
    with pytest.raises(InputError, match=r'of one of these formats, received \["README"\]'):
        names(tmp_path / "README")
    pq.write_table(TABLE, tmp_path / "later/e.parquet")
    with pytest.raises(InputError, match="of one of these formats"):
        names(tmp_path)
    (tmp_path / "later/c.JSON.gz").unlink()
    assert names(tmp_path / "later") == ["/later/e.parquet"]
    pq.write_table(TABLE[:0], tmp_path / "later/e.parquet")
    assert names(tmp_path / "later") is None
    pq.write_table(pa.table([[1], ["a"], ["b"]], ["id", "text", "text"]), tmp_path / "f.parquet")
    with pytest.raises(InputError, match="duplicate field names"):
        names(tmp_path / "f.parquet")


@pytest.fixture
def job(tmp_path):
    """Return a function that begins a job, and its output, as Ray names the files."""
    pq.write_table(TABLE, tmp_path / "texts.parquet")
    rows, output = open_rows(str(tmp_path / "texts.parquet")), tmp_path / "headlines"

    def begin(rows=rows, **settings):
        ids = open_checkpoint(
            str(output), rows, {"num_beams": 4, "length_penalty": 1.0, **settings}
        )
        assert ids == f"{output}.checkpoint/ids"

    begin()
    ids = tmp_path / "headlines.checkpoint/ids"
    ids.mkdir()
    output.mkdir()
    for name in ("run_000000", "run_000001", "run_000002.pending", "run_000003.pending"):
        (ids / f"{name}.parquet").touch()
    for name in ("run_000000-0", "run_000001-0", "run_000001-1", "run_000002-0"):
        (output / f"{name}.parquet").touch()
    (output / ".crc").touch()
    return begin, output, ids


def test_a_checkpoint_belongs_to_its_settings(job, tmp_path):
    begin, output, ids = job
    begin()
    both = r'was begun with \{"num_beams": 4\}, received \{"num_beams": 1\}: give the same, choose'
    with pytest.raises(InputError, match=both):
        begin(num_beams=1)
    pq.write_table(TABLE.set_column(0, "id", [["a", "b"]]), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r'"integers"\}, received \{"id": "strings"\}'):
        begin(open_rows(str(tmp_path / "other.parquet")))
    ids.with_name("settings.json").write_text("[]")
    with pytest.raises(InputError, match=r'with \{"num_beams": null, .*delete .*headlines and '):
        begin()
    for path in (*ids.iterdir(), *output.iterdir()):
        path.unlink()
    begin(num_beams=1)  # nothing was done with others


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("headlines/run_000000-0", "lacks run_000000, which .*headlines.checkpoint has"),
        ("headlines/*", "lacks run_000000, which .*delete .* to start over"),
        ("headlines.checkpoint/ids/run_000001", "has run_000001-0, which .* does not know"),
        ("headlines.checkpoint/ids/*", "has run_00000.-., which .* does not know: put back"),
    ],
)  # fmt: skip
def test_an_output_and_its_checkpoint_are_of_one_job(job, gone, words):
    begin, output, _ = job
    for path in output.parent.glob(f"{gone}.parquet"):
        path.unlink()
    with pytest.raises(InputError, match=words):
        begin()
