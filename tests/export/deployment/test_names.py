"""A model's name fits wherever it is written, or is refused before anything is made."""

import pathlib
import re

import pytest
from support.deployed_models import MEMORY, SIZE, documents

from bart_export.errors import ConfigurationError
from bart_export.export.deployment.files import serving_files
from bart_export.export.deployment.names import kubernetes_name, model_name

HOSTILE = (
    "my model", "a:b", ".hidden", "-rf", "ünï", "a\nb", 'a"b', "a'b", "a$b", "{{a}}", "a#b",
    "a%20b", "a@b", "a" * 101,
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_would_need_quoting_is_refused(name):
    with pytest.raises(ConfigurationError) as refused:
        model_name(pathlib.Path("/artifacts") / name)
    assert "--output" in str(refused.value)


@pytest.mark.parametrize(
    "name", ["bart_mini_en", "Bart.Large-7", "7", "null", "No", "1e3", "a" * 100]
)
def test_other_names_are_the_directory_s(name):
    assert model_name(pathlib.Path("/artifacts") / name) == name
    written = serving_files(name, [1, 2], MEMORY, SIZE)
    assert f'name: "{name}"' in written["models.config"]
    for file in ("kubernetes.yaml", "kserve.yaml"):
        for document in documents(written[file]).values():
            assert isinstance(document["metadata"]["name"], str)
    # What Compose may not take for a number or nothing.
    assert isinstance(documents(written["compose.yaml"])[""]["name"], str)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bart_mini_en", "bart-mini-en"),
        ("Bart.Large_7", "bart-large-7"),
        ("7", "bart-7"),
        ("a__b--", "a-b"),
        ("x" * 39 + "_yz", "x" * 39),
    ],
)
def test_kubernetes_names_are_dns_labels(name, expected):
    assert kubernetes_name(name) == expected
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", expected)
