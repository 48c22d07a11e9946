"""The facts that a report gives about each `.tflite` file, with intervals for quality and speed."""

import dataclasses
import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bart_export.artifact.figures import FileVerification, Measurement
from bart_export.artifact.manifest import Manifest, TensorSpec, TfliteEntry
from bart_export.presets import PRESETS, Preset
from bart_export.recipes.table import MODES, RECIPES, STORAGES, stored_as

LONGEST = 32  # characters of a label
Z = 1.96  # the normal distribution's 97.5th percentile
FLOAT, INT8, INT4, CALIBRATED = "float", "int8", "int4", "calibrated"
GOLDEN_TEXTS = "three short texts that ship with bart-export"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure and its interval."""

    value: float
    low: float
    high: float


def share(value: float | None, count: int) -> Figure | None:
    """Return a share of `count` trials with its 95 % interval, or None without trials.

    The interval is Wilson's (E. B. Wilson, Probable inference, the law of succession, and
    statistical inference, JASA 22, 1927), which also holds for few trials and shares near 1.
    """
    if value is None or not count:
        return None
    middle = value + Z**2 / (2 * count)
    half = Z * math.sqrt(value * (1 - value) / count + (Z / (2 * count)) ** 2)
    scale = 1 + Z**2 / count
    return Figure(value, (middle - half) / scale, min((middle + half) / scale, 1.0))


def differ(figures: Iterable[Figure | None]) -> bool:
    """Return whether any two figures differ significantly: their intervals do not overlap."""
    known = [figure for figure in figures if figure is not None]
    lows, highs = [figure.low for figure in known], [figure.high for figure in known]
    return bool(known) and max(lows) > min(highs)


@dataclasses.dataclass(frozen=True)
class ReportedFile:
    """A file's name and manifest entry, and its figures, or None if they were not measured."""

    name: str
    entry: TfliteEntry
    verification: FileVerification | None
    measurement: Measurement | None

    @property
    def label(self) -> str:
        """The file's name in tables and pictures; a long name is shortened."""
        recipe = self.entry.recipe
        recipe = recipe if len(recipe) <= LONGEST else f"{recipe[: LONGEST - 1]}…"
        return recipe if self.entry.build == "dynamic" else f"{recipe} (static)"

    @property
    def kind(self) -> str:
        """`CALIBRATED`, or the narrowest type of its matrices."""
        if self.entry.mode.startswith("static"):
            return CALIBRATED
        bits = min((STORAGES[storage].bits for _, storage in self.entry.layers), default=32)
        return INT4 if bits <= 4 else INT8 if bits <= 8 else FLOAT

    @property
    def megabytes(self) -> float:
        """Size in 10^6 bytes."""
        return self.entry.bytes / 1e6

    @property
    def purpose(self) -> str:
        """The purpose of the file's recipe, and the sizes of a static build."""
        recipe, shapes = RECIPES.get(self.entry.recipe), self.entry.shapes
        purpose = recipe.purpose if recipe else "a recipe file"
        if shapes is None:
            return purpose
        sources = " or ".join(map(str, shapes.source_lengths))
        beams = " or ".join(map(str, shapes.num_beams))
        together = " or ".join(map(str, shapes.sources))
        return (
            f"{purpose}; static: sources of {sources} tokens, outputs of {shapes.target_length} "
            f"tokens, {beams} beams" + (f", {together} sources together" if together != "1" else "")
        )

    @property
    def matrices(self) -> str:
        """The storages of the file's matrices."""
        return stored_as(self.entry.layers)

    @property
    def numbers(self) -> str:
        """The file's arithmetic, and the number of its calibration texts."""
        mode, calibration = MODES[self.entry.mode].description, self.entry.calibration
        return f"{mode} on {calibration.texts} texts" if calibration else mode

    @property
    def runs_on(self) -> str:
        """The runtimes that run the file correctly."""
        return ", ".join(f"{name} {oldest}" for name, oldest in self.entry.runtimes.items()) or "–"

    @property
    def texts(self) -> bool:
        """Whether the figures were measured on a file of texts."""
        return self.verification is not None and self.verification.data is not None

    @property
    def same_token(self) -> Figure | None:
        """Share of steps at which the file's most likely token is the model's."""
        row = self.verification
        return share(row.top1, row.steps) if row else None

    @property
    def same_text(self) -> Figure | None:
        """Share of texts that the file generates identically, token for token."""
        row = self.verification
        return share(row.tokens, row.questions) if row else None

    @property
    def rouge_loss(self) -> Figure | None:
        """The file's loss of ROUGE-L, in points."""
        losses = (self.verification and self.verification.rouge) or {}
        row = losses.get("rouge_l")
        return Figure(row.loss, row.low, row.high) if row else None

    def tokens_per_second(self, num_beams: int) -> Figure | None:
        """Return the tokens per second of a whole generation: median, slowest and fastest."""
        rows = self.measurement.lengths if self.measurement else ()
        row = next((row for row in rows if row.num_beams == num_beams), None)
        if row is None or row.slowest is None or row.fastest is None:
            return None
        rates = (row.new_tokens / seconds for seconds in (row.seconds, row.slowest, row.fastest))
        return Figure(*rates)


def known_preset(manifest: Manifest) -> Preset | None:
    """Return the preset in the registry that an artifact was exported from, or None."""
    handle = manifest.source.handle
    return next(
        (preset for preset in PRESETS.values() if handle in (preset.name, *preset.aliases)), None
    )


def reported_files(manifest: Manifest) -> list[ReportedFile]:
    """Return the `.tflite` files of a manifest, largest first."""
    verified = {row.file: row for row in manifest.verification if isinstance(row, FileVerification)}
    measured = {row.file: row for row in manifest.measurements}
    files = [
        ReportedFile(name, entry, verified.get(name), measured.get(name))
        for name, entry in manifest.tflite().items()
    ]
    return sorted(files, key=lambda file: -file.entry.bytes)


def evidence(files: Sequence[ReportedFile]) -> dict[str, list[str]]:
    """Return the labels of files by the steps and texts that their figures were measured on."""
    labels: dict[str, list[str]] = {}
    for file in files:
        row = file.verification
        if row is None:
            continue
        texts = GOLDEN_TEXTS
        if row.data:
            texts = f"{row.data.texts} texts of a file with SHA-256 `{row.data.sha256}`"
        line = f"{row.steps} steps along {texts}, and {row.questions} generated texts"
        labels.setdefault(line, []).append(file.label)
    return labels


def signature_lines(manifest: Manifest) -> list[str]:
    """Return a line for each signature of the exported targets."""
    targets = {entry.target for entry in manifest.files.values()}
    return [
        f"`{name}` of {target}: {tensors(signature.inputs)} → {tensors(signature.outputs)}"
        for target, declared in manifest.signatures.items()
        for name, signature in declared.items()
        if target in targets
    ]


def tensors(specs: Mapping[str, TensorSpec]) -> str:
    """Return a line that lists tensors."""
    return ", ".join(
        f"`{names}` {tensor.dtype} ({', '.join(map(str, tensor.shape))})"
        for names, tensor in layered(specs)
    )


def layered(specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, TensorSpec]]:
    """Yield tensors with their names; those of all layers together, as cross_key_0 … 5."""
    alike: dict[tuple[str, TensorSpec], list[str]] = {}
    for name, tensor in specs.items():
        alike.setdefault((name.rstrip(string.digits), tensor), []).append(name)
    for (stem, tensor), names in alike.items():
        last = f" … {names[-1].removeprefix(stem)}" if names[1:] else ""
        yield f"{names[0]}{last}", tensor


def contents(manifest: Manifest) -> dict[str, int]:
    """Return the size of every file in the directory, and of each SavedModel version as a whole."""
    verified = [row.file for row in manifest.verification]
    sizes: dict[str, int] = {}
    for name, entry in manifest.files.items():
        shown = next((file for file in verified if name.startswith(f"{file}/")), name)
        sizes[shown] = sizes.get(shown, 0) + entry.bytes
    return dict(sorted(sizes.items()))
