"""The files of a deployment, written into a draft of an artifact.

What was exported goes in; `batching_params.pbtxt` and warm-up requests appear in the version
directory, and beside it `serving/`, whose files describe the whole artifact and are written anew by
each export. The files are templates/ with `@name` and the like filled in; no value that goes into
one needs quoting there (`names`).
"""

import dataclasses
import pathlib
import re
import string
import textwrap
from collections.abc import Mapping, Sequence

from bart_export.artifact.artifact import Artifact, Draft
from bart_export.artifact.manifest import Memory
from bart_export.errors import ArtifactError
from bart_export.export.deployment.memory import measure
from bart_export.export.deployment.names import kubernetes_name, model_name
from bart_export.export.deployment.requests import (
    MAX_BATCH_SIZE,
    largest_request,
    warm_up_requests,
)
from bart_export.runtime.generator import ModelInfo
from bart_export.server import warmup

TEMPLATES = pathlib.Path(__file__).parent / "templates"
IN_VERSION = "batching_params.pbtxt"
# Kubernetes' ConfigMap holds them as well.
CONFIGURATIONS = ("models.config", "batching.config", "monitoring.config")
OTHERS = ("README.md", "compose.yaml", "kubernetes.yaml", "kserve.yaml")

# The newest image known when this was written. It is older than the TensorFlow that exports, which
# is why a SavedModel was loaded with TensorFlow 2.20.0 and gave its golden answers there.
IMAGE_TAG = "2.20.0"
TAG_REASON = "Exports were loaded and gave their golden answers with TensorFlow 2.20.0."
TIMEOUT_SECONDS = 60
# What Kubernetes does before it ends a pod, beside the longest request.
GRACE_SECONDS = TIMEOUT_SECONDS + 15
MEBIBYTE = 2**20
# Cores that the manifests ask for, and batches that run at a time.
CORES = 2
# Versions that models.config keeps loaded.
LOADED_VERSIONS = 3


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What was written: paths relative to the artifact, and the memory that a version takes."""

    files: tuple[str, ...]
    memory: Memory


class Template(string.Template):
    """A template whose variables begin with @, which is written nowhere else in these files."""

    delimiter = "@"


def write(draft: Draft, version: int, info: ModelInfo, text: str) -> Deployment:
    """Write the files of a deployment for a version that lies in a draft.

    Args:
        draft: of the artifact, with `saved_model/<version>/`.
        version: its number.
        info: what it was exported with.
        text: some prose of a few dozen tokens.

    Raises:
        ConfigurationError: for an artifact whose directory cannot be a model's name.
        EngineError: if the version does not serve its warm-up requests.
    """
    name = model_name(draft.target)
    directory = draft.directory / "saved_model" / str(version)
    (directory / IN_VERSION).write_text(
        fill(IN_VERSION, {"max_batch_size": MAX_BATCH_SIZE}), encoding="utf-8"
    )
    warmup.write_records(directory / warmup.REQUESTS, warm_up_requests(info, text))
    memory = measure(directory, largest_request(info, text))
    versions = sorted({*earlier_versions(draft.target), version})
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    serving = draft.directory / "serving"
    serving.mkdir()
    for file, content in serving_files(name, versions, memory, size).items():
        (serving / file).write_text(content, encoding="utf-8")
    written = [directory / IN_VERSION, directory / warmup.REQUESTS, *sorted(serving.iterdir())]
    return Deployment(
        tuple(path.relative_to(draft.directory).as_posix() for path in written), memory
    )


def earlier_versions(artifact: pathlib.Path) -> list[int]:
    """Return the versions that an artifact holds, none of one that is damaged, lowest first.

    They stay when the artifact is exported again.
    """
    try:
        opened = Artifact.open(artifact)
        names = [name for name in opened.files("saved_model") if opened.path(name)]
    except ArtifactError:
        return []
    found = (re.match(r"saved_model/(\d+)/", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def serving_files(name: str, versions: Sequence[int], memory: Memory, size: int) -> dict[str, str]:
    """Return the content of each file of `serving/`.

    Args:
        name: of the model.
        versions: all that the artifact will hold, lowest first.
        memory: that the last of them takes.
        size: bytes of its files.
    """
    loaded = min(len(versions), LOADED_VERSIONS) * memory.loaded
    working = CORES * (memory.peak - memory.loaded)
    # While a version is exchanged, the next is loaded and warmed up beside those that answer.
    request, single = loaded + working, memory.loaded + working
    values: dict[str, object] = {
        "name": name,
        "kubernetes_name": kubernetes_name(name),
        "version": versions[-1],
        "cores": CORES,
        "image_tag": IMAGE_TAG,
        "tag_reason": TAG_REASON,
        "timeout_ms": TIMEOUT_SECONDS * 1000,
        "grace_seconds": GRACE_SECONDS,
        "memory_reason": memory_reason(memory),
        "memory_request_mebibytes": mebibytes(request),
        "memory_limit_mebibytes": mebibytes(request + memory.peak),
        "single_request_mebibytes": mebibytes(single),
        "single_limit_mebibytes": mebibytes(single + memory.peak),
        "storage_mebibytes": mebibytes(4 * size) + 64,
        "labels": indented(labels(versions), 4),
        "canary": indented(canary(versions), 4),
    }
    configurations = {file: fill(file, values) for file in CONFIGURATIONS}
    for file, content in configurations.items():
        values[file.replace(".", "_")] = indented(content, 4)
    return configurations | {file: fill(file, values) for file in OTHERS}


def labels(versions: Sequence[int]) -> str:
    """Return the lines that give the last two versions their labels; one alone is stable."""
    named = dict(zip(("canary", "stable"), reversed(versions), strict=False))
    if len(versions) == 1:
        named = {"stable": versions[0]}
    return "\n".join(
        f'version_labels {{ key: "{label}" value: {version} }}'
        for label, version in sorted(named.items(), reverse=True)
    )


def canary(versions: Sequence[int]) -> str:
    """Return the lines of an InferenceService that send a part of the requests to a new version."""
    if len(versions) == 1:
        return "# canaryTrafficPercent: 10 once there is an earlier version to go back to."
    return (
        f"# A tenth of the requests until version {versions[-1]} has shown itself, then 100.\n"
        "# KServe counts these in its serverless mode only.\n"
        "canaryTrafficPercent: 10"
    )


def memory_reason(memory: Memory) -> str:
    """Return the comment that says where the figures for memory come from."""
    origin = (
        "Measured when this was exported" if memory.measured else "Guessed from the files' size"
    )
    return (
        f"{origin}: {mebibytes(memory.loaded)} MiB with a version loaded,\n"
        f"{mebibytes(memory.peak)} MiB with {MAX_BATCH_SIZE} of the longest texts in a batch. "
        f"There is room for {CORES} batches\nat a time, and up to the limit for one more version, "
        "while it is exchanged."
    )


def mebibytes(size: int) -> int:
    """Return bytes as mebibytes, rounded up."""
    return -(-size // MEBIBYTE)


def indented(text: str, width: int) -> str:
    """Return lines moved to the right, without a line break at the end."""
    return textwrap.indent(text.rstrip("\n"), " " * width)


def fill(file: str, values: Mapping[str, object]) -> str:
    """Return a template with its values; a comment of several lines goes on as a comment."""
    filled = []
    for line in (TEMPLATES / file).read_text(encoding="utf-8").splitlines():
        text = Template(line).substitute(values)
        start = line[: line.index("#")] + "# " if line.lstrip().startswith("# ") else ""
        filled.append(text.replace("\n", f"\n{start}"))
    return "\n".join(filled) + "\n"
