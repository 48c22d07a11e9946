"""Resolves a preset's name, handle or path to a checkpoint and default generation settings.

Settings come from the checkpoint, or else from the registry of presets, or else from transformers'
defaults. Lengths are limited to the model's positions.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from bart_export.artifact.artifact import Artifact, is_artifact
from bart_export.checkpoints import files, hubs, hugging_face, keras_preset
from bart_export.checkpoints import generation as generation_settings
from bart_export.checkpoints.checkpoint import Checkpoint, without_padding
from bart_export.checkpoints.generation import StatedSettings
from bart_export.config import SAMPLING, GenerationConfig, check_path
from bart_export.errors import CheckpointError, PresetError, TokenizerError, did_you_mean, shown
from bart_export.locations import (
    HUGGING_FACE,
    KAGGLE,
    REPOSITORY,
    is_remote,
    last_name,
    normalized,
)
from bart_export.presets import PRESETS, Preset
from bart_export.progress import Stage

LONGEST_GUESS = 200  # characters of an unknown name that are compared with known ones

# The key in config.json that identifies the format, and the format's reader.
READERS = (("registered_name", keras_preset.read), ("model_type", hugging_face.read))

REGISTRY = "the preset's original checkpoint"
# Settings that are reported even if they are defaults; the defaults of others have no effect.
UNSTATED = (
    "max_length",
    "min_length",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "no_repeat_ngram_size",
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint's origin and its local copy."""

    handle: str  # on its hub, or the name of the directory after ./, since its path is private
    revision: str | None  # the version or commit; None for a directory
    directory: Path
    generation: GenerationConfig | None  # from the registry, for checkpoints without settings


@dataclasses.dataclass(frozen=True)
class Defaults:
    """The default generation settings of an artifact, and lines that explain them."""

    generation: GenerationConfig
    notes: tuple[str, ...]


class ResolvedPreset:
    """A preset's name, source, checkpoint and default generation settings.

    Only the headers of the weights are read. For arguments and errors see `find`, `read` and
    `defaults`; `stage` is called with the name of each stage when it begins.
    """

    def __init__(
        self, preset: str, task: str | None = None, stage: Stage = lambda name: None
    ) -> None:
        self.preset = preset
        stage("resolve the preset")
        self.source = find(preset)
        stage("read the checkpoint")
        self.checkpoint = read(self.source.directory)
        self.defaults = defaults(self.source, self.checkpoint, task)


def find(preset: str) -> Source:
    """Return the source of a preset, downloading it from a hub if necessary.

    A name that is both a known preset and a directory means the preset, as in KerasHub; "./name"
    means the directory.

    Raises:
        PresetError: for an unknown name or a failed download.
        ConfigurationError: if `preset` is neither a string nor a path.
        MissingExtra: if the hub's client is not installed.
    """
    preset = check_path("preset", preset)
    known = PRESETS.get(preset)
    if known is not None and known.directory is not None:
        return Source(known.handle, None, known.directory, known.generation)
    handle = normalized(preset) if known is None else known.handle
    if kaggle := KAGGLE.fullmatch(handle):
        name = f"kaggle://{kaggle[1]}"
        directory, revision = hubs.fetch_kaggle(*kaggle.groups())
    elif repository := HUGGING_FACE.fullmatch(handle):
        name = f"hf://{repository[1]}"
        directory, revision = hubs.fetch_hugging_face(*repository.groups())
    elif not is_remote(handle) and os.path.isdir(handle):
        return Source(f"./{last_name(handle)}", None, Path(handle), None)
    else:
        raise PresetError(
            f"Unknown preset {shown(preset)}.{suggestion(preset)} Expected one of "
            f"{', '.join(PRESETS)}; "
            "kaggle://org/model/keras/variant or kaggle://org/model/keras/variant/version; "
            "hf://org/model or hf://org/model@revision; or the path of a directory with a Keras "
            "preset or a Hugging Face checkpoint."
        )
    generations = (each.generation for each in PRESETS.values() if name in each.aliases)
    return Source(name, revision, directory, next(generations, None))


def suggestion(preset: str) -> str:
    """Return what may be wrong with an unknown preset, or "" if nothing is similar."""
    if REPOSITORY.fullmatch(preset):
        return f" There is no such directory. Did you mean hf://{preset}?"
    if preset.startswith((".", "/", "~")):
        return " It is a file." if os.path.isfile(preset) else " There is no such directory."
    return did_you_mean(preset[:LONGEST_GUESS], PRESETS)


def read(directory: Path, *, weights: bool = True, tokenizer: bool = True) -> Checkpoint:
    """Read a Keras preset or a Hugging Face directory.

    The names and shapes of all weights are checked against the configuration; only headers are
    read. With `weights=False`, no weight file is opened, the checkpoint has no weights, and
    `config.final_logits_bias` is the value in config.json. With `tokenizer=False`, no tokenizer is
    needed or read, and embedding rows without a token are kept.

    Raises:
        PresetError: if the directory has no model, or one that is not BART.
        CheckpointError: if a file is missing, damaged or inconsistent with the others.
        TokenizerError: if the tokenizer files are missing or do not fit the model.
        MissingExtra: if a package that reads the weight files is not installed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise PresetError(
            f"Expected a checkpoint directory, received {directory}, which is not a directory."
        )
    for name in set(hubs.SMALL_FILES) - {files.CARD, *files.LICENCE_FILES}:
        if (directory / name).exists():
            files.require_file(directory / name, max_bytes=files.LARGEST_TEXT)
    hubs.refuse_adapter(str(directory), directory)
    path = directory / files.CONFIG_FILE
    if path.is_file():
        stored = files.read_json(path)
        for key, reader in READERS:
            if key in stored:
                checkpoint = reader(directory, stored, weights, tokenizer)
                return without_padding(checkpoint)
        raise PresetError(
            f"{path} must have registered_name, as Keras presets do, or model_type, as Hugging "
            "Face checkpoints do, received neither."
        )
    raise PresetError(
        f"{directory} {other_content(directory)} A checkpoint is a Keras preset (config.json, "
        "model.weights.h5, assets/tokenizer) or a Hugging Face directory (config.json, "
        "model.safetensors, vocab.json, merges.txt)."
    )


def other_content(directory: Path) -> str:
    """Describe a directory without `config.json`, as the predicate of a sentence."""
    if is_artifact(directory):
        preset = Artifact.open(directory).manifest.preset
        return f"is an artifact, not a checkpoint. It was exported from {preset}."
    return f"has no {files.CONFIG_FILE}."


def without_weights(source: Source, checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint without its weights, read from its directory.

    Missing settings come from the registry. A tokenizer that is missing or invalid is left out,
    since a model can be trained without it.
    """
    try:
        checkpoint = read(source.directory, weights=False)
    except (TokenizerError, CheckpointError):
        checkpoint = dataclasses.replace(checkpoint, weights={}, weight_files=())
    if checkpoint.settings is None and source.generation is not None:
        checkpoint = dataclasses.replace(checkpoint, settings=registry_settings(source))
    return checkpoint


def defaults(source: Source, checkpoint: Checkpoint, task: str | None = None) -> Defaults:
    """Return the default generation settings of a checkpoint.

    `task` is a key of its `task_specific_params`, which override its other settings.

    Raises:
        ConfigurationError: for an unknown task.
        CheckpointError: for unusable settings.
    """
    config = checkpoint.config
    stated = checkpoint.settings or registry_settings(source)
    if task is not None:
        stated = generation_settings.for_task(checkpoint.directory, stated, task)
    generation, positions = stated.generation, config.max_sequence_length
    notes = [settings_line(generation, stated.origins), *stated.notes]
    if generation.max_length > positions:
        notes.append(
            f"max_length={generation.max_length} from "
            f"{stated.origins.get('max_length', 'the defaults')} exceeds the model's {positions} "
            f"positions; it is lowered to {positions}."
        )
        generation = generation.replace(max_length=positions)
    notes += ignored_settings(stated, task)
    if checkpoint.settings is None and source.generation is None:
        notes.append(
            f"The preset has no {files.GENERATION_FILE}, which KerasHub does not write. Put one "
            f"next to its {files.CONFIG_FILE}, or save the model with bart_export's "
            "BartBackbone.save_to_preset, which keeps the settings of the model's preset."
        )
    stated_in = checkpoint.directory / stated.tasks_file
    generation_settings.require_ids(stated_in, generation, config.vocabulary_size)
    return Defaults(generation, (*notes, *checkpoint.notes))


def registry_settings(source: Source | Preset) -> StatedSettings:
    """Return the registry's settings for a preset without settings of its own."""
    generation = source.generation or GenerationConfig()
    plain = GenerationConfig().to_dict()
    stated = [name for name, value in generation.to_dict().items() if value != plain[name]]
    return StatedSettings(generation, dict.fromkeys(stated, REGISTRY))


def settings_line(generation: GenerationConfig, origins: Mapping[str, str]) -> str:
    """Return the line that lists the settings by origin, without token ids."""
    owners: dict[str, list[str]] = {}
    unstated = []
    for name in generation_settings.SETTINGS:
        idle = name in SAMPLING and not generation.do_sample
        if name.endswith("_token_id") or idle:
            continue
        value = f"{name}={shown(getattr(generation, name))}"
        if name in origins:
            owners.setdefault(origins[name], []).append(value)
        elif name in UNSTATED:
            unstated.append(value)
    parts = [f"{', '.join(values)} from {owner}" for owner, values in owners.items()]
    if unstated:
        parts.append(f"{', '.join(unstated)} from transformers' defaults")
    return f"Settings: {'; '.join(parts)}."


def known_settings(preset: Preset) -> str:
    """Return the line about the settings of a preset that was not downloaded."""
    stated = registry_settings(preset)
    return settings_line(stated.generation, stated.origins)


def ignored_settings(stated: StatedSettings, task: str | None) -> Iterator[str]:
    """Yield lines about the settings in `config.json` that the artifact ignores."""
    if stated.tasks and task is None:
        tasks = list(stated.tasks)
        yield (
            f"{stated.tasks_file} has separate settings for {', '.join(tasks)}, which are not "
            f"used. Use --task {tasks[0]} to apply them."
        )
    if stated.prefix:
        yield (
            f"{stated.tasks_file} has the prefix {shown(stated.prefix)}, which transformers' "
            "pipelines prepend to a text, but generate() does not, nor does the artifact. To get a "
            f"pipeline's results, begin each text with {shown(stated.prefix)}."
        )
