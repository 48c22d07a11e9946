"""The bundle for Android: of an artifact, what an app needs to run one static build.

An artifact and the name of one of its files go in; a directory that is an artifact itself comes
out, with that file, the tokenizer and the file's golden answers.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from bart_export import artifact
from bart_export.artifact import Artifact
from bart_export.manifest import GOLDEN


def write(source: Artifact, file: str, target: pathlib.Path) -> Artifact:
    """Put one file of an artifact into a bundle, in the place of an earlier one."""
    tokenizer = source.manifest["tokenizer"].values()
    with artifact.draft(target) as draft:
        for name in (*tokenizer, file):
            draft.carry(source, name)
        golden = json.loads(source.path(GOLDEN).read_bytes())
        content = json.dumps(answers_of(file, golden), ensure_ascii=False, indent=1)
        (draft.directory / GOLDEN).write_text(content, encoding="utf-8")
        entries = source.manifest["files"]
        kept = {name: entries[name] for name in (file, *tokenizer)}
        rows = {
            field: [row for row in source.manifest[field] if row["file"] == file]
            for field in ("verification", "measurements")
        }
        fields = {name: value for name, value in source.manifest.items() if "sha256" not in name}
        draft.commit({**fields, **rows, "files": {**kept, GOLDEN: draft.entry(GOLDEN)}})
    return Artifact.open(target)


def answers_of(file: str, golden: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cases of a golden.json that a file answered, with its answers alone."""
    return {
        "cases": [
            {**case, "files": {file: case["files"][file]}}
            for case in golden["cases"]
            if file in case["files"]
        ]
    }
