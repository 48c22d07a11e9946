"""The manifest of an artifact: each object of `manifest.json` is a class, each field declared once.

The declarations are what a file from elsewhere is held to, what the rest of the package reads, and
what an export writes. The format is described in artifacts/README.md; Kotlin has classes of the
same names (android/core, Manifest.kt).
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
from bart_export.documents import Json, Kind, Record, Variant, absent, is_count, one_of, require
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
LONGEST_NAME, DEEPEST_NAME = 512, 16  # bytes, and parts
LONGEST_TEXT = 4096  # characters: a path, or a line of notes
# Controls, other ends of lines, and what turns the direction of writing.
STEERING = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SHOWABLE = f"a text of at most {LONGEST_TEXT} characters, none of which steers a terminal"
TFLITE, SAVED_MODEL = "tflite", "saved_model"
# Dynamic axes that each signature of a static build fixes.
AXES = {
    "encode": ("source",),
    "decode": ("source", "beams", "capacity"),
    "decode_single": ("source", "beams", "capacity"),
}

Digest = Annotated[
    str,
    Kind(
        "a SHA-256 of 64 lower case digits",
        lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
    ),
]
Size = Annotated[
    int,
    Kind(
        f"a number of bytes of at most {LARGEST_FILE}",
        lambda value: is_count(value) and value <= LARGEST_FILE,
    ),
]
Axis = Annotated[
    int | str, Kind("a size or a word", lambda value: is_count(value) or isinstance(value, str))
]
Expression = Annotated[str, Kind(f"one of {EXPRESSIONS}", is_expression)]
Release = Annotated[
    str, Kind("a version", lambda value: isinstance(value, str) and 0 < len(value) <= 40)
]


@dataclasses.dataclass(frozen=True)
class Source(Record):
    """The checkpoint that an artifact was made of."""

    handle: str
    revision: str | None
    format: str
    weights_sha256: str


@dataclasses.dataclass(frozen=True)
class TokenizerFiles(Record):
    """The tokenizer: names of its two files, and what changes ids beside them.

    What is not stated is as in any BART; `added_tokens` are read by `text.added_tokens`.
    """

    vocabulary: str
    merges: str
    add_prefix_space: bool | None = absent()
    added_tokens: tuple[Mapping[str, object], ...] | None = absent()


@dataclasses.dataclass(frozen=True)
class TensorSpec(Record):
    """An input or output: its dtype, and its shape, in which dynamic axes are words."""

    dtype: str
    shape: tuple[Axis, ...]


def tensor_specs(
    tensors: Iterable[contract.Tensor], sizes: Mapping[str, int]
) -> dict[str, TensorSpec]:
    """Return tensors by name, with the axes that `sizes` fix as numbers."""
    return {
        tensor.name: TensorSpec(tensor.dtype, tuple(sizes.get(axis, axis) for axis in tensor.axes))
        for tensor in tensors
    }


@dataclasses.dataclass(frozen=True)
class SignatureEntry(Record):
    """A signature: its tensors by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, signature: Signature, sizes: Mapping[str, int]) -> "SignatureEntry":
        """Return the entry of a signature; `sizes` are those of the configuration."""
        return cls(tensor_specs(signature.inputs, sizes), tensor_specs(signature.outputs, sizes))


@dataclasses.dataclass(frozen=True)
class BucketEntry(Record):
    """A signature of a static build: which one it is, and the sizes of its dynamic axes."""

    signature: Annotated[str, one_of(AXES)]
    sizes: Mapping[str, Positive]
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, bucket: Bucket, sizes: Mapping[str, int]) -> "BucketEntry":
        """Return the entry of a bucket; `sizes` are those of the configuration."""
        signature, fixed = bucket.signature, {**sizes, **bucket.sizes}
        return cls(
            signature.name,
            dict(bucket.sizes),
            tensor_specs(signature.inputs, fixed),
            tensor_specs(signature.outputs, fixed),
        )


@dataclasses.dataclass(frozen=True)
class Calibration(Record):
    """The texts that ranges of activations were measured on.

    `samples` counts the runs of a signature, `origin` says whose texts they are.
    """

    texts: int
    samples: int | None = absent()
    origin: str | None = absent()
    sha256: str | None = absent()


@dataclasses.dataclass(frozen=True)
class Memory(Record):
    """Bytes that a server holds for a version of a SavedModel: once it is `loaded`, and at the
    `peak`, a full batch of the longest texts. If not `measured`, they are guessed from sizes."""

    loaded: int
    peak: int
    measured: bool = True


@dataclasses.dataclass(frozen=True)
class FileEntry(Record):
    """A file of the artifact; `target` is the one of the export that made it, None for others."""

    bytes: Size
    sha256: Digest
    target: str | None = absent()


@dataclasses.dataclass(frozen=True)
class TfliteEntry(FileEntry):
    """A `.tflite` file that an engine opens: its recipe, and the build of a static one."""

    _: dataclasses.KW_ONLY
    recipe: str
    mode: Annotated[str, one_of(MODES)]
    layers: tuple[tuple[Expression, Annotated[str, one_of(STORAGES)]], ...]
    tolerance: Mapping[str, float]
    runtimes: Mapping[str, Release]
    refusals: Mapping[str, str]
    calibration: Calibration | None = absent()
    shapes: StaticShapes | None = absent()

    @property
    def build(self) -> str:
        """Which of `runtime.generator.BUILDS` the file is."""
        return "dynamic" if self.shapes is None else "static"


@dataclasses.dataclass(frozen=True)
class StaticEntry(TfliteEntry):
    """A file of the static build: its signatures have fixed sizes."""

    _: dataclasses.KW_ONLY
    signatures: Mapping[str, BucketEntry]


@dataclasses.dataclass(frozen=True)
class HostEntry(TfliteEntry):
    """The file that runs on the CPU beside segments for the Edge TPU."""

    _: dataclasses.KW_ONLY
    signatures: Mapping[str, SignatureEntry]


@dataclasses.dataclass(frozen=True)
class SavedModelEntry(FileEntry):
    """A file of a version of a SavedModel."""

    version: Positive | None = absent()
    dtype: str | None = absent()
    memory: Memory | None = absent()


@dataclasses.dataclass(frozen=True)
class SegmentEntry(FileEntry):
    """A segment for the Edge TPU, of `rows` positions; `streamed_bytes` do not fit its memory."""

    _: dataclasses.KW_ONLY
    rows: int
    calibration: Calibration
    parameter_bytes: int
    streamed_bytes: int


@dataclasses.dataclass(frozen=True)
class CompiledEntry(FileEntry):
    """A compiled segment, with what the compiler said of it."""

    _: dataclasses.KW_ONLY
    compiler: Mapping[str, object]


def entry_type(entry: Mapping[str, Json]) -> type[FileEntry]:
    """Return the class of a file's entry."""
    if "shapes" in entry:
        return StaticEntry
    if entry.get("target") == TFLITE or "runtimes" in entry:
        return HostEntry if "signatures" in entry else TfliteEntry
    if entry.get("target") == SAVED_MODEL:
        return SavedModelEntry
    if "parameter_bytes" in entry:
        return SegmentEntry
    return CompiledEntry if "compiler" in entry else FileEntry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """What an artifact says of itself.

    `exports` counts the exports that were committed at its place; `rows_without_token` are rows of
    the embedding beyond the vocabulary. `files` are by name, `signatures` by target.
    """

    format_version: int = FORMAT_VERSION
    manifest_sha256: str = UNSEALED
    preset: str
    source: Source
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
        """Return the manifest of a JSON text.

        Raises:
            ValueError, ConfigurationError: with the first thing that is wrong.
        """
        require(isinstance(value, dict), "", "an object", value)
        assert isinstance(value, dict)
        check_texts({name: part for name, part in value.items() if name != "tokenizer"})
        manifest = super().from_dict(value)
        check_names(list(manifest.files))
        for name in (manifest.tokenizer.vocabulary, manifest.tokenizer.merges):
            require(name in manifest.files, "tokenizer", "names of files", name)
        for name, entry in manifest.files.items():
            if isinstance(entry, TfliteEntry):
                most, count = f"a list of at most {MOST_EXPRESSIONS}", len(entry.layers)
                require(count <= MOST_EXPRESSIONS, f"{name}.layers", most, count)
            for signature in entry.signatures.values() if isinstance(entry, StaticEntry) else ():
                for axis in AXES[signature.signature]:
                    if axis not in signature.sizes:
                        raise ValueError(f"{name}.signatures.sizes lacks {axis}")
        longest = manifest.config.max_sequence_length
        require(
            manifest.encoder_sequence_length <= longest,
            "encoder_sequence_length",
            f"at most max_sequence_length, {longest}",
            manifest.encoder_sequence_length,
        )
        return manifest

    def tflite(self, target: str = TFLITE) -> dict[str, TfliteEntry]:
        """Return the files of a target that an engine opens, by name, in order."""
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
    """Raise ValueError for a text, or a field's name, that is too long or steers a terminal."""
    waiting: list[tuple[str, Json]] = [("", manifest)]
    while waiting:  # nested as deeply as a parser allows
        place, value = waiting.pop()
        if isinstance(value, str):
            shows = len(value) <= LONGEST_TEXT and not STEERING.search(value)
            require(shows, place, SHOWABLE, value)
        elif isinstance(value, list):
            waiting += [(place, inner) for inner in value]
        elif isinstance(value, dict):
            for name, inner in value.items():
                waiting += [(f"a name in {place or 'it'}", name), (place or shown(name), inner)]


def check_names(names: list[str]) -> None:
    """Raise ValueError for names that are not each one file inside a directory on any system.

    Absolute names, hidden ones, ones that leave the directory or that another system would read
    otherwise are refused, and two that name one file where case does not count.
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
