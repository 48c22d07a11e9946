"""The bundle for Android: what an app needs of an artifact to run one static build.

A bundle is an artifact itself, with one file, the tokenizer and the file's golden answers.
"""

import dataclasses
import os
import pathlib

from bart_export.artifact import ASSETS, artifact, manifest_file
from bart_export.artifact.artifact import GOLDEN, REPORT, Artifact
from bart_export.artifact.directories import MANIFEST
from bart_export.artifact.figures import Golden
from bart_export.errors import ArtifactError

# A file that tells the project of the app whose model lies at ASSETS.
PROJECT = pathlib.Path("android/settings.gradle.kts")


@dataclasses.dataclass(frozen=True)
class Limit:
    """The most that Google Play takes of something, in bytes, and what to do with more."""

    bytes: int
    of: str
    advice: str


ASSET_PACK = "Put it into an install-time asset pack (Play Asset Delivery)"
DOWNLOAD = "Have the app download it after it is installed"
# support.google.com/googleplay/android-developer/answer/9859372 (2026-11), of compressed downloads;
# a .tflite file hardly compresses. Ascending.
LIMITS = (
    Limit(200_000_000, "an app's base module", ASSET_PACK),
    Limit(1_500_000_000, "an asset pack", DOWNLOAD),
    Limit(4_000_000_000, "all that is delivered when an app is installed", DOWNLOAD),
)


def check_target(target: pathlib.Path, output: pathlib.Path) -> None:
    """Raise ArtifactError where a bundle would cost anything but an earlier bundle.

    `target` is where the bundle goes, `output` where the artifact is, or will be.
    """
    if target == ASSETS and not PROJECT.is_file():
        raise ArtifactError(
            f"{ASSETS} is the place of a bundle in a clone of bart-export, and here is no "
            f"{PROJECT}. Run this in a clone, or name a directory: --android DIRECTORY"
        )
    place, made = (pathlib.Path(os.path.realpath(path)) for path in (target, output))
    if place.is_relative_to(made) or made.is_relative_to(place):
        raise ArtifactError(
            f"The bundle must lie apart from the artifact {output}, received {target}. "
            "Name another directory with --android or --output."
        )
    artifact.check_replaceable(place)
    if (place / REPORT).exists():
        raise ArtifactError(
            f"{target} is a whole artifact and no bundle, and would be lost. "
            "Name another directory with --android."
        )


def write(source: Artifact, recipe: str, target: pathlib.Path) -> Artifact:
    """Put the static build of a recipe into a bundle, in the place of an earlier one.

    Raises:
        ArtifactError: if the artifact has no such file or one that was altered, or the place is
            taken (see `check_target`), full, or cannot be written.
    """
    check_target(target, source.directory)
    file, manifest = static_file(source, recipe), source.manifest
    names = (file, manifest.tokenizer.vocabulary, manifest.tokenizer.merges)
    files = {name: manifest.files[name] for name in names}
    verification = tuple(row for row in manifest.verification if row.file == file)
    measurements = tuple(row for row in manifest.measurements if row.file == file)
    with artifact.draft(target) as draft:
        for name in names:
            draft.carry(source, name)
        answers = answers_of(file, source.golden())
        manifest_file.write_golden(draft.directory / GOLDEN, answers)
        files[GOLDEN] = draft.entry(GOLDEN)
        draft.commit(
            dataclasses.replace(
                manifest, files=files, verification=verification, measurements=measurements
            )
        )
    return Artifact.open(target)


def static_file(source: Artifact, recipe: str) -> str:
    """Return the name of a recipe's static build, or raise ArtifactError."""
    for name, entry in source.manifest.tflite().items():
        if entry.recipe == recipe and entry.shapes is not None:
            return name
    raise ArtifactError(
        f"{source.directory} has no static build of {recipe}. Export one with: bart-export "
        f"--preset {source.manifest.preset} --target tflite --shapes static --recipe {recipe} "
        f"--output {source.directory}"
    )


def answers_of(file: str, golden: Golden) -> Golden:
    """Return the cases of a golden.json that a file answered, with its answers alone."""
    return Golden(
        tuple(
            dataclasses.replace(case, files={file: case.files[file]})
            for case in golden.cases
            if file in case.files
        )
    )


def size(bundle: Artifact) -> int:
    """Return how many bytes a bundle takes in an app."""
    named = sum(entry.bytes for entry in bundle.manifest.files.values())
    return named + (bundle.directory / MANIFEST).stat().st_size


def warning(bytes: int) -> str | None:
    """Return a line about the highest limit that a bundle of this size is beyond, None for none."""
    for limit in reversed(LIMITS):
        if bytes > limit.bytes:
            return (
                f"Google Play takes at most {megabytes(limit.bytes)} as {limit.of}, compressed, "
                f"and a bundle of {megabytes(bytes)} hardly compresses. {limit.advice}, or export "
                "a smaller recipe."
            )
    return None


def megabytes(bytes: int) -> str:
    """Return a size as people read it."""
    return f"{bytes / 1e9:.1f} GB" if bytes >= 1e9 else f"{bytes / 1e6:.1f} MB"
