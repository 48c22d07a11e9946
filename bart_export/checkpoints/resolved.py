"""A preset that has been resolved: its checkpoint, and what an artifact of it generates with.

Of settings, what the checkpoint itself states wins over what the registry of presets knows; where
neither says anything, transformers' defaults hold. Nothing is left that nobody could ask: a length
beyond the model's positions is brought within them.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from bart_export.checkpoints import generation as generation_settings
from bart_export.checkpoints.checkpoint import Checkpoint
from bart_export.checkpoints.files import CONFIG_FILE, GENERATION_FILE
from bart_export.checkpoints.formats import read
from bart_export.checkpoints.generation import StatedSettings
from bart_export.checkpoints.origin import Source, resolve
from bart_export.config import SAMPLING, GenerationConfig
from bart_export.errors import CheckpointError, TokenizerError, shown
from bart_export.presets import Preset
from bart_export.progress import Stage

REGISTRY = "the preset's original checkpoint"
# What is said of settings that nobody states; the others are switched off.
NOBODYS = (
    "max_length",
    "min_length",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "no_repeat_ngram_size",
)
# What the line about settings leaves out: ids are the tokenizer's, a seed is a call's.
UNTOLD = tuple(
    field.name
    for field in dataclasses.fields(GenerationConfig)
    if field.name.endswith("_token_id") or field.name == "seed"
)


@dataclasses.dataclass(frozen=True)
class Defaults:
    """The settings of an artifact, and lines about them for whoever exports it or looks at it."""

    generation: GenerationConfig
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ResolvedPreset:
    """What was named, where it was found, what lies there, and what it generates with."""

    preset: str
    source: Source
    checkpoint: Checkpoint
    defaults: Defaults


def resolve_preset(
    preset: str, task: str | None = None, stage: Stage = lambda name: None
) -> ResolvedPreset:
    """Find and read a preset; of its weights only the headers.

    Args:
        preset: what `origin.resolve` takes.
        task: as `defaults`.
        stage: told the name of each stage as it begins.

    Raises:
        PresetError, CheckpointError, TokenizerError, MissingExtra: as `origin.resolve` and
            `checkpoints.read`.
        ConfigurationError: as `defaults`.
    """
    stage("resolve the preset")
    source = resolve(preset)
    stage("read the checkpoint")
    checkpoint = read(source.directory)
    return ResolvedPreset(preset, source, checkpoint, defaults(source, checkpoint, task))


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
    stated = checkpoint.settings or registered(source)
    if task is not None:
        stated = generation_settings.for_task(checkpoint.directory, stated, task)
        path = checkpoint.directory / stated.tasks_file
        generation_settings.check_ids(path, stated.generation, checkpoint.config.vocabulary_size)
    generation = stated.generation
    positions = checkpoint.config.max_sequence_length
    within = generation
    notes = [settings_line(generation, stated.origins), *stated.notes]
    if generation.max_length > positions:
        within = generation.replace(max_length=positions)
        notes.append(
            f"max_length={generation.max_length} of {stated.origins.get('max_length', 'nobody')} "
            f"is beyond the model's {positions} positions; it is {positions}."
        )
    notes += untaken(stated, task)
    if checkpoint.settings is None and source.generation is None:
        notes.append(
            f"The preset has no {GENERATION_FILE}, which KerasHub does not write. Put one beside "
            f"its {CONFIG_FILE}, or save the model with bart_export's BartBackbone.save_to_preset, "
            "which keeps the settings of the preset that the model came from."
        )
    return Defaults(within, tuple(notes + list(checkpoint.notes)))


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


def known_settings(preset: Preset) -> str:
    """Return the line about the settings of a preset that was not fetched."""
    stated = registered(preset)
    return settings_line(stated.generation, stated.origins)


def registered(source: Source | Preset) -> StatedSettings:
    """Return what the registry knows of a preset whose files say nothing."""
    generation = source.generation or GenerationConfig()
    plain = GenerationConfig().to_dict()
    stated = [name for name, value in generation.to_dict().items() if value != plain[name]]
    return StatedSettings(generation, dict.fromkeys(stated, REGISTRY))


def settings_line(generation: GenerationConfig, origins: Mapping[str, str]) -> str:
    """Return the line that says whose the settings are."""
    told = [name for name in generation.to_dict() if name not in UNTOLD]
    if not generation.do_sample:
        told = [name for name in told if name not in SAMPLING]
    owners: dict[str, list[str]] = {}
    nobodys = []
    for name in told:
        value = f"{name}={shown(getattr(generation, name))}"
        if name in origins:
            owners.setdefault(origins[name], []).append(value)
        elif name in NOBODYS:
            nobodys.append(value)
    parts = [f"{', '.join(named)} from {owner}" for owner, named in owners.items()]
    if nobodys:
        parts.append(f"nobody states {', '.join(nobodys)}, transformers' defaults")
    return f"Settings: {'; '.join(parts)}."


def untaken(stated: StatedSettings, task: str | None) -> Iterator[str]:
    """Yield lines about what `config.json` says and the artifact does not do."""
    others = [name for name in stated.tasks if name != task]
    if others and task is None:
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
