"""The models to serve, from `models.config` or the command line, and the engine of each."""

import logging
import os
import pathlib
import threading
from collections.abc import Callable, Sequence

from bart_export.artifact.artifact import MANIFEST, Artifact, no_artifact, similar_artifact
from bart_export.artifact.manifest import SAVED_MODEL, TFLITE
from bart_export.errors import ArtifactError, BartExportError, ConfigurationError, NoArtifact
from bart_export.locations import Location, is_remote, last_name, normalized
from bart_export.presets import PRESETS
from bart_export.server import messages
from bart_export.server.status import StatusError, invalid
from bart_export.server.versions import (
    GRAPH,
    LITERT,
    TENSORFLOW,
    ServedModel,
    VersionPolicy,
    numbered_directories,
    served_files,
)

LOG = logging.getLogger(__name__)

# The target whose files each engine runs, the fastest engine first.
TARGETS = {LITERT: TFLITE, TENSORFLOW: SAVED_MODEL}
MAX_NAMES = 10  # of artifacts in an error message


def from_proto(config: messages.Message) -> list[ServedModel]:
    """Return the models in a ModelServerConfig.

    Raises:
        StatusError: INVALID_ARGUMENT for an invalid entry.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    return [from_model_config(model) for model in config.model_config_list.config]


def from_model_config(model: messages.Message) -> ServedModel:
    """Return the model that a ModelConfig describes; its platform names the engine."""
    if not model.name:
        raise invalid(f"Expected every model to have a name; the one at {model.base_path} has none")
    base_path = pathlib.Path(model.base_path)
    if not base_path.is_absolute():
        raise invalid(
            f"Expected model {model.name} to have an absolute path or URI; "
            f"got base_path()={model.base_path}"
        )
    platform = model.model_platform or "none"
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
    """Return the models in a `models.config` file, a ModelServerConfig as text.

    Raises:
        ConfigurationError: for a file that cannot be read or parsed, or an invalid entry.
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
    """Read a `models.config` every few seconds and call `configure` when its models change.

    A list that is refused is tried again each time, because a label may be waiting for its version;
    it is logged only once. The list after it is applied even if it is the one before it, because
    models of a refused list may be served already.
    """
    refusal, stopped = "", stopped or threading.Event()
    while not stopped.wait(seconds):
        try:
            models = read_config(path)
            if refusal or models != served:
                configure(models)
                served = models
                LOG.info("%s: serving the %d model(s) listed", path, len(models))
            refusal = ""
        except BartExportError as error:
            if str(error) != refusal:
                LOG.error("%s was not applied: %s", path, error)
            refusal = str(error)


def served_models(locations: Sequence[Location], engine: str | None = None) -> list[ServedModel]:
    """Return models that are named after their directories or the ends of their URLs.

    Raises:
        ConfigurationError: if two have the same name.
        ArtifactError: as for `served_model`.
    """
    by_name: dict[str, str] = {}
    for location in map(normalized, locations):
        name = last_name(location)
        if name in by_name:
            raise ConfigurationError(
                f"A model is named after its directory, but {by_name[name]} and {location} are "
                f"both named {name}. Serve them under other names with --model-config-file."
            )
        by_name[name] = location
    return [
        remote_model(name, location, engine)
        if is_remote(location)
        else served_model(name, pathlib.Path(location), engine)
        for name, location in by_name.items()
    ]


def remote_model(name: str, url: str, engine: str | None = None) -> ServedModel:
    """Return a model for a remote artifact, after fetching the files that its engine reads.

    Raises:
        ArtifactError: if the artifact cannot be fetched, or has no files for the engine.
    """
    artifact = Artifact.open(url)
    engine, base_path = artifact_engine(artifact, engine)
    for file in served_files(artifact, engine):
        artifact.path(file)
    return ServedModel(name=name, base_path=base_path, engine=engine)


def served_model(name: str, directory: pathlib.Path, engine: str | None = None) -> ServedModel:
    """Return a model for a directory named on the command line.

    Raises:
        ArtifactError: if the directory does not exist, or has no files for the engine.
    """
    path = pathlib.Path(os.path.abspath(directory))  # links are kept: they may change later
    if not os.path.isdir(path):
        if os.path.exists(path) or str(directory) in PRESETS or similar_artifact(directory):
            raise NoArtifact(no_artifact(directory))
        raise ArtifactError(
            f"There is no directory {directory}. Expected an artifact, such as one made by "
            "bart-export --preset NAME --target tflite, or a directory with numbered versions of a "
            "SavedModel."
        )
    engine, base_path = choose_engine(path, engine)
    if engine == TENSORFLOW and not numbered_directories(base_path):
        artifacts = sorted(file.parent.name for file in path.glob(f"*/{MANIFEST}"))[:MAX_NAMES]
        raise ArtifactError(
            f"Expected an artifact, or a directory with numbered versions of a SavedModel, but "
            f"{directory} is neither."
            + (f" Did you mean {directory / artifacts[0]}?" if len(artifacts) == 1 else "")
            + (f" It contains artifacts: {', '.join(artifacts)}." if len(artifacts) > 1 else "")
        )
    return ServedModel(name=name, base_path=base_path, engine=engine)


def choose_engine(
    base_path: pathlib.Path, requested: str | None = None
) -> tuple[str, pathlib.Path]:
    """Return the engine that serves a directory, and the base path that the engine reads.

    Args:
        base_path: an artifact, or a SavedModel's base path, which need not exist yet.
        requested: an engine; None chooses the fastest that an artifact has files for.

    Raises:
        ArtifactError: if there are no files for the requested engine, or the artifact is damaged.
    """
    # Unlike `Path.is_file`, `os.path.isfile` does not raise for paths that are too long or locked.
    if os.path.isfile(base_path / GRAPH):
        raise ArtifactError(
            f"{base_path} is one version of a SavedModel. Expected the directory that holds the "
            f"numbered versions: {base_path.parent}."
        )
    if not os.path.isfile(base_path / MANIFEST):
        if os.path.isfile(base_path / "config.json"):
            raise NoArtifact(no_artifact(base_path))
        if requested == LITERT:
            raise ArtifactError(
                f"The engine {LITERT} serves artifacts, but {base_path} has no {MANIFEST}. Use "
                f"the engine {TENSORFLOW} for a SavedModel, or name an artifact."
            )
        return TENSORFLOW, base_path
    return artifact_engine(Artifact.open(base_path), requested)


def artifact_engine(artifact: Artifact, requested: str | None) -> tuple[str, pathlib.Path]:
    """Return the engine that serves an artifact and its base path; see `choose_engine`."""
    available = [engine for engine, target in TARGETS.items() if artifact.files(target)]
    engine = requested or next(iter(available), None)
    if engine not in available:
        targets = [TARGETS[engine]] if engine else list(TARGETS.values())
        raise ArtifactError(
            f"{artifact.location} has no files of the target {' or '.join(targets)}"
            f"{f' for the engine {engine}' if engine else ''}. Export it again with --target "
            f"{targets[0]}{f', or use the engine {available[0]}' if available else ''}."
        )
    directory = artifact.directory
    return engine, directory / SAVED_MODEL if engine == TENSORFLOW else directory
