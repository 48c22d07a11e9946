"""From what a user names to a checkpoint and the settings that an artifact of it generates with.

`find` turns a preset's name, a hub's handle or a path into a local directory, `read` the directory
into a `Checkpoint`, and `ResolvedPreset` does both and decides the settings: what the checkpoint
itself states wins over what the registry of presets knows; where neither says anything,
transformers' defaults hold. A length beyond the model's positions is brought within them.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from bart_export.artifact.artifact import Artifact, is_artifact
from bart_export.checkpoints import files, hubs, hugging_face, keras_preset
from bart_export.checkpoints import generation as generation_settings
from bart_export.checkpoints.checkpoint import Checkpoint, without_padding
from bart_export.checkpoints.generation import StatedSettings
from bart_export.config import SAMPLING, GenerationConfig
from bart_export.errors import CheckpointError, PresetError, TokenizerError, did_you_mean, shown
from bart_export.presets import PRESETS, Preset
from bart_export.progress import Stage

WORD = r"[\w][\w.-]*"
KAGGLE = re.compile(rf"kaggle://({WORD}/{WORD}/keras/{WORD})(?:/(\d+))?", re.ASCII)
HUGGING_FACE = re.compile(rf"hf://({WORD}/{WORD})(?:@(?!.*\.\.)(\w[\w./-]*))?", re.ASCII)
REPOSITORY = re.compile(rf"{WORD}/{WORD}", re.ASCII)
MOST_CHARACTERS = 200  # of what is looked at for a typing error

# The key of config.json that tells who wrote it, and who reads it.
READERS = (("registered_name", keras_preset.read), ("model_type", hugging_face.read))

REGISTRY = "the preset's original checkpoint"
# What is said of settings that nobody states; the others are switched off.
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
    """A checkpoint's origin and its local copy.

    `handle` is the preset's handle on its hub, or the directory as it was typed; `revision` the
    version or commit that was fetched, None for a directory. `generation` are defaults known for
    this handle, for checkpoints that state none.
    """

    handle: str
    revision: str | None
    directory: Path
    generation: GenerationConfig | None


@dataclasses.dataclass(frozen=True)
class Defaults:
    """The settings of an artifact, and lines about them for whoever exports it or looks at it."""

    generation: GenerationConfig
    notes: tuple[str, ...]


class ResolvedPreset:
    """A preset that has been found and read: its source, its checkpoint, what it generates with.

    Of the weights only the headers are read.

    Args:
        preset: what `find` takes.
        task: as `defaults`.
        stage: told the name of each stage as it begins.

    Raises:
        PresetError, CheckpointError, TokenizerError, MissingExtra: as `find` and `read`.
        ConfigurationError: as `defaults`.
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
        name = f"kaggle://{kaggle[1]}"
        directory, revision = hubs.fetch_kaggle(*kaggle.groups())
    elif repository := HUGGING_FACE.fullmatch(handle):
        name = f"hf://{repository[1]}"
        directory, revision = hubs.fetch_hugging_face(*repository.groups())
    elif "://" not in preset and os.path.isdir(preset):
        return Source(preset, None, Path(preset), None)
    else:
        raise PresetError(
            f"Unknown preset {shown(preset)}.{guess(preset)} Expected one of {', '.join(PRESETS)}; "
            "kaggle://org/model/keras/variant or kaggle://org/model/keras/variant/version; "
            "hf://org/model or hf://org/model@revision; or the path of a directory with a Keras "
            "preset or a Hugging Face checkpoint."
        )
    generations = (each.generation for each in PRESETS.values() if name in each.aliases)
    return Source(name, revision, directory, next(generations, None))


def guess(preset: str) -> str:
    """Return the question which preset was meant by an unknown one, "" if none is near."""
    if REPOSITORY.fullmatch(preset):
        return f" Did you mean hf://{preset}?"
    return did_you_mean(preset[:MOST_CHARACTERS], PRESETS)


def read(directory: Path, *, weights: bool = True, tokenizer: bool = True) -> Checkpoint:
    """Read a Keras preset or a Hugging Face directory.

    Names and shapes of all weights are held to the configuration before this returns; only
    headers are read for it. With `weights=False` no weight file is opened: `weights` and
    `weight_files` are empty and `config.final_logits_bias` is what config.json says. With
    `tokenizer=False` the directory needs no tokenizer, `vocabulary` and `merges` are empty, and
    the model keeps embedding rows that no token has; otherwise they are left out.

    Raises:
        PresetError: when the directory holds no model, or one that is not a BART.
        CheckpointError: when a file is missing, damaged or does not fit the others.
        TokenizerError: when the tokenizer files are missing or do not fit the model.
        MissingExtra: when a package that reads the weight files is not installed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise PresetError(f"Expected a checkpoint directory, received {directory}, which is none.")
    for name in set(hubs.SMALL_FILES) - {files.CARD, *files.LICENCE_FILES}:
        if (directory / name).exists():
            files.require_file(directory / name, most=files.LARGEST_TEXT)
    hubs.refuse_adapter(str(directory), directory)
    path = directory / files.CONFIG_FILE
    if path.is_file():
        stored = files.read_json(path)
        for key, reader in READERS:
            if key in stored:
                checkpoint = reader(directory, stored, weights, tokenizer)
                return without_padding(checkpoint)
        raise PresetError(
            f"{path} has neither registered_name, as Keras presets do, nor model_type, as Hugging "
            "Face checkpoints do, so it is not known which model it describes."
        )
    raise PresetError(
        f"{directory} {other_content(directory)} A checkpoint is a Keras preset (config.json, "
        "model.weights.h5, assets/tokenizer) or a Hugging Face directory (config.json, "
        "model.safetensors, vocab.json, merges.txt)."
    )


def other_content(directory: Path) -> str:
    """Return what a directory without `config.json` is."""
    if is_artifact(directory):
        preset = Artifact.open(directory).manifest.preset
        return f"is an artifact, not a checkpoint. It was made of {preset}."
    return f"holds no {files.CONFIG_FILE}."


def without_weights(source: Source, checkpoint: Checkpoint) -> Checkpoint:
    """Return what a checkpoint says beside its weights, read from its directory.

    Settings that it does not state are those the registry knows. A tokenizer that is not there,
    cannot be read or does not fit is left out: a model can be trained without.
    """
    try:
        checkpoint = read(source.directory, weights=False)
    except (TokenizerError, CheckpointError):
        checkpoint = dataclasses.replace(checkpoint, weights={}, weight_files=())
    if checkpoint.settings is None and source.generation is not None:
        checkpoint = dataclasses.replace(checkpoint, settings=registered(source))
    return checkpoint


def defaults(source: Source, checkpoint: Checkpoint, task: str | None = None) -> Defaults:
    """Return the generation settings of a checkpoint.

    Args:
        source: where the checkpoint is from.
        checkpoint: what it says.
        task: a key of its `task_specific_params`, whose settings go on top.

    Raises:
        ConfigurationError: for a task that it has no settings for.
        CheckpointError: for settings of the task that cannot be followed.
    """
    config = checkpoint.config
    stated = checkpoint.settings or registered(source)
    if task is not None:
        stated = generation_settings.for_task(checkpoint.directory, stated, task)
    generation, positions = stated.generation, config.max_sequence_length
    notes = [settings_line(generation, stated.origins), *stated.notes]
    if generation.max_length > positions:
        notes.append(
            f"max_length={generation.max_length} of {stated.origins.get('max_length', 'nobody')} "
            f"is beyond the model's {positions} positions; it is {positions}."
        )
        generation = generation.replace(max_length=positions)
    notes += unfollowed(stated, task)
    if checkpoint.settings is None and source.generation is None:
        notes.append(
            f"The preset has no {files.GENERATION_FILE}, which KerasHub does not write. Put one "
            f"beside its {files.CONFIG_FILE}, or save the model with bart_export's "
            "BartBackbone.save_to_preset, which keeps the settings of the preset that the model "
            "came from."
        )
    stated_in = checkpoint.directory / stated.tasks_file
    generation_settings.require_ids(stated_in, generation, config.vocabulary_size)
    return Defaults(generation, (*notes, *checkpoint.notes))


def registered(source: Source | Preset) -> StatedSettings:
    """Return what the registry knows of a preset whose files say nothing."""
    generation = source.generation or GenerationConfig()
    plain = GenerationConfig().to_dict()
    stated = [name for name, value in generation.to_dict().items() if value != plain[name]]
    return StatedSettings(generation, dict.fromkeys(stated, REGISTRY))


def settings_line(generation: GenerationConfig, origins: Mapping[str, str]) -> str:
    """Return the line that says whose the settings are; ids are the tokenizer's own."""
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
        parts.append(f"nobody states {', '.join(unstated)}, transformers' defaults")
    return f"Settings: {'; '.join(parts)}."


def known_settings(preset: Preset) -> str:
    """Return the line about the settings of a preset that was not fetched."""
    stated = registered(preset)
    return settings_line(stated.generation, stated.origins)


def unfollowed(stated: StatedSettings, task: str | None) -> Iterator[str]:
    """Yield lines about what `config.json` says and the artifact does not do."""
    if stated.tasks and task is None:
        others = list(stated.tasks)
        yield (
            f"{stated.tasks_file} has settings of its own for {', '.join(others)}, which were not "
            f"taken: --task {others[0]} takes them."
        )
    if stated.prefix:
        yield (
            f"{stated.tasks_file} has the prefix {shown(stated.prefix)}, which transformers' "
            "pipelines put before a text and its generate() does not; nor does the artifact. For "
            f"what a pipeline writes begin each text with {shown(stated.prefix)}."
        )
