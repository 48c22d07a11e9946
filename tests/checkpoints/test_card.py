"""A checkpoint's licence is what its card or its files say, and nothing where they say nothing."""

from pathlib import Path

import pytest

import bart_export
from bart_export.checkpoints.files import licence

FRONT = "---\nlanguage: en\nlicense: {}\n---\n\n# A model\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"README.md": "# A model\n\nIt writes.\n"}, None),
        ({"README.md": FRONT.format("apache-2.0")}, "apache-2.0"),
        ({"README.md": FRONT.format('"mit"')}, "mit"),
        ({"README.md": FRONT.format("other\nlicense_name: my-own")}, "my-own"),
        (
            {"README.md": "# M\n\n## Data and License\n\nA page about data.\n"},
            'as the checkpoint\'s README.md says under "Data and License"',
        ),
        ({"README.md": FRONT.format("mit"), "LICENSE": "MIT"}, "mit"),
        ({"LICENSE": "MIT"}, "as the checkpoint's file LICENSE says"),
        ({"README.md": b"\xff\xfe"}, None),
        ({"README.md": FRONT.format("a\x1b[2J" + 999 * "b")}, r"a\u001b[2J" + 195 * "b"),
    ],
)
def test_a_licence_is_what_the_checkpoint_says(tmp_path, files, expected):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    assert licence(tmp_path) == expected


def test_the_embedded_preset_says_where_its_licences_are():
    assets = Path(bart_export.__file__).parent / "assets"
    assert "Training data and its licences" in licence(assets / "bart_mini_en")
