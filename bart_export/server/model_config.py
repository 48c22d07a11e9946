"""What is to be served, as `models.config`, a request or the command line says it.

A watcher reads `models.config` again and has what it says served.
"""

import logging
import os
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bart_export.artifact.directories import MANIFEST
from bart_export.errors import ArtifactError, BartExportError, ConfigurationError
from bart_export.presets import PRESETS
from bart_export.server import messages
from bart_export.server.sources import (
    LITERT,
    TENSORFLOW,
    All,
    Latest,
    ServedModel,
    Specific,
    VersionPolicy,
    choose_engine,
    numbered_directories,
)
from bart_export.server.status import StatusError, invalid

LOG = logging.getLogger(__name__)

MODEL_TYPE = messages.enumeration("tensorflow.serving.ModelType")
MOST_NAMES = 10  # of artifacts that a directory holds
# Clients know the first; the second is this server's own, for artifacts.
PLATFORMS = (TENSORFLOW, LITERT)

POLICIES: Mapping[str | None, Callable[[Any], VersionPolicy]] = {
    None: lambda policy: Latest(),
    "latest": lambda policy: Latest(max(1, policy.latest.num_versions)),
    "all": lambda policy: All(),
    "specific": lambda policy: Specific(frozenset(policy.specific.versions)),
}


def from_proto(config: Any) -> list[ServedModel]:
    """Return the models that a ModelServerConfig lists; a platform is the name of an engine.

    Raises:
        StatusError: INVALID_ARGUMENT, with TensorFlow Serving's texts where it has them.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    return [served_model_of(model) for model in config.model_config_list.config]


def served_model_of(model: Any) -> ServedModel:
    """Return the record of a ModelConfig."""
    if not model.name:
        raise invalid(f"Expected every model to have a name; that of {model.base_path} has none")
    base_path = pathlib.Path(model.base_path)
    if not base_path.is_absolute():
        raise invalid(
            f"Expected model {model.name} to have an absolute path or URI; "
            f"got base_path()={model.base_path}"
        )
    try:
        engine, base_path = choose_engine(base_path, platform(model))
    except ArtifactError as error:
        raise invalid(str(error)) from error
    policy = model.model_version_policy
    return ServedModel(
        name=model.name,
        base_path=base_path,
        engine=engine,
        policy=POLICIES[policy.WhichOneof("policy_choice")](policy),
        labels=dict(model.version_labels),
    )


def platform(model: Any) -> str:
    """Return the platform that a ModelConfig names: one of `PLATFORMS`."""
    old = ""
    if model.model_type:  # which is deprecated
        known = model.model_type == MODEL_TYPE.TENSORFLOW
        old = TENSORFLOW if known else f"model_type {model.model_type}"
    name = str(model.model_platform) or old
    if name not in PLATFORMS or (old and model.model_platform):
        raise invalid(
            f"Expected model {model.name} to have the model_platform {' or '.join(PLATFORMS)}, "
            f"received {' and '.join(filter(None, (model.model_platform, old))) or 'none'}"
        )
    return name


def read(path: pathlib.Path) -> list[ServedModel]:
    """Return the models that a `models.config` lists: a ModelServerConfig as text.

    Raises:
        ConfigurationError: if it cannot be read, is no such text, or lists what cannot be served.
    """
    try:
        return from_proto(messages.read_text(path, messages.ModelServerConfig))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigurationError(
            f"{path} must hold a tensorflow.serving.ModelServerConfig as text: {error}"
        ) from None
    except StatusError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def served_model(name: str, base_path: pathlib.Path, engine: str | None = None) -> ServedModel:
    """Return the record of a model that the command line names; a path may be relative.

    Raises:
        ArtifactError: if there is no such directory, or nothing in it for the engine.
    """
    place = pathlib.Path(os.path.abspath(base_path))  # a link stays one: it may be changed later
    if not place.is_dir():
        raise ArtifactError(absent(base_path))
    engine, place = choose_engine(place, engine)
    if engine == TENSORFLOW and not numbered_directories(place):
        inside = sorted(path.parent.name for path in place.glob(f"*/{MANIFEST}"))[:MOST_NAMES]
        raise ArtifactError(
            f"Expected an artifact, or a directory with numbered versions of a SavedModel, but "
            f"{base_path} is neither."
            + (f" Did you mean {base_path / inside[0]}?" if len(inside) == 1 else "")
            + (f" It holds artifacts: {', '.join(inside)}." if len(inside) > 1 else "")
        )
    return ServedModel(name=name, base_path=place, engine=engine)


def absent(path: pathlib.Path) -> str:
    """Return what to say of something to be served that is no directory."""
    if path.is_file():
        return (
            f"Expected the directory of an artifact, received the file {path}. Name the directory "
            f"that has a {MANIFEST}."
        )
    if str(path) in PRESETS:
        return (
            f"{path} is a preset, which has to be exported before it is served: bart-export "
            f"--preset {path} --target tflite. Then serve artifacts/{path}."
        )
    return (
        f"There is no directory {path}. Expected an artifact, which bart-export --preset NAME "
        "--target tflite makes, or a directory with numbered versions of a SavedModel."
    )


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


class ConfigWatcher:
    """Has what a `models.config` says served whenever that changes."""

    def __init__(
        self,
        path: pathlib.Path,
        served: Sequence[ServedModel],
        configure: Callable[[Sequence[ServedModel]], None],
        seconds: float,
    ) -> None:
        """Take what there is to do; nothing is done before `start`."""
        self.path = path
        self.served = list(served)
        self.configure = configure
        self.seconds = seconds
        self.refusal = ""
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._work, name=f"watch {path}", daemon=True)

    def start(self) -> None:
        """Read the file every few seconds from now on."""
        self.thread.start()

    def stop(self) -> None:
        """Read it no more; a change that is being carried out goes on."""
        self.stopped.set()

    def look(self) -> None:
        """Read the file, and serve what it lists if that is not served yet.

        What is refused is tried again at every look: a label may wait for its version. The log
        says it once.
        """
        try:
            models = read(self.path)
            if models != self.served:
                self.configure(models)
                self.served = models
                LOG.info("%s: %d model(s) served as it lists them", self.path, len(models))
            self.refusal = ""
        except BartExportError as error:
            refusal = str(error)
            if refusal != self.refusal:
                LOG.error("%s is not followed: %s", self.path, refusal)
            self.refusal = refusal

    def _work(self) -> None:
        while not self.stopped.wait(self.seconds):
            self.look()
