"""The SavedModel target: the next version, and the files of its deployment beside it.

A version directory gets batching parameters and warm-up requests; `serving/` describes the whole
artifact to TensorFlow Serving, Docker Compose, Kubernetes and KServe and is written anew by each
export. serving/README.md explains the files. They are templates without quotes around values: a
name that would have to be quoted anywhere is refused.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence

from bart_export import documents
from bart_export.artifact.artifact import SERVING, Artifact, Draft
from bart_export.artifact.manifest import SAVED_MODEL, Memory, SavedModelEntry
from bart_export.convert import saved_model
from bart_export.errors import ArtifactError, ConfigurationError
from bart_export.export import serving_memory, warm_up
from bart_export.export.options import SavedModelOptions
from bart_export.export.target import ExportedFile, ExportResult, Model
from bart_export.progress import Stage
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import golden
from bart_export.verify.saved_model import check_saved_model

BATCHING_PARAMETERS = "batching_params.pbtxt"  # of a version
SERVING_FILES = (
    "models.config", "batching.config", "monitoring.config",
    "README.md", "compose.yaml", "kubernetes.yaml", "kserve.yaml",
)  # fmt: skip
TEMPLATES = documents.templates(__file__)
TEMPLATES.filters["mebibytes"] = lambda size: -(-size // 2**20)  # rounded up
# The newest image known when this was written. It is older than the TensorFlow that exports, which
# is why a SavedModel was loaded with TensorFlow 2.20.0 and gave its golden answers there.
IMAGE_TAG = "2.20.0"
TIMEOUT_SECONDS = 60
# What Kubernetes does before it ends a pod, beside the longest request.
GRACE_SECONDS = TIMEOUT_SECONDS + 15
# Cores that the manifests ask for, and batches that run at a time.
CORES = 2
# Versions that models.config keeps loaded.
LOADED_VERSIONS = 3
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Names of Services are DNS labels of RFC 1035: a letter first, 63 characters at most. KServe and
# Deployments append some to it.
LONGEST_KUBERNETES_NAME = 40
# What YAML 1.1, which Kubernetes reads, does not take for a string (https://yaml.org/type/).
YAML_WORDS = frozenset(("null", "true", "false", "yes", "no", "on", "off", "y", "n"))


def export_saved_model(
    model: Model, options: SavedModelOptions, draft: Draft, stage: Stage
) -> ExportResult:
    """Write the next version of a SavedModel, `saved_model/<version>/`, and its deployment.

    Raises:
        ConfigurationError: for an artifact whose directory cannot be a model's name, or settings
            that a SavedModel cannot have.
        EngineError: if the version does not serve its warm-up requests.
    """
    info = dataclasses.replace(model.info, generation=options.settings(model.info.generation))
    model_name(draft.target)
    version = next_version(draft.target)
    name = f"{SAVED_MODEL}/{version}"
    directory = draft.directory / name
    stage("write the SavedModel")
    saved_model.write(
        model.backbone,
        info.tokenizer,
        info.generation,
        info.encoder_sequence_length,
        options.dtype,
        directory,
    )
    stage("measure what serving takes")
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
    """Return the number after the highest version in an artifact's `saved_model` directory."""
    directory = artifact / SAVED_MODEL
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return 1 + max((int(name) for name in names if name.isdecimal()), default=0)


def earlier_versions(artifact: pathlib.Path) -> list[int]:
    """Return the versions that an artifact holds, none of one that is damaged.

    They stay when the artifact is exported again.
    """
    try:
        opened = Artifact.open(artifact)
        for name in opened.files(SAVED_MODEL):
            opened.path(name)
    except ArtifactError:
        return []
    return opened.manifest.saved_model_versions


def model_name(artifact: pathlib.Path) -> str:
    """Return the name under which an artifact is served: that of its directory.

    Raises:
        ConfigurationError: for a name that does not fit into addresses and configurations.
    """
    if not MODEL_NAME.fullmatch(artifact.name):
        raise ConfigurationError(
            "A SavedModel is served under the name of its artifact's directory, which must be "
            "letters of English, digits, '.', '_' and '-', begin with a letter or digit and have "
            f"at most 100 characters, received {artifact.name!r}. Name another one with --output."
        )
    return artifact.name


def kubernetes_name(name: str) -> str:
    """Return a model's name as a DNS label: bart_large_en becomes bart-large-en."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not label[:1].isalpha() or label in YAML_WORDS:
        label = f"bart-{label}".rstrip("-")
    return label[:LONGEST_KUBERNETES_NAME].rstrip("-")


def write_deployment(draft: Draft, version: int, info: ModelInfo) -> Memory:
    """Write what serves a version that lies in a draft: files in it, and `serving/`.

    Returns the memory that the version takes.
    """
    directory, text = draft.directory / SAVED_MODEL / str(version), golden.TEXTS[0]
    parameters = TEMPLATES.get_template(f"{BATCHING_PARAMETERS}.j2")
    (directory / BATCHING_PARAMETERS).write_text(
        parameters.render(max_batch_size=warm_up.MAX_BATCH_SIZE), encoding="utf-8"
    )
    warm_up.write_requests(directory, warm_up.warm_up_requests(info, text))
    memory = serving_memory.measure_memory(directory, warm_up.largest_request(info, text))
    versions = sorted({*earlier_versions(draft.target), version})
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    (draft.directory / SERVING).mkdir()
    for file, content in serving_files(model_name(draft.target), versions, memory, size).items():
        (draft.directory / SERVING / file).write_text(content, encoding="utf-8")
    return memory


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
    # The last two versions have labels; one alone is stable.
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
