"""The manifest as dataclasses, one for each object in `manifest.json`.

Reading checks an untrusted file against these declarations. The format is described in
artifacts/README.md; Kotlin has classes of the same names (android/core, Manifest.kt).
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Annotated

from bart_export import contract
from bart_export.artifact.figures import (
    LayerSensitivity,
    Measurement,
    Positive,
    Verification,
    verification_type,
)
from bart_export.config import BartConfig, GenerationConfig
from bart_export.contract import Bucket, Signature, StaticShapes
from bart_export.documents import (
    Json,
    Kind,
    Record,
    Variant,
    absent,
    dataclass,
    is_count,
    one_of,
    require,
)
from bart_export.errors import shown
from bart_export.recipes.table import (
    EXPRESSIONS,
    MODES,
    MOST_EXPRESSIONS,
    STORAGES,
    is_expression,
)

FORMAT_VERSION = 1
UNSEALED = "0" * 64
LARGEST_FILE = 1 << 40
LONGEST_NAME, DEEPEST_NAME = 512, 16  # bytes, and directory levels
LONGEST_TEXT = 4096  # characters
# Control characters, other line separators, and bidirectional controls.
STEERING = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SHOWABLE = f"a string of at most {LONGEST_TEXT} characters without control characters"
TFLITE, SAVED_MODEL = "tflite", "saved_model"
# Dynamic axes, which are fixed in each signature of a static build.
AXES = {
    "encode": ("source",),
    "decode": ("source", "beams", "capacity"),
    "decode_single": ("source", "beams", "capacity"),
    "decode_draft": ("source", "draft", "capacity"),
}

IS_DIGEST = re.compile("[0-9a-f]{64}").fullmatch
Digest = Annotated[
    str, Kind("a SHA-256 in lowercase hexadecimal", lambda value: bool(IS_DIGEST(value)))
]
Size = Annotated[
    int,
    Kind(f"a number of bytes up to {LARGEST_FILE}", lambda value: value <= LARGEST_FILE),
]
Axis = Annotated[
    int | str, Kind("a size or a word", lambda value: is_count(value) or isinstance(value, str))
]
Expression = Annotated[str, Kind(f"one of {EXPRESSIONS}", is_expression)]
Version = Annotated[
    int,
    Kind(
        f"a version from 1 to {contract.CONTRACT_VERSION}; update bart-export for a newer one",
        lambda value: 1 <= value <= contract.CONTRACT_VERSION,
    ),
]
Release = Annotated[str, Kind("a version", lambda value: 0 < len(value) <= 40)]


@dataclass(frozen=True)
class SourceEntry(Record):
    """The checkpoint that an artifact was exported from."""

    handle: str
    revision: str | None
    format: str
    weights_sha256: str


@dataclass(frozen=True)
class TokenizerFiles(Record):
    """The tokenizer's two files and its settings; absent settings have BART's defaults.

    `added_tokens` are parsed by `text.added_tokens`.
    """

    vocabulary: str
    merges: str
    add_prefix_space: bool | None = absent()
    added_tokens: tuple[Mapping[str, object], ...] | None = absent()


@dataclass(frozen=True)
class TensorSpec(Record):
    """An input or output; its shape has names for dynamic axes."""

    dtype: str
    shape: tuple[Axis, ...]


def tensor_specs(
    tensors: Iterable[contract.Tensor], sizes: Mapping[str, int]
) -> dict[str, TensorSpec]:
    """Return tensor specifications by name, with axes in `sizes` as numbers."""
    return {
        tensor.name: TensorSpec(tensor.dtype, tuple(sizes.get(axis, axis) for axis in tensor.axes))
        for tensor in tensors
    }


@dataclass(frozen=True)
class SignatureEntry(Record):
    """A signature's tensors by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, signature: Signature, sizes: Mapping[str, int]) -> "SignatureEntry":
        """Return a signature's entry; `sizes` has the axes that the configuration fixes."""
        return cls(tensor_specs(signature.inputs, sizes), tensor_specs(signature.outputs, sizes))


@dataclass(frozen=True)
class BucketEntry(Record):
    """A signature of a static build, with the sizes of its otherwise dynamic axes."""

    signature: Annotated[str, one_of(AXES)]
    sizes: Mapping[str, Positive]
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @property
    def all_sizes(self) -> dict[str, int]:
        """The sizes, including those that version 1 of the contract lacks."""
        one_source = {contract.SOURCES: 1, contract.ROWS: self.sizes.get(contract.BEAMS, 1)}
        return {**(one_source if contract.BEAMS in self.sizes else {}), **self.sizes}

    @classmethod
    def of(cls, bucket: Bucket, sizes: Mapping[str, int]) -> "BucketEntry":
        """Return a bucket's entry; `sizes` has the axes that the configuration fixes."""
        signature, fixed = bucket.signature, {**sizes, **bucket.sizes}
        return cls(
            signature.name,
            dict(bucket.sizes),
            tensor_specs(signature.inputs, fixed),
            tensor_specs(signature.outputs, fixed),
        )


@dataclass(frozen=True)
class Calibration(Record):
    """The texts that activation ranges were measured on, in `samples` runs of a signature."""

    texts: int
    samples: int | None = absent()
    origin: str | None = absent()
    sha256: str | None = absent()


@dataclass(frozen=True)
class Memory(Record):
    """The memory, in bytes, that a server needs for a SavedModel version.

    `loaded` is what it needs once the version is loaded; `peak` is what it needs for a full batch
    of the longest texts. Both are estimated from file sizes unless `measured`.
    """

    loaded: int
    peak: int
    measured: bool = True


@dataclass(frozen=True)
class FileEntry(Record):
    """A file in the artifact; `target` is the export target that wrote it, or None."""

    bytes: Size
    sha256: Digest
    target: str | None = absent()


@dataclass(frozen=True)
class TfliteEntry(FileEntry):
    """A `.tflite` file that an engine opens; `shapes` is set for a static build."""

    _: dataclasses.KW_ONLY
    recipe: str
    mode: Annotated[str, one_of(MODES)]
    layers: tuple[tuple[Expression, Annotated[str, one_of(STORAGES)]], ...]
    tolerance: Mapping[str, float]
    runtimes: Mapping[str, Release]
    refusals: Mapping[str, str]
    calibration: Calibration | None = absent()
    shapes: StaticShapes | None = absent()
    contract_version: Version | None = absent()  # 1 if absent

    @property
    def build(self) -> str:
        """One of `runtime.engine_choice.BUILDS`."""
        return "dynamic" if self.shapes is None else "static"


@dataclass(frozen=True)
class StaticEntry(TfliteEntry):
    """A file of the static build, whose signatures have fixed sizes."""

    _: dataclasses.KW_ONLY
    signatures: Mapping[str, BucketEntry]


@dataclass(frozen=True)
class HostEntry(TfliteEntry):
    """The file that runs on the CPU, between segments for the Edge TPU."""

    _: dataclasses.KW_ONLY
    signatures: Mapping[str, SignatureEntry]


@dataclass(frozen=True)
class SavedModelEntry(FileEntry):
    """A file in a SavedModel version."""

    version: Positive | None = absent()
    dtype: str | None = absent()
    memory: Memory | None = absent()


@dataclass(frozen=True)
class SegmentEntry(FileEntry):
    """A segment for the Edge TPU, with `rows` positions; `streamed_bytes` do not fit its memory."""

    _: dataclasses.KW_ONLY
    rows: int
    calibration: Calibration
    parameter_bytes: int
    streamed_bytes: int


@dataclass(frozen=True)
class CompiledEntry(FileEntry):
    """A compiled segment, with the compiler's report."""

    _: dataclasses.KW_ONLY
    compiler: Mapping[str, object]


def entry_type(entry: Mapping[str, Json]) -> type[FileEntry]:
    """Return the class of an entry."""
    if "shapes" in entry:
        return StaticEntry
    if entry.get("target") == TFLITE or "runtimes" in entry:
        return HostEntry if "signatures" in entry else TfliteEntry
    if entry.get("target") == SAVED_MODEL:
        return SavedModelEntry
    if "parameter_bytes" in entry:
        return SegmentEntry
    return CompiledEntry if "compiler" in entry else FileEntry


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """The content of `manifest.json`.

    `exports` counts the exports to this directory; `rows_without_token` are embedding rows beyond
    the vocabulary. `files` is keyed by name, and `signatures` by target.
    """

    format_version: int = FORMAT_VERSION
    manifest_sha256: str = UNSEALED
    preset: str
    source: SourceEntry
    config: BartConfig
    parameter_count: Positive
    generation: GenerationConfig
    notes: tuple[str, ...] = ()
    rows_without_token: int = 0
    encoder_sequence_length: Positive
    special_token_ids: Mapping[str, int]
    tokenizer: TokenizerFiles
    signatures: Mapping[str, Mapping[str, SignatureEntry]]
    tools: Mapping[str, str]
    licence: str | None = None
    exports: Positive
    files: Mapping[str, Annotated[FileEntry, Variant(entry_type)]]
    verification: tuple[Annotated[Verification, Variant(verification_type)], ...]
    measurements: tuple[Measurement, ...]
    sensitivity: tuple[LayerSensitivity, ...]

    @classmethod
    def from_dict(cls, value: object) -> "Manifest":
        """Return a manifest, or raise ValueError or ConfigurationError for an invalid field."""
        require(isinstance(value, dict), "", "an object", value)
        assert isinstance(value, dict)
        check_texts({name: part for name, part in value.items() if name != "tokenizer"})
        manifest = super().from_dict(value)
        check_names(list(manifest.files))
        for name in (manifest.tokenizer.vocabulary, manifest.tokenizer.merges):
            require(name in manifest.files, "tokenizer", "names of files in the manifest", name)
        for name, entry in manifest.files.items():
            if isinstance(entry, TfliteEntry):
                most, count = f"a list of at most {MOST_EXPRESSIONS}", len(entry.layers)
                require(count <= MOST_EXPRESSIONS, f"{name}.layers", most, count)
            if not isinstance(entry, StaticEntry):
                continue
            for signature in entry.signatures.values():
                version, drafts = entry.contract_version or 1, signature.signature == "decode_draft"
                require(version > drafts, f"{name}.contract_version", "2, for drafts", version)
                for axis in AXES[signature.signature]:
                    if axis not in signature.sizes:
                        raise ValueError(f"{name}.signatures.sizes lacks {axis}")
                if contract.ROWS in (sizes := signature.all_sizes):
                    rows = sizes[contract.SOURCES] * sizes[contract.BEAMS]
                    place = f"{name}.signatures.sizes.rows"
                    require(sizes[contract.ROWS] == rows, place, str(rows), sizes[contract.ROWS])
        longest = manifest.config.max_sequence_length
        require(
            manifest.encoder_sequence_length <= longest,
            "encoder_sequence_length",
            f"at most max_sequence_length, {longest}",
            manifest.encoder_sequence_length,
        )
        return manifest

    def tflite(self, target: str = TFLITE) -> dict[str, TfliteEntry]:
        """Return the `.tflite` files of a target that engines open, by name, in manifest order."""
        return {
            name: entry
            for name, entry in self.files.items()
            if isinstance(entry, TfliteEntry) and entry.target == target
        }

    @property
    def saved_model_versions(self) -> list[int]:
        """The versions of the SavedModel, in ascending order."""
        entries = (entry for entry in self.files.values() if isinstance(entry, SavedModelEntry))
        return sorted({entry.version for entry in entries if entry.version is not None})


def check_texts(manifest: Mapping[str, Json]) -> None:
    """Raise ValueError for a string or field name that is too long or has control characters."""
    waiting: list[tuple[str, Json]] = [("", manifest)]
    while waiting:  # no recursion: the JSON may be nested as deeply as the parser allows
        place, value = waiting.pop()
        if isinstance(value, str):
            showable = len(value) <= LONGEST_TEXT and not STEERING.search(value)
            require(showable, place, SHOWABLE, value)
        elif isinstance(value, list):
            waiting += [(place, inner) for inner in value]
        elif isinstance(value, dict):
            for name, inner in value.items():
                waiting += [(f"a name in {place or 'it'}", name), (place or shown(name), inner)]


def check_names(names: list[str]) -> None:
    """Raise ValueError unless names denote distinct files in a directory on every system.

    Names may not be absolute or hidden, point outside the directory, have a special meaning on
    another system, or differ only in case.
    """
    seen: dict[str, str] = {}
    folders: set[str] = set()
    for name in names:
        parts = name.split("/")
        plain = name.isprintable() and not set(name) & set('\\:*?"<>|')
        short = len(name.encode()) <= LONGEST_NAME and len(parts) <= DEEPEST_NAME
        if not short or not plain or not all(map(is_part, parts)):
            raise ValueError(
                "a name must be a path inside the artifact, such as tflite/float32.tflite, "
                f"received {shown(name)}"
            )
        key = folded(name)
        if key in seen or key == "manifest.json":
            raise ValueError(f"{shown(name)} and {shown(seen.get(key, key))} name the same file")
        seen[key] = name
        folders.update("/".join(key.split("/")[:count]) for count in range(1, len(parts)))
    if both := folders & seen.keys():
        raise ValueError(f"{shown(seen[min(both)])} names both a file and a directory")


def is_part(part: str) -> bool:
    """Return whether part of a path is a plain, visible name on every system."""
    return bool(re.match(r"\w", part)) and not part.endswith((".", " ")) and len(part) <= 255


def folded(name: str) -> str:
    """Return a name in the form that case-insensitive file systems compare."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
