"""The SavedModel target: the next version of a model, and the files to deploy it.

`serving/` configures TensorFlow Serving, Docker Compose, Kubernetes and KServe for the whole
artifact; serving/README.md explains it. The templates do not quote values, so a model name that
would need quotes is refused.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence

from bart_export import documents
from bart_export.artifact.artifact import SERVING, Artifact
from bart_export.artifact.drafts import Draft
from bart_export.artifact.manifest import SAVED_MODEL, Memory, SavedModelEntry
from bart_export.convert import saved_model
from bart_export.errors import ArtifactError, ConfigurationError
from bart_export.export import warm_up
from bart_export.export.options import SavedModelOptions
from bart_export.export.target import ExportedFile, ExportResult, LoadedModel
from bart_export.progress import Stage
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import golden
from bart_export.verify.saved_model import check_saved_model

BATCHING_PARAMETERS = "batching_params.pbtxt"  # in a version's directory
SERVING_FILES = (
    "models.config", "batching.config", "monitoring.config",
    "README.md", "compose.yaml", "kubernetes.yaml", "kserve.yaml",
)  # fmt: skip
TEMPLATES = documents.templates(__file__)
TEMPLATES.filters["mebibytes"] = lambda size: -(-size // 2**20)  # rounded up
# The newest known image. It is older than the TensorFlow that exports, so a SavedModel was loaded
# with TensorFlow 2.20.0, where it gave its golden answers.
IMAGE_TAG = "2.20.0"
TIMEOUT_SECONDS = 60
# The longest request, plus the time until Kubernetes sends no more requests to a stopping pod.
GRACE_SECONDS = TIMEOUT_SECONDS + 15
# Cores that the manifests request, and batches that run concurrently.
CORES = 2
# Number of versions that models.config keeps loaded.
LOADED_VERSIONS = 3
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# A Service's name is a DNS label of RFC 1035: a letter first, at most 63 characters. KServe and
# Deployments append to it.
LONGEST_KUBERNETES_NAME = 40
# Plain words that are not strings in YAML 1.1, which Kubernetes reads (https://yaml.org/type/).
YAML_WORDS = frozenset(("null", "true", "false", "yes", "no", "on", "off", "y", "n"))


def export_saved_model(
    model: LoadedModel, options: SavedModelOptions, draft: Draft, stage: Stage
) -> ExportResult:
    """Write the next version of a SavedModel, `saved_model/<version>/`, and its deployment."""
    info = dataclasses.replace(model.info, generation=options.settings(model.info.generation))
    model_name(draft.target)
    version = next_version(draft.target)
    name = f"{SAVED_MODEL}/{version}"
    directory = draft.directory / name
    stage("write the SavedModel")
    saved_model.write_saved_model(
        model.backbone,
        info.tokenizer,
        info.generation,
        info.encoder_sequence_length,
        options.dtype,
        directory,
    )
    stage("measure the memory for serving")
    memory = write_deployment(draft, version, info)
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    files = [path.relative_to(draft.directory).as_posix() for path in paths]
    entries = {
        file: SavedModelEntry(
            *draft.content(file),
            SAVED_MODEL,
            version,
            options.dtype,
            memory=memory if file == f"{name}/saved_model.pb" else None,
        )
        for file in files
    }
    check = functools.partial(
        check_saved_model, name, directory, options.dtype, info.tokenizer, info.generation
    )
    own = None if info.generation == model.info.generation else info.generation
    return ExportResult([ExportedFile(name, entries, check, own)])


def next_version(artifact: pathlib.Path) -> int:
    """Return the next version number in an artifact's `saved_model` directory."""
    directory = artifact / SAVED_MODEL
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return 1 + max((int(name) for name in names if name.isdecimal()), default=0)


def earlier_versions(artifact: pathlib.Path) -> list[int]:
    """Return the versions that a new export keeps: all, or none if the artifact is damaged."""
    try:
        opened = Artifact.open(artifact)
        for name in opened.files(SAVED_MODEL):
            opened.path(name)
    except ArtifactError:
        return []
    return opened.manifest.saved_model_versions


def model_name(artifact: pathlib.Path) -> str:
    """Return an artifact's directory name if it is valid for a model, or raise an error."""
    if not MODEL_NAME.fullmatch(artifact.name):
        raise ConfigurationError(
            "A SavedModel is served under the name of its artifact's directory, which must be "
            "at most 100 ASCII letters, digits, '.', '_' and '-' and begin with a letter or digit, "
            f"received {artifact.name!r}. Name another directory with --output."
        )
    return artifact.name


def kubernetes_name(name: str) -> str:
    """Convert a model's name to a DNS label: bart_large_en becomes bart-large-en."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not label[:1].isalpha() or label in YAML_WORDS:
        label = f"bart-{label}".rstrip("-")
    return label[:LONGEST_KUBERNETES_NAME].rstrip("-")


def write_deployment(draft: Draft, version: int, info: ModelInfo) -> Memory:
    """Write a version's serving files and `serving/`; return the memory needed to serve it."""
    directory, text = draft.directory / SAVED_MODEL / str(version), golden.TEXTS[0]
    parameters = TEMPLATES.get_template(f"{BATCHING_PARAMETERS}.j2")
    (directory / BATCHING_PARAMETERS).write_text(
        parameters.render(max_batch_size=warm_up.MAX_BATCH_SIZE), encoding="utf-8"
    )
    warm_up.write_requests(directory, warm_up.warm_up_requests(info, text))
    memory = warm_up.measure_memory(directory, warm_up.largest_request(info, text))
    versions = sorted({*earlier_versions(draft.target), version})
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    (draft.directory / SERVING).mkdir()
    for file, content in serving_files(model_name(draft.target), versions, memory, size).items():
        (draft.directory / SERVING / file).write_text(content, encoding="utf-8")
    return memory


def serving_files(name: str, versions: Sequence[int], memory: Memory, size: int) -> dict[str, str]:
    """Return the content of each file of `serving/`.

    `versions` has all versions in the artifact, in ascending order; `memory` and `size` (in bytes)
    are those of the last one.
    """
    loaded = min(len(versions), LOADED_VERSIONS) * memory.loaded
    working = CORES * (memory.peak - memory.loaded)
    # The limits leave room for one more version, which is loaded before an old one is unloaded.
    request, single = loaded + working, memory.loaded + working
    # The last two versions have labels; a single version is stable.
    labels = [("stable", versions[-2]), ("canary", versions[-1])] if versions[1:] else []
    values: dict[str, object] = {
        "name": name,
        "kubernetes_name": kubernetes_name(name),
        "version": versions[-1],
        "versions": versions,
        "labels": labels or [("stable", versions[-1])],
        "cores": CORES,
        "image_tag": IMAGE_TAG,
        "timeout_ms": TIMEOUT_SECONDS * 1000,
        "grace_seconds": GRACE_SECONDS,
        "max_batch_size": warm_up.MAX_BATCH_SIZE,
        "memory": memory,
        "memory_request": request,
        "memory_limit": request + memory.peak,
        "single_request": single,
        "single_limit": single + memory.peak,
        "storage": 4 * size + 64 * 2**20,
    }
    return {file: TEMPLATES.get_template(f"{file}.j2").render(values) for file in SERVING_FILES}
