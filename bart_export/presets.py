"""Presets: what can be named instead of a path, and how a name becomes a local directory.

Flows in: what a user typed. Flows out: a `Source` with a directory on this machine, downloaded if
need be, and the generation defaults that are known for it. The registry is `PRESETS`; how hubs are
spoken to is in `hubs`, what is in the directory is for `checkpoints`.
"""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

from bart_export import hubs
from bart_export.artifact import holds_artifact
from bart_export.config import GenerationConfig
from bart_export.directories import MANIFEST
from bart_export.errors import PresetError, did_you_mean, shown

ASSETS = Path(__file__).parent / "assets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A known preset.

    `handle` is where it comes from; an embedded preset's is its own name, and `directory` its place
    in this package. `aliases` are other hub handles of the same weights, without version.
    `parameters` counts trained values, the tied embedding once. `generation` are the settings the
    original checkpoint shipped with, where the preset's own files do not hold them.
    """

    name: str
    handle: str
    aliases: tuple[str, ...]
    parameters: int
    description: str
    generation: GenerationConfig | None
    directory: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the preset as KerasHub's `Backbone.presets` has it; an embedded one has no handle.

        `metadata` has a `description`, the number of parameters as `params`, and the family of
        models as `path`.
        """
        return {
            "metadata": {
                "description": self.description,
                "params": self.parameters,
                "path": "bart",
            },
            "kaggle_handle": self.handle if self.directory is None else None,
        }


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


# Generation settings are those of the original checkpoints at huggingface.co/facebook, which Keras
# presets leave out. The stored metadata of bart_large_en_cnn counts one row of the embedding too
# many; the count here is that of its weights.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="bart_mini_en",
            handle="bart_mini_en",
            aliases=(),
            parameters=7_889_920,
            description="3 layers, 512 positions, embedded in this package. Writes a headline for "
            "an English description of a piece of software.",
            generation=None,
            directory=ASSETS / "bart_mini_en",
        ),
        Preset(
            name="bart_base_en",
            handle="kaggle://keras/bart/keras/bart_base_en/3",
            aliases=("kaggle://keras/bart/keras/bart_base_en", "hf://keras/bart_base_en"),
            parameters=139_417_344,
            description="6 layers, case kept. Pre-trained on BookCorpus, English Wikipedia and "
            "CommonCrawl; made to be fine-tuned.",
            generation=GenerationConfig(
                num_beams=4,
                no_repeat_ngram_size=3,
                early_stopping=True,
                forced_bos_token_id=0,
                forced_eos_token_id=2,
            ),
        ),
        Preset(
            name="bart_large_en",
            handle="kaggle://keras/bart/keras/bart_large_en/3",
            aliases=("kaggle://keras/bart/keras/bart_large_en", "hf://keras/bart_large_en"),
            parameters=406_287_360,
            description="12 layers, case kept. Pre-trained on BookCorpus, English Wikipedia and "
            "CommonCrawl; made to be fine-tuned.",
            generation=GenerationConfig(
                num_beams=4,
                no_repeat_ngram_size=3,
                early_stopping=True,
                forced_eos_token_id=2,
            ),
        ),
        Preset(
            name="bart_large_en_cnn",
            handle="kaggle://keras/bart/keras/bart_large_en_cnn/3",
            aliases=("kaggle://keras/bart/keras/bart_large_en_cnn", "hf://keras/bart_large_en_cnn"),
            parameters=406_286_336,
            description="bart_large_en fine-tuned on CNN/DailyMail: summarizes news articles.",
            generation=GenerationConfig(
                num_beams=4,
                length_penalty=2.0,
                max_length=142,
                min_length=56,
                no_repeat_ngram_size=3,
                early_stopping=True,
                forced_bos_token_id=0,
                forced_eos_token_id=2,
            ),
        ),
    )
}

WORD = r"[\w][\w.-]*"
KAGGLE = re.compile(rf"kaggle://({WORD}/{WORD}/keras/{WORD})(?:/(\d+))?", re.ASCII)
HUGGING_FACE = re.compile(rf"hf://({WORD}/{WORD})(?:@(?!.*\.\.)(\w[\w./-]*))?", re.ASCII)
REPOSITORY = re.compile(rf"{WORD}/{WORD}", re.ASCII)
MOST_CHARACTERS = 200  # of what is looked at for a typing error


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


def no_artifact(path: Path) -> str:
    """Return the line about a path that was given for an artifact and is none: what it is, and how
    to come to an artifact."""
    typed = re.sub("^(hf|kaggle):/", r"\1://", path.as_posix())
    exported = Path("artifacts", path)
    around = next(filter(is_artifact, path.absolute().parents), None)
    if path.exists() and around is not None:
        return f"{path} is a part of an artifact. Name the artifact: {around}"
    if not path.exists() and is_artifact(exported):
        return f"There is no {path}. Did you mean {exported}?"
    if not path.exists() and (typed in PRESETS or "://" in typed):
        return f"{typed} is a preset, of which an artifact is made with: {export_command(typed)}"
    if (path / "config.json").is_file():
        return f"{path} is a checkpoint, of which an artifact is made with: {export_command(path)}"
    if not path.is_dir():
        return (
            f"An artifact is a directory with a {MANIFEST}, but {path} is not a directory. "
            f"Make one with: {export_command('NAME')} --output {shlex.quote(str(path))}"
        )
    return f"{path} has no {MANIFEST}, so it is not a finished artifact. Export it again."


def is_artifact(directory: Path) -> bool:
    """Return whether a directory looks like an artifact."""
    return (directory / MANIFEST).is_file() and holds_artifact(directory)


def export_command(preset: str | Path) -> str:
    """Return the command that exports a preset."""
    name = str(preset)
    if isinstance(preset, Path) and name in PRESETS:
        name = f"./{name}"
    return f"bart-export --preset {shlex.quote(name)} --target tflite"


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
