"""What is served: models as `models.config` or the command line lists them, and their versions.

A SavedModel's base path has a directory for each version, named by its number, as TensorFlow
Serving has it. An artifact is itself the one version of the model that LiteRT serves, and its
manifest counts the exports to that place. The manifest also says whether an artifact is complete; a
SavedModel from elsewhere is complete once TensorFlow loads it.
"""

import dataclasses
import logging
import os
import pathlib
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from bart_export.artifact.artifact import Artifact, holds_artifact
from bart_export.artifact.directories import MANIFEST
from bart_export.artifact.manifest_file import path_of
from bart_export.errors import ArtifactError, BartExportError, ConfigurationError
from bart_export.presets import PRESETS
from bart_export.server import messages
from bart_export.server.status import StatusError, invalid

LOG = logging.getLogger(__name__)

TENSORFLOW, LITERT = "tensorflow", "litert"
SAVED_MODEL, GRAPH = "saved_model", "saved_model.pb"
# The targets whose files an engine runs; the faster engine comes first.
TARGETS = {LITERT: "tflite", TENSORFLOW: SAVED_MODEL}

VERSION = re.compile(r"[0-9]+")
HIGHEST_VERSION = 2**63 - 1  # versions are int64 in every message
MOST_NAMES = 10  # of artifacts in a directory that a message lists


@dataclasses.dataclass(frozen=True)
class VersionPolicy:
    """Which versions are served: the `latest`, None for all, or those that `specific` names."""

    latest: int | None = 1
    specific: frozenset[int] | None = None

    def choose(self, found: Collection[int]) -> frozenset[int]:
        """Return those versions of `found` that are wanted."""
        if self.specific is not None:
            return self.specific & frozenset(found)
        return frozenset(sorted(found, reverse=True)[: self.latest])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model to be served.

    For the engine "tensorflow", `base_path` holds a SavedModel in a numbered directory for each
    version; for "litert" it is an artifact. `labels` maps a label to a version.
    """

    name: str
    base_path: pathlib.Path
    engine: str
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def missing(self, found: Collection[int]) -> str:
        """Return what is wanted and is not among the versions found, or ""."""
        absent = ", ".join(map(str, sorted((self.policy.specific or frozenset()) - set(found))))
        if absent:
            return f"Version {absent} of servable {self.name} not found under {self.base_path}"
        if not found:
            return f"No versions of servable {self.name} found under base path {self.base_path}"
        return ""


def from_proto(config: messages.Message) -> list[ServedModel]:
    """Return the models that a ModelServerConfig lists; a platform is the name of an engine.

    Raises:
        StatusError: INVALID_ARGUMENT, with TensorFlow Serving's texts where it has them.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    return [from_model_config(model) for model in config.model_config_list.config]


def from_model_config(model: messages.Message) -> ServedModel:
    """Return the record of a ModelConfig."""
    if not model.name:
        raise invalid(f"Expected every model to have a name; that of {model.base_path} has none")
    base_path = pathlib.Path(model.base_path)
    if not base_path.is_absolute():
        raise invalid(
            f"Expected model {model.name} to have an absolute path or URI; "
            f"got base_path()={model.base_path}"
        )
    # The type is deprecated, and TensorFlow's is 1.
    platform = model.model_platform or {0: "none", 1: TENSORFLOW}.get(
        model.model_type, f"model_type {model.model_type}"
    )
    if platform not in TARGETS:
        raise invalid(
            f"Expected model {model.name} to have the model_platform {TENSORFLOW} or {LITERT}, "
            f"received {platform}"
        )
    try:
        engine, base_path = choose_engine(base_path, platform)
    except ArtifactError as error:
        raise invalid(str(error)) from error
    policy = model.model_version_policy
    policies = {
        "all": VersionPolicy(latest=None),
        "latest": VersionPolicy(latest=max(1, policy.latest.num_versions)),
        "specific": VersionPolicy(specific=frozenset(policy.specific.versions)),
    }
    return ServedModel(
        name=model.name,
        base_path=base_path,
        engine=engine,
        policy=policies.get(policy.WhichOneof("policy_choice"), VersionPolicy()),
        labels=dict(model.version_labels),
    )


def read_config(path: pathlib.Path) -> list[ServedModel]:
    """Return the models that a `models.config` lists: a ModelServerConfig as text.

    Raises:
        ConfigurationError: if it cannot be read, is no such text, or lists what cannot be served.
    """
    try:
        return from_proto(messages.read_text(path, messages.ModelServerConfig))
    except StatusError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def follow_config(
    path: pathlib.Path,
    served: Sequence[ServedModel],
    configure: Callable[[Sequence[ServedModel]], None],
    seconds: float,
    stopped: threading.Event | None = None,
) -> None:
    """Read a `models.config` every few seconds and have what it lists served if it is not yet.

    What is refused is tried again each time: a label may wait for its version. The log says it
    once.
    """
    refusal, stopped = "", stopped or threading.Event()
    while not stopped.wait(seconds):
        try:
            models = read_config(path)
            if models != served:
                configure(models)
                served = models
                LOG.info("%s: %d model(s) served as it lists them", path, len(models))
            refusal = ""
        except BartExportError as error:
            if str(error) != refusal:
                LOG.error("%s is not followed: %s", path, error)
            refusal = str(error)


def served_models(
    directories: Sequence[pathlib.Path], engine: str | None = None
) -> list[ServedModel]:
    """Return the records of models that are each named after their directory.

    Raises:
        ConfigurationError: if two have one name.
        ArtifactError: as for `served_model`.
    """
    places: dict[str, pathlib.Path] = {}
    for directory in directories:
        name = os.path.basename(os.path.abspath(directory))
        if name in places:
            raise ConfigurationError(
                f"A model is named after its directory, but {places[name]} and {directory} are "
                f"both named {name}. Serve them under other names with --model-config-file."
            )
        places[name] = directory
    return [served_model(name, directory, engine) for name, directory in places.items()]


def served_model(name: str, directory: pathlib.Path, engine: str | None = None) -> ServedModel:
    """Return the record of a model that the command line names; a path may be relative.

    Raises:
        ArtifactError: if there is no such directory, or nothing in it for the engine.
    """
    place = pathlib.Path(os.path.abspath(directory))  # a link stays one: it may be changed later
    if place.is_file():
        raise ArtifactError(
            f"Expected the directory of an artifact, received the file {directory}. Name the "
            f"directory that has a {MANIFEST}."
        )
    if not place.is_dir() and str(directory) in PRESETS:
        raise ArtifactError(
            f"{directory} is a preset, which has to be exported before it is served: bart-export "
            f"--preset {directory} --target tflite. Then serve artifacts/{directory}."
        )
    if not place.is_dir():
        raise ArtifactError(
            f"There is no directory {directory}. Expected an artifact, which bart-export --preset "
            "NAME --target tflite makes, or a directory with numbered versions of a SavedModel."
        )
    engine, base_path = choose_engine(place, engine)
    if engine == TENSORFLOW and not numbered_directories(base_path):
        inside = sorted(path.parent.name for path in place.glob(f"*/{MANIFEST}"))[:MOST_NAMES]
        raise ArtifactError(
            f"Expected an artifact, or a directory with numbered versions of a SavedModel, but "
            f"{directory} is neither."
            + (f" Did you mean {directory / inside[0]}?" if len(inside) == 1 else "")
            + (f" It holds artifacts: {', '.join(inside)}." if len(inside) > 1 else "")
        )
    return ServedModel(name=name, base_path=base_path, engine=engine)


def choose_engine(
    base_path: pathlib.Path, requested: str | None = None
) -> tuple[str, pathlib.Path]:
    """Return the engine that serves what lies at a place, and the base path that it reads.

    Args:
        base_path: an artifact, or a SavedModel's base path, which need not be there yet.
        requested: an engine; None takes the fastest that an artifact has files for.

    Raises:
        ArtifactError: if there is nothing for the engine requested, or a damaged artifact.
    """
    if (base_path / GRAPH).is_file():
        raise ArtifactError(
            f"{base_path} is one version of a SavedModel. Expected the directory that holds the "
            f"numbered versions; accepted would be {base_path.parent}."
        )
    if not (base_path / MANIFEST).is_file():
        if (base_path / "config.json").is_file():
            raise ArtifactError(
                f"{base_path} is a checkpoint, which has to be exported before it is served: "
                f"bart-export --preset {base_path} --target tflite --output DIRECTORY. Then serve "
                "DIRECTORY."
            )
        if requested == LITERT:
            raise ArtifactError(
                f"The engine {LITERT} serves artifacts, but {base_path} has no {MANIFEST}. Use "
                f"the engine {TENSORFLOW} for a SavedModel, or name a directory that bart-export "
                "wrote."
            )
        return TENSORFLOW, base_path
    artifact = Artifact.open(base_path)
    present = [engine for engine, target in TARGETS.items() if artifact.files(target)]
    engine = requested or next(iter(present), None)
    if engine not in present:
        wanted = [TARGETS[engine]] if engine else list(TARGETS.values())
        raise ArtifactError(
            f"{base_path} has no files of the target {' or '.join(wanted)}"
            f"{f' for the engine {engine}' if engine else ''}. Export it again with --target "
            f"{wanted[0]}{f', or use the engine {present[0]}' if present else ''}."
        )
    return engine, base_path / SAVED_MODEL if engine == TENSORFLOW else base_path


def find_versions(model: ServedModel) -> dict[int, pathlib.Path]:
    """Return where the complete versions of a model lie, by number.

    Raises:
        ArtifactError: for an artifact that is not complete, or a base path that cannot be listed.
    """
    base_path = model.base_path
    if model.engine == LITERT:
        return {complete(base_path).manifest.exports: base_path}
    if base_path.name == SAVED_MODEL and holds_artifact(base_path.parent):
        complete(base_path.parent, f"{SAVED_MODEL}/")
    numbered = numbered_directories(base_path)
    return {number: path for number, path in numbered.items() if (path / GRAPH).is_file()}


def numbered_directories(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return the children of a base path whose names are version numbers.

    Of two names of one number, 1 and 01, that without zeros counts.
    """
    try:
        names = sorted(os.listdir(base_path))
    except OSError as error:
        raise ArtifactError(
            f"{base_path} cannot be listed: {error.strerror}. Expected a directory with a "
            "numbered directory for each version; what is loaded stays."
        ) from None
    numbers = {int(name): name for name in names if VERSION.fullmatch(name)}
    return {
        number: base_path / name for number, name in numbers.items() if number <= HIGHEST_VERSION
    }


def complete(directory: pathlib.Path, folder: str = "") -> Artifact:
    """Open an artifact whose files, or those of a folder, are as long as its manifest says."""
    artifact = Artifact.open(directory)
    for name, entry in artifact.manifest.files.items():
        if not name.startswith(folder):
            continue
        try:
            size = path_of(directory, name).stat().st_size
            fault = f"has {size} of {entry.bytes} bytes" if size != entry.bytes else ""
        except OSError as error:
            fault = f"cannot be read: {error.strerror}"
        if fault and Artifact.open(directory).manifest == artifact.manifest:
            raise ArtifactError(f"{directory / name} {fault}.")
        if fault:  # another took its place between the manifest and a file
            return complete(directory, folder)
    return artifact


def listing(path: pathlib.Path) -> object:
    """Return the names, sizes and times of change of everything below a path."""
    try:
        stats = [(path, path.stat()) for path in sorted(path.rglob("*"))]
    except OSError:  # gone meanwhile; nothing is equal to this, so that it is looked at again
        return object()
    return [(path, status.st_size, status.st_mtime_ns) for path, status in stats]
