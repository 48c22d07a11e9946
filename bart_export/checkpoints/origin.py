"""Where a checkpoint comes from: a preset, a hub's handle or a directory, and its copy here."""

import dataclasses
import re
from pathlib import Path

from bart_export.checkpoints import hubs
from bart_export.config import GenerationConfig
from bart_export.errors import PresetError, did_you_mean, shown
from bart_export.presets import PRESETS

WORD = r"[\w][\w.-]*"
KAGGLE = re.compile(rf"kaggle://({WORD}/{WORD}/keras/{WORD})(?:/(\d+))?", re.ASCII)
HUGGING_FACE = re.compile(rf"hf://({WORD}/{WORD})(?:@(?!.*\.\.)(\w[\w./-]*))?", re.ASCII)
REPOSITORY = re.compile(rf"{WORD}/{WORD}", re.ASCII)
MOST_CHARACTERS = 200  # of what is looked at for a typing error


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint's origin and its local copy.

    `handle` is the preset's handle on its hub, or the directory as it was typed; `revision` the
    version or commit that was fetched, None for a directory. `generation` are defaults known for
    this handle, for checkpoints that state none.
    """

    handle: str
    revision: str | None
    directory: Path
    generation: GenerationConfig | None


def resolve(preset: str) -> Source:
    """Return the local directory of a preset, after fetching it if it lies on a hub.

    A name that is both a known preset and a directory means the preset, as in KerasHub; "./name"
    means the directory.

    Raises:
        PresetError: for a name that is nothing of the kind, and for a download that failed.
        MissingExtra: when the hub's client is not installed.
    """
    known = PRESETS.get(preset)
    if known is not None and known.directory is not None:
        return Source(known.handle, None, known.directory, known.generation)
    handle = preset if known is None else known.handle
    if kaggle := KAGGLE.fullmatch(handle):
        model, version = kaggle.groups()
        directory, revision = hubs.fetch_kaggle(model, version)
        name = f"kaggle://{model}"
        return Source(name, revision, directory, known_generation(name))
    if hugging_face := HUGGING_FACE.fullmatch(handle):
        repository, revision = hugging_face.groups()
        directory, revision = hubs.fetch_hugging_face(repository, revision)
        name = f"hf://{repository}"
        return Source(name, revision, directory, known_generation(name))
    if "://" not in preset and preset and is_directory(preset):
        return Source(preset, None, Path(preset), None)
    raise PresetError(unknown(preset))


def is_directory(name: str) -> bool:
    """Return whether a name is that of a directory; one that no directory can have is none."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def known_generation(handle: str) -> GenerationConfig | None:
    """Return the generation defaults known for a hub's handle without version."""
    for preset in PRESETS.values():
        if handle in preset.aliases:
            return preset.generation
    return None


def unknown(preset: str) -> str:
    """Return the line that says what a preset may be, and which known one is nearest."""
    hint = (
        f" Did you mean hf://{preset}?"
        if REPOSITORY.fullmatch(preset)
        else did_you_mean(preset[:MOST_CHARACTERS], PRESETS)
    )
    return (
        f"Unknown preset {shown(preset)}.{hint} Expected one of "
        f"{', '.join(PRESETS)}; "
        "kaggle://org/model/keras/variant or kaggle://org/model/keras/variant/version; "
        "hf://org/model or hf://org/model@revision; or the path of a directory with a Keras preset "
        "or a Hugging Face checkpoint."
    )
