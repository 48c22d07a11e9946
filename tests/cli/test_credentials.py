"""No message, whoever writes it, shows the credentials of a URL."""

import logging
import sys

import pytest
from support.command import refusal

from bart_export.cli.serve import Lines
from bart_export.errors import ArtifactError, one_line, printable, shown

SECRET = "secret" * 40  # longer than what a message shows of a value
SECRETS = [f"memory://me:{SECRET}@host/a/b", f"https://host/a/b?X-Amz-Signature={SECRET}&x=1"]


@pytest.mark.parametrize("url", SECRETS)
def test_credentials_of_urls_are_not_shown(url):
    record = logging.LogRecord("", logging.INFO, "", 0, "Cannot open %s", (url,), None)
    for line in (
        printable(f"Cannot open {url}: no answer."),
        str(ArtifactError(f"Cannot open '{url}'")),
        shown([url]),
        one_line(OSError(f"Cannot open {url}")),
        Lines("%(message)s").format(record),
    ):
        assert "secret" not in line and "/a/b" in line
    same = "hf://org/name@main? Or gs://bucket/a."
    assert printable(same) == same


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize(
    "words",
    [
        ("{}",), ("{}", "--x"), ("--preset", "{}", "--target", "tflite"), ("--target", "{}"),
        ("--preset", "bart_mini_en", "--target", "tflite", "--recipe", "{}"),
        ("tune", "{}", "--budget", "top1=0.9"), ("inspect", "{}"), ("generate", "{}", "a text"),
        ("generate", "x", "a text", "--engine", "{}"), ("generate", "x", "--input", "{}"),
        ("verify", "{}"), ("serve", "{}"), ("serve", "{}", "gs://other/b"), ("push", "x", "{}"),
        ("push", "{}", "me/x"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_command_shows_the_credentials_of_a_url(url, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "fsspec.implementations.http", None)  # no network
    line = refusal(*(word.format(url) for word in words))
    assert "secret" not in line
