"""What a job of Ray Data is told before its first task, about its rows and its checkpoint."""

import gzip
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import json as pj

from bart_export.errors import InputError
from bart_export.scale.ray_files import BLOCK, check_places, open_checkpoint, open_rows

TABLE = pa.table({"id": [1, 2], "text": ["a", "b"]})
WRONG = {
    "a null id": ([{"id": 1, "text": "a"}, {"id": None, "text": "b"}], "but row 2 has none"),
    "no id": ([{"id": 1, "text": "a"}, {"text": "b"}], "but row 2 has none"),
    "an id twice": ([{"id": n % 4, "text": "a"} for n in range(5)], "unique, but 2 rows of"),
    "a string twice": ([{"id": "é", "text": "a"}] * 3, 'texts.jsonl have the id "é"'),
    "other ids": ([{"id": 1.5, "text": "a"}], "integers of 64 bits or strings as 'id'"),
    "large ids": ([{"id": 1 << 70, "text": "a"}], "received double and string"),
    "ids of two kinds": ([{"id": 1, "text": "a"}, {"id": "b", "text": "b"}], "cannot be used"),
    "no ids": ([{"text": "a"}], "must have 'id' and 'text', received"),
    "no texts": ([{"id": 1, "body": "a"}], 'received ["id", "body"]'),
    "numbers for texts": ([{"id": 1, "text": 2}], "strings as 'text', received int64 and int64"),
    "not UTF-8": (b'{"id": 1, "text": "a"}\n{"id": 2, "text": "\xff"}', "Invalid UTF8"),
    "another column": (b'{"id": 1, "text": "a", "o": "\xff"}\n', "Invalid UTF8"),
    "a long row": (b'{"id": 1, "text": "%s"}\n' % (b"a" * 2 * BLOCK), "be shorter than 4194304"),
    "a deep row": (b'{"id": 1, "text": "a", "o": %s' % (b"[" * 100_000), "nested 500 times"),
    "not JSON": (b'{"id": 1, "text": "a"}\nnot', "JSON parse error"),
    "an array": (b'[{"id": 1, "text": "a"}]\n', "JSON parse error"),
    "a name twice": (b'{"id": 1, "id": 2, "text": "a"}\n', "was specified twice"),
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

    with pytest.raises(InputError, match="absent.jsonl does not exist"):
        names(tmp_path / "absent.jsonl")
    for name in ("a.jsonl", "b.ndjson", "later/c.JSON.gz", "empty.jsonl", "README", "_d/d.parquet"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        row = b"\xef\xbb\xbf" + lines([{"id": name, "text": "a" * 3_000_000}]) + b"\n"
        path.write_bytes(gzip.compress(row) if name.endswith("gz") else row)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "0.jsonl").write_bytes(b"\xef\xbb\xbf\r\n \n")
    (tmp_path / "1.jsonl.gz").write_bytes(gzip.compress(b""))
    assert names(tmp_path) == ["/a.jsonl", "/b.ndjson", "/later/c.JSON.gz"]
    assert names(tmp_path / "a.jsonl") == ["/a.jsonl"]
    for name in ("empty.jsonl", "0.jsonl", "1.jsonl.gz"):
        assert names(tmp_path / name) is None
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
    pq.write_table(pa.table([[1], ["a"], [2]], ["id", "text", "id"]), tmp_path / "f.parquet")
    with pytest.raises(InputError, match="f.parquet cannot be used: .* 2 times"):
        names(tmp_path / "f.parquet")


def test_every_file_is_read_with_one_type_for_each_column(tmp_path):
    source = tmp_path / "id=9"
    source.mkdir()
    for name, ids, texts, others in (
        ("a", pa.array([1, 2], pa.int32()), ["a", "b"], [1, 2]),
        ("b", pa.array([3, 4], pa.uint64()), pa.array(["a", "b"]).dictionary_encode(), [1.5, None]),
        ("c", pa.array([5, 6]), pa.array(["a", "b"], pa.large_string()), pa.nulls(2)),
        ("d", pa.nulls(0), pa.nulls(0), pa.array([], pa.string())),  # pandas' types without rows
    ):
        pq.write_table(
            pa.table([ids, texts, others], ["id", "text", "o"]), source / f"{name}.parquet"
        )
    rows = open_rows(str(source))
    types = {"id": pa.int64(), "text": pa.string(), "o": pa.float64()}
    assert rows.schema == pa.schema(types)
    assert rows.options["schema"] == rows.schema
    assert rows.options["partitioning"] is None
    assert rows.count == 6
    assert [path[-9:] for path in rows.files] == ["a.parquet", "b.parquet", "c.parquet"]
    for ids, words in (([2**63], "not in range"), (["a"], "int64 vs string"), ([5], "5")):
        ids = pa.array(ids, pa.uint64() if ids == [2**63] else None)
        pq.write_table(pa.table([ids, ["a"]], ["id", "text"]), source / "e.parquet")
        with pytest.raises(InputError, match=words):
            open_rows(str(source))
    pq.write_table(pa.table([["a"]], ["text"]), source / "e.parquet")
    with pytest.raises(InputError, match="must have an id, but row 7 has none"):
        open_rows(str(source))


def test_types_of_json_do_not_depend_on_the_first_rows(tmp_path):
    path, text = tmp_path / "texts.jsonl", "a" * (BLOCK // 4)
    dates = [
        {"id": f"2026-01-{day:02}", "text": text, "o": {"at": "2026-01-01"}} for day in range(1, 9)
    ]
    other = {
        "id": "2026-01-01T00:00:00",
        "text": "2026-01-01",
        "o": {"at": "x", "n": [1]},
        "p": 1.5,
    }
    path.write_bytes(lines([*dates, other])[:-1])  # without the last line break
    rows = open_rows(str(path))
    nested = pa.struct({"at": pa.string(), "n": pa.list_(pa.int64())})
    types = {"id": pa.string(), "text": pa.string(), "o": nested, "p": pa.float64()}
    assert rows.schema == pa.schema(types)
    read = pj.read_json(path, parse_options=rows.options["parse_options"])
    assert read.slice(8).to_pylist() == [other]
    path.write_bytes(lines([*dates, {**other, "o": 1}]))
    with pytest.raises(InputError, match="from object to number"):
        open_rows(str(path))
    path.write_bytes(lines([{"id": 1, "text": '["\\' * 1000, "o": [{}] * 1000}]))
    assert open_rows(str(path)).schema.names == ["id", "text", "o"]
    path.write_bytes(b'{"id": 1, "text": "2026-01-01"}')
    assert open_rows(str(path)).schema == pa.schema({"id": pa.int64(), "text": pa.string()})


@pytest.fixture
def job(tmp_path):
    """Return a function that begins a job, and its output, as Ray names the files."""
    pq.write_table(TABLE, tmp_path / "texts.parquet")
    rows, output = open_rows(str(tmp_path / "texts.parquet")), tmp_path / "headlines"

    def begin(rows=rows, **settings):
        ids, filesystem = open_checkpoint(
            str(output), rows, {"num_beams": 4, "length_penalty": 1.0, **settings}
        )
        assert filesystem.normalize_path(ids) == "ids"  # not "id=9/…", which Ray would read
        assert filesystem.base_path == f"{output}.checkpoint/"

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
    with pytest.raises(InputError, match="settings.json cannot be read: .*delete .*headlines and "):
        begin()
    for path in (*ids.iterdir(), *output.iterdir()):
        path.unlink()
    begin(num_beams=1)  # nothing was done with others


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("headlines/run_000000-0", "headlines.checkpoint lists run_000000, but it is missing"),
        ("headlines/*", "lists run_000000, but .*delete .* to start over"),
        ("headlines.checkpoint/ids/run_000001", "run_000001-0 in .* is not in its checkpoint"),
        ("headlines.checkpoint/ids/*", "headlines.checkpoint: put back .*, or choose"),
    ],
)  # fmt: skip
def test_an_output_and_its_checkpoint_are_of_one_job(job, gone, words):
    begin, output, _ = job
    for path in output.parent.glob(f"{gone}.parquet"):
        path.unlink()
    with pytest.raises(InputError, match=words):
        begin()


def test_an_output_with_files_of_others_is_not_to_be_deleted(job, tmp_path):
    begin, output, _ = job
    shutil.rmtree(tmp_path / "headlines.checkpoint")
    with pytest.raises(InputError) as refusal:
        begin()
    assert "and has no checkpoint: choose another output" in str(refusal.value)
    assert "delete" not in str(refusal.value)
    assert not (tmp_path / "headlines.checkpoint").exists()


@pytest.mark.parametrize(
    "output",
    ["data", "./data/", "data/out", ".", "file://{}/data", "other/../data/texts.parquet"],
)
def test_an_output_is_not_its_input(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    check_places("data", "data.headlines")
    with pytest.raises(InputError, match="must not be the input, or inside it, or contain it"):
        check_places("data", output.format(tmp_path))


def test_the_checkpoint_of_a_url_is_beside_the_output(tmp_path):
    pq.write_table(TABLE, tmp_path / "texts.parquet")
    rows, url = open_rows(str(tmp_path / "texts.parquet")), f"file://{tmp_path}/out"
    _, filesystem = open_checkpoint(f"{url}/?a=b", rows, {})
    assert filesystem.base_path == f"{tmp_path}/out.checkpoint/"
    assert (tmp_path / "out.checkpoint/settings.json").exists()
    check_places("s3://key:secret@bucket/a", "s3://bucket/b/?region=c")
    with pytest.raises(InputError, match="received s3://bucket/a/ for s3://bucket/a: choose"):
        check_places("s3://key:secret@bucket/a", "s3://bucket/a/?region=c")
