"""The bundle for Android: an artifact with one static build, its tokenizer and golden answers."""

import dataclasses
import os
import pathlib

from bart_export.artifact import ASSETS, artifact, drafts
from bart_export.artifact.artifact import GOLDEN, MANIFEST, REPORT, Artifact
from bart_export.artifact.figures import Golden
from bart_export.errors import ArtifactError

# Present in a clone, whose app loads the model at ASSETS.
PROJECT = pathlib.Path("android/settings.gradle.kts")
ANDROID = "--android"  # the option for the bundle's directory


@dataclasses.dataclass(frozen=True)
class Limit:
    """A size limit of Google Play, in bytes, and advice for larger bundles."""

    bytes: int
    of: str
    advice: str


ASSET_PACK = "Put it into an install-time asset pack (Play Asset Delivery)"
DOWNLOAD = "Have the app download it after it is installed"
# support.google.com/googleplay/android-developer/answer/9859372 (2026-11), in ascending order. The
# limits apply to compressed downloads, but .tflite files hardly compress.
LIMITS = (
    Limit(200_000_000, "an app's base module", ASSET_PACK),
    Limit(1_500_000_000, "an asset pack", DOWNLOAD),
    Limit(4_000_000_000, "the total delivered at install time", DOWNLOAD),
)


def check_target(target: pathlib.Path, output: pathlib.Path) -> None:
    """Raise ArtifactError if a bundle would replace anything but an earlier bundle.

    `target` is the bundle's directory; `output` is the artifact's, which need not exist yet.
    """
    if target == ASSETS and not PROJECT.is_file():
        raise ArtifactError(
            f"{ASSETS} is where the bundle goes in a clone of bart-export, but there is no "
            f"{PROJECT} here. Run this in a clone, or name a directory: {ANDROID} DIRECTORY"
        )
    place, made = (pathlib.Path(os.path.realpath(path)) for path in (target, output))
    if place.is_relative_to(made) or made.is_relative_to(place):
        raise ArtifactError(
            f"The bundle must be outside the artifact {output} and must not contain it, received "
            f"{target}. Name another directory with {ANDROID} or --output."
        )
    drafts.check_replaceable(place, ANDROID)
    if (place / REPORT).exists():
        raise ArtifactError(
            f"{target} is a full artifact, not a bundle, and would be lost. "
            f"Name another directory with {ANDROID}."
        )


def write(source: Artifact, recipe: str, target: pathlib.Path) -> Artifact:
    """Write the bundle of a recipe's static build, replacing an earlier bundle."""
    check_target(target, source.directory)
    file, manifest = static_file(source, recipe), source.manifest
    names = (file, manifest.tokenizer.vocabulary, manifest.tokenizer.merges)
    files = {name: manifest.files[name] for name in names}
    verification = tuple(row for row in manifest.verification if row.file == file)
    measurements = tuple(row for row in manifest.measurements if row.file == file)
    with drafts.draft(target, ANDROID) as draft:
        for name in names:
            draft.take(source.path(name, rehash=True), name)
        answers = answers_of(file, source.golden())
        artifact.write_golden(draft.directory / GOLDEN, answers)
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
    """Return the golden cases that a file answered, with only that file's answers."""
    return Golden(
        tuple(
            dataclasses.replace(case, files={file: case.files[file]})
            for case in golden.cases
            if file in case.files
        )
    )


def size(bundle: Artifact) -> int:
    """Return the size of a bundle in bytes."""
    named = sum(entry.bytes for entry in bundle.manifest.files.values())
    return named + (bundle.directory / MANIFEST).stat().st_size


def warning(bytes: int) -> str | None:
    """Return a warning about the highest limit that a bundle exceeds, or None."""
    for limit in reversed(LIMITS):
        if bytes > limit.bytes:
            return (
                f"Google Play accepts at most {megabytes(limit.bytes)} for {limit.of}, compressed, "
                f"and a bundle of {megabytes(bytes)} hardly compresses. {limit.advice}, or export "
                "a smaller recipe."
            )
    return None


def megabytes(bytes: int) -> str:
    """Format a size in MB or GB."""
    return f"{bytes / 1e9:.1f} GB" if bytes >= 1e9 else f"{bytes / 1e6:.1f} MB"
