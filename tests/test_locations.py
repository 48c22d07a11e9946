"""Locations: local paths and URLs, and the credentials that must not be shown."""

import os
from pathlib import Path

import pytest

from bart_export.locations import is_remote, last_name, normalized, redacted, redacted_url


def test_locations_are_told_apart():
    remotes = ["hf://org/name", "gs://b/x", "simplecache::gs://b/x", "zip://a::http://h/a.zip"]
    assert all(map(is_remote, [*remotes, Path("hf://org/name"), Path("gs://b/x"), "kaggle://a/b"]))
    paths = ["artifacts/x", "/a//b", "C://x", "a: b://c", Path("c:/a"), "file:///a", "file:b"]
    assert not any(map(is_remote, paths))
    assert normalized(Path("ftp://host/a")) == "ftp://host/a"
    assert normalized("ZIP://A::HTTPS://H/A") == "zip://A::https://H/A"
    assert {*map(normalized, ("FILE://localhost/A", "Local:/A"))} == {"/A"}
    assert normalized("A::B") == "A::B"
    names = ["hf://org/name@v1", "hf://org/name", "gs://bucket/models/name/", "artifacts/name"]
    assert {*map(last_name, names)} == {"name"}
    assert last_name("s3://bucket/name@2") == "name@2"


PASSWORDS = ("word", "wo/rd", "wo rd", "w@o/rd", "wo@80/rd", "w?o#rd")
CREDENTIALS = ["word@", ":wo/rd@", *(f"me:{password}@" for password in PASSWORDS)]


@pytest.mark.parametrize("given", CREDENTIALS)
def test_credentials_are_redacted_however_malformed(given):
    for prefix in ("ftp://", "simplecache::ftp://", "FTP://"):
        assert (
            redacted(f"Cannot read {prefix}{given}host/a: no.")
            == f"Cannot read {prefix}host/a: no."
        )
    assert redacted(os.fspath(Path(f"ftp://{given}host/a"))) == "ftp:/host/a"


def test_queries_and_tokens_are_redacted():
    both = "http://host/a#token=word http:/host?token='word'"
    assert redacted(both) == "http://host/a http:/host'"
    assert redacted_url("http://me:wo?rd@host/a?token=wo rd") == "http://host/a"
    assert redacted("a header b'Bearer wo rd\\n'") == "a header b'Bearer …'"
    for same in ("hf://org/name@v1", "https://host:80/a@b", "http://[::1]:80/a@b", "C:/me@a"):
        assert redacted(f"Is {same}? Yes") == f"Is {same}? Yes"


@pytest.mark.parametrize("url", ["aa:/", "aa:/b: ", "aa:/a?", "://a:b@", "aa:/a:b"])
def test_redaction_reads_each_url_once(url):
    assert len(redacted(url * 50_000)) <= len(url) * 50_000
