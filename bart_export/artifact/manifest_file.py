"""The file `manifest.json`: read whole, its seal checked, and every field that is used of its type.

An artifact comes from anywhere, and its seal is a checksum that anybody can make. So nothing of a
manifest is used before its shape is known, and a name in it becomes a path in `path_of` alone,
which lets none out of the artifact's directory.
"""

import hashlib
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from bart_export import documents
from bart_export.config import GenerationConfig
from bart_export.documents import ANYTHING, COUNT, EVERY, FLAG, NUMBER, POSITIVE, TEXT, Kind, OrNull
from bart_export.errors import ArtifactError, shown
from bart_export.recipes.table import (
    EXPRESSIONS,
    MODES,
    MOST_EXPRESSIONS,
    STORAGES,
    is_expression,
)

FORMAT_VERSION = 1
# Bytes of a manifest and of golden.json: many times what any export makes.
MANIFEST_LIMIT, GOLDEN_LIMIT = 4 * documents.MEBIBYTE, 64 * documents.MEBIBYTE
MOST_CASES, MOST_TOKENS = 1000, 1 << 18  # of a golden.json, read and decoded, beam by beam
LARGEST_FILE = 1 << 40
SEAL = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"')
UNSEALED = "0" * 64
LONGEST_NAME, DEEPEST_NAME = 512, 16  # bytes, and parts
LONGEST_TEXT = 4096  # characters: a path, or a line of notes
# Controls, other ends of lines, and what turns the direction of writing.
STEERING = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SHOWABLE = f"a text of at most {LONGEST_TEXT} characters, none of which steers a terminal"

DIGEST = Kind(
    "a SHA-256 of 64 lower case digits",
    lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
)
SIZE = Kind(
    f"a number of bytes of at most {LARGEST_FILE}",
    lambda value: COUNT.holds(value) and value <= LARGEST_FILE,
)
AXIS = Kind("a size or a word", lambda value: COUNT.holds(value) or TEXT.holds(value))
TENSORS = {EVERY: {"dtype": TEXT, "shape": [AXIS]}}
SIDES = {"inputs": TENSORS, "outputs": TENSORS}
RELEASE = Kind("a version", lambda value: isinstance(value, str) and 0 < len(value) <= 40)
RECIPE = {
    "recipe": TEXT,
    "mode": documents.one_of(MODES),
    "layers": [(Kind(f"one of {EXPRESSIONS}", is_expression), documents.one_of(STORAGES))],
    "tolerance": {EVERY: NUMBER},
    "runtimes": {EVERY: RELEASE},
    "refusals": {EVERY: TEXT},
    "calibration?": {"texts": COUNT, EVERY: ANYTHING},
}
# Dynamic axes that each signature of a static build fixes.
AXES = {
    "encode": ("source",),
    "decode": ("source", "beams", "capacity"),
    "decode_single": ("source", "beams", "capacity"),
}
STATIC = {
    "shapes": {"source_lengths": [POSITIVE], "target_length": POSITIVE, "num_beams": [POSITIVE]},
    "signatures": {EVERY: {"signature": documents.one_of(AXES), **SIDES}},
}
ENTRY = {"bytes": SIZE, "sha256": DIGEST, "target?": TEXT}
VERSION = {
    "version?": POSITIVE,
    "dtype?": TEXT,
    "memory?": {"loaded": COUNT, "peak": COUNT, "measured": FLAG},
}
STEPS = {"steps": COUNT, "questions": COUNT}
SHARE = Kind("a number from 0 to 1", lambda value: NUMBER.holds(value) and 0 <= value <= 1)
LOSS = dict.fromkeys(("model", "file", "loss", "low", "high"), NUMBER)
# Figures of a file, and of a directory of files that go together: a version of a SavedModel.
FILE_FIGURES = {
    "file": TEXT,
    **STEPS,
    **dict.fromkeys(("logits", "spread", "relative", "kl"), NUMBER),
    "top1": SHARE,
    "tokens": OrNull(SHARE),
    "signatures": {EVERY: {EVERY: NUMBER}},
    **dict.fromkeys(("rounding?", "float32?"), OrNull(NUMBER)),
    **dict.fromkeys(("weights?", "rouge_1?", "rouge_2?", "rouge_l?"), OrNull(NUMBER)),
    "rouge?": OrNull({EVERY: LOSS}),
    "data?": OrNull({"sha256": TEXT, "texts": COUNT}),
}
VERSION_FIGURES = {
    "file": TEXT,
    **STEPS,
    **dict.fromkeys(("log_probabilities", "hidden"), NUMBER),
    **dict.fromkeys(("tokens", "texts"), SHARE),
}
SECONDS = Kind("a number above 0", lambda value: NUMBER.holds(value) and value > 0)
MEASUREMENT = {
    "file": TEXT,
    "export": COUNT,
    "machine": {"processor": TEXT, "architecture": TEXT, EVERY: ANYTHING},
    "num_threads": POSITIVE,
    "rounds": COUNT,
    "lengths": [
        dict.fromkeys(("source", "num_beams", "new_tokens"), POSITIVE)
        | dict.fromkeys(("seconds", "encode_seconds?", "fastest?", "slowest?"), SECONDS)
    ],
}
SENSITIVITY = {
    "layer": TEXT,
    "parameters": COUNT,
    "storage": TEXT,
    "kl": NUMBER,
    "relative": NUMBER,
}
MANIFEST = {
    "preset": TEXT,
    "source": {EVERY: OrNull(TEXT)},
    "config": {EVERY: ANYTHING},
    "generation": {EVERY: ANYTHING},
    "encoder_sequence_length": POSITIVE,
    "special_token_ids": {EVERY: COUNT},
    "parameter_count": POSITIVE,
    "tokenizer": {"vocabulary": TEXT, "merges": TEXT, EVERY: ANYTHING},
    "signatures": {EVERY: {EVERY: SIDES}},
    "files": {EVERY: ENTRY},
    "tools": {EVERY: TEXT},
    "licence?": OrNull(TEXT),
    "notes?": [TEXT],
    "verification": [{"file": TEXT, EVERY: ANYTHING}],
    "measurements": [MEASUREMENT],
    "sensitivity": [SENSITIVITY],
    "exports": POSITIVE,
}
# What else an entry has, by its target.
TARGETS = {"tflite": RECIPE, "saved_model": VERSION, "edgetpu": {}}
ANSWER = {"token_ids": [COUNT], "text": TEXT, "score": NUMBER}
GOLDEN = {
    "cases": [
        {
            "text": TEXT,
            "source_token_ids": [COUNT],
            "setting": TEXT,
            "generation": {EVERY: ANYTHING},
            "reference": ANSWER,
            "files": {EVERY: ANSWER},
        }
    ]
}


def read(path: pathlib.Path) -> dict[str, Any]:
    """Read and check a manifest.

    Raises:
        ArtifactError: if it is not JSON, of a newer format, edited, or a field has another type.
        FileNotFoundError: if there is none.
    """
    try:
        text = documents.read(path, MANIFEST_LIMIT)
        manifest = documents.parse_json(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(
            f"{path} cannot be read: {reason}. Export the artifact again."
        ) from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} must have format_version {FORMAT_VERSION}, received {shown(version)}. "
            "Export the artifact again with this version of bart-export, or update it."
        )
    unsealed, seals = SEAL.subn(f'"manifest_sha256": "{UNSEALED}"'.encode(), text)
    if seals != 1 or seal(unsealed) != text:
        raise ArtifactError(
            f"{path} was edited or damaged after the export: its manifest_sha256 does not match. "
            "Export the artifact again."
        )
    try:
        check(manifest)
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}. Export the artifact again.") from None
    return dict(manifest)


def write(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Write a manifest with these fields, which is one that `read` reads.

    Raises:
        ArtifactError: for fields that it would refuse.
    """
    content = {"format_version": FORMAT_VERSION, "manifest_sha256": UNSEALED, **fields}
    text = json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
    try:
        check(documents.parse_json(text))
        most = f"{MANIFEST_LIMIT} bytes or less"
        documents.require(len(text) <= MANIFEST_LIMIT, "the manifest", most, len(text))
    except ValueError as error:
        raise ArtifactError(
            f"The manifest could not be read back: {error}. Nothing was committed."
        ) from None
    path.write_bytes(seal(text))


def read_golden(path: pathlib.Path) -> dict[str, Any]:
    """Return the content of a golden.json.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it does not hold what it should.
    """
    content = documents.parse_json(documents.read(path, GOLDEN_LIMIT))
    check_golden(content)
    return dict(content)


def write_golden(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write a golden.json that `read_golden` reads.

    Raises:
        ArtifactError: for a content that it would refuse.
    """
    try:
        check_golden(content)
    except ValueError as error:
        raise ArtifactError(f"{path.name} could not be read back: {error}.") from None
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def check_golden(content: Any) -> None:
    """Hold golden answers to their types, and to what can be asked again in a short time.

    Raises:
        ValueError: for the first that is something else.
    """
    documents.check(content, GOLDEN)
    cases = content["cases"]
    documents.require(len(cases) <= MOST_CASES, "cases", f"at most {MOST_CASES}", len(cases))
    tokens = 0
    for case in cases:
        asked = GenerationConfig.from_dict(case["generation"])
        tokens += len(case["source_token_ids"]) + asked.num_beams * asked.max_length
    most = f"at most {MOST_TOKENS}"
    documents.require(tokens <= MOST_TOKENS, "the number of tokens of all beams", most, tokens)


def seal(unsealed: bytes) -> bytes:
    """Put the sha256 of a manifest's text, with that very value as zeros, into the text."""
    digest = hashlib.sha256(unsealed).hexdigest()
    return unsealed.replace(UNSEALED.encode(), digest.encode(), 1)


def check(manifest: Mapping[str, Any]) -> None:
    """Hold the fields of a manifest to their types, and its names to what a name can be.

    Raises:
        ValueError: for the first that is something else.
    """
    check_texts({name: value for name, value in manifest.items() if name != "tokenizer"})
    documents.check(manifest, MANIFEST)
    files = manifest["files"]
    check_names(list(files))
    for name, entry in files.items():
        if "target" in entry:
            documents.check(entry, TARGETS.get(entry["target"], {}), name)
        if "runtimes" in entry:
            documents.check(entry, RECIPE, name)
            most = f"a list of at most {MOST_EXPRESSIONS}"
            count = len(entry["layers"])
            documents.require(count <= MOST_EXPRESSIONS, f"{name}.layers", most, count)
        if "shapes" in entry:
            documents.check(entry, STATIC, name)
            for one in entry["signatures"].values():
                axes = dict.fromkeys(AXES[one["signature"]], POSITIVE)
                documents.check(one, {"sizes": axes}, f"{name}.signatures")
    for name in (manifest["tokenizer"]["vocabulary"], manifest["tokenizer"]["merges"]):
        documents.require(name in files, "tokenizer", "names of files", name)
    for row in manifest["verification"]:
        shape = FILE_FIGURES if "top1" in row else VERSION_FIGURES
        documents.check(row, shape, f"verification of {shown(row['file'])}")


def check_texts(manifest: Mapping[str, Any]) -> None:
    """Hold all texts, names of fields included, to what can be shown: in lines, reports and logs.

    Raises:
        ValueError: for one that is too long, or steers a terminal.
    """
    waiting: list[tuple[str, Any]] = [("", manifest)]
    while waiting:  # nested as deeply as a parser allows
        place, value = waiting.pop()
        if isinstance(value, str):
            shows = len(value) <= LONGEST_TEXT and not STEERING.search(value)
            documents.require(shows, place, SHOWABLE, value)
        elif isinstance(value, list):
            waiting += [(place, one) for one in value]
        elif isinstance(value, dict):
            for name, one in value.items():
                waiting += [(f"a name in {place or 'it'}", name), (place or shown(name), one)]


def check_names(names: list[str]) -> None:
    """Refuse names that are none for a file inside a directory, on any system, or not one only.

    Raises:
        ValueError: for an absolute name, one that leaves the directory or hides in it, one that
            another system would read otherwise, and two that name one file where case does not
            count.
    """
    seen: dict[str, str] = {}
    folders: set[str] = set()
    for name in names:
        parts = name.split("/")
        plain = name.isprintable() and not set(name) & set('\\:*?"<>|')
        short = len(name.encode()) <= LONGEST_NAME and len(parts) <= DEEPEST_NAME
        if not short or not plain or not all(map(is_part, parts)):
            raise ValueError(
                "a name must lead to a file inside the artifact, as tflite/float32.tflite does, "
                f"received {shown(name)}"
            )
        key = folded(name)
        if key in seen or key == "manifest.json":
            raise ValueError(f"{shown(name)} and {shown(seen.get(key, key))} name one file")
        seen[key] = name
        folders.update("/".join(key.split("/")[:count]) for count in range(1, len(parts)))
    if both := folders & seen.keys():
        raise ValueError(f"{shown(seen[min(both)])} names a file and a directory")


def is_part(part: str) -> bool:
    """Return whether a part of a name means itself everywhere: no "..", nothing hidden."""
    return bool(re.match(r"\w", part)) and not part.endswith((".", " ")) and len(part) <= 255


def folded(name: str) -> str:
    """Return what two names have in common that some file systems take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def path_of(directory: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of a file that a manifest names; `check` has looked at the name.

    Raises:
        ArtifactError: if a link on the way leads out of the directory.
    """
    path, root = os.path.realpath(directory / name), os.path.realpath(directory)
    if not path.startswith(os.path.join(root, "")):
        raise ArtifactError(
            f"{directory / name} leads out of the artifact, to {path}. An artifact must hold its "
            "files itself: copy it with its links resolved, as with cp -rL."
        )
    return directory / name
