"""`generation_config.json` and its older home, `config.json`, as a `GenerationConfig`.

A setting that is switched on and would change the output, but is not implemented, is refused; all
else in those files is bookkeeping. Which file states a setting goes with it, so that an export can
say whose its settings are.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from bart_export.checkpoints.files import CONFIG_FILE, JsonObject
from bart_export.config import NEW_TOKENS, GenerationConfig, check_token_ids
from bart_export.errors import CheckpointError, ConfigurationError, shown

SETTINGS = tuple(
    field.name for field in dataclasses.fields(GenerationConfig) if field.name != "seed"
)
TOKEN_IDS = tuple(name for name in SETTINGS if name.endswith("_token_id"))

# transformers' own defaults of a BART's configuration, which its files leave out.
BART_DEFAULTS = {
    "decoder_start_token_id": 2,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": 2,
}

# Settings that are not implemented, with the values beside null that leave the output alone.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_decoder_ids": ([],),
    "guidance_scale": (1.0,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "renormalize_logits": (False,),
    "sequence_bias": ({}, []),
    "stop_strings": ([],),
    "suppress_tokens": ([],),
    "watermarking_config": (),
}
UNSUPPORTED_SAMPLING: dict[str, tuple[object, ...]] = {
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "min_p": (0.0,),
    "top_h": (),
    "typical_p": (1.0,),
}


@dataclasses.dataclass(frozen=True)
class StatedSettings:
    """The generation settings of a checkpoint, and who states them."""

    generation: GenerationConfig  # all of them, those that nobody states at their defaults
    origins: Mapping[str, str]  # setting -> the file that states it, for those that one does
    # Task -> settings that are for it alone (`task_specific_params`).
    tasks: Mapping[str, JsonObject] = dataclasses.field(default_factory=dict)
    prefix: str = ""  # what transformers' pipelines put before a source text
    tasks_file: str = CONFIG_FILE  # the name of the file that has these two
    notes: tuple[str, ...] = ()  # lines about what could not be followed to the letter


def parse(
    path: Path, stored: JsonObject, defaults: Mapping[str, object], origin: str | None = None
) -> StatedSettings:
    """Return the generation settings in `stored`, the parsed file `path`.

    `defaults` hold the values of settings that `stored` does not mention; further ones are
    `GenerationConfig`'s, so that a file without max_length means 20 as in transformers. `origin` is
    who states them, in words; None names the file.

    Raises:
        CheckpointError: for values out of range and for settings that are switched on but not
            implemented.
    """
    refused = UNSUPPORTED | (UNSUPPORTED_SAMPLING if stored.get("do_sample") else {})
    active = [
        f"{name}={shown(stored[name])}"
        for name, inactive in refused.items()
        if stored.get(name) is not None and stored[name] not in inactive
    ]
    if active:
        raise CheckpointError(
            f"{path} asks for {', '.join(active)}, which this package does not implement. Remove "
            "the setting to generate without it."
        )
    settings = {name: stored[name] for name in SETTINGS if name in stored}
    for name in TOKEN_IDS:
        ids = settings.get(name)
        if isinstance(ids, list) and len(ids) == 1:
            settings[name] = ids[0]
    for without_start, name in NEW_TOKENS.items():
        length = stored.get(without_start)
        if length is not None and type(length) is not int:
            raise CheckpointError(
                f"{path} must give {without_start} as an integer, received {shown(length)}."
            )
        if length is not None:
            settings[name] = length + 1
    stated = {
        name: value
        for name, value in settings.items()
        if value is not None or name.startswith("forced_")
    }
    values = {**GenerationConfig().to_dict(), **defaults, **stated}
    notes: tuple[str, ...] = ()
    lowest, most = values["min_length"], values["max_length"]
    if isinstance(lowest, int) and isinstance(most, int) and 1 < most < lowest:
        values["min_length"] = most
        notes = (
            f"min_length={lowest} is above max_length={most}; it is {most}, which generates the "
            "same.",
        )
    try:
        generation = GenerationConfig.from_dict(values)
    except ConfigurationError as error:
        raise CheckpointError(f"{path} cannot be followed: {error}") from error
    return StatedSettings(generation, dict.fromkeys(stated, origin or path.name), notes=notes)


def parse_model_config(path: Path, stored: JsonObject) -> StatedSettings:
    """Return the settings that older checkpoints keep in `config.json`; raises as `parse`."""
    settings = dict(stored)
    if stored.get("force_bos_token_to_be_generated") and stored.get("forced_bos_token_id") is None:
        settings["forced_bos_token_id"] = stored.get("bos_token_id", BART_DEFAULTS["bos_token_id"])
    return parse(path, settings, BART_DEFAULTS)


def with_tasks(path: Path, settings: StatedSettings, stored: JsonObject) -> StatedSettings:
    """Return settings with what the file `path`, parsed, has for tasks and as a prefix."""
    tasks, prefix = stored.get("task_specific_params"), stored.get("prefix")
    own = tasks.items() if isinstance(tasks, dict) else ()
    return dataclasses.replace(
        settings,
        tasks={name: values for name, values in own if isinstance(values, dict)},
        prefix=prefix if isinstance(prefix, str) else "",
        tasks_file=path.name,
    )


def for_task(directory: Path, settings: StatedSettings, task: str) -> StatedSettings:
    """Return settings of a checkpoint with those on top that it has for a task.

    Raises:
        ConfigurationError: for a task that it has none for.
        CheckpointError: as `parse`.
    """
    path = directory / settings.tasks_file
    if task not in settings.tasks:
        known = ", ".join(settings.tasks) or "none"
        raise ConfigurationError(
            f"--task must be one that {path} has task_specific_params for, received "
            f"{shown(task)}. It has: {known}."
        )
    values = settings.tasks[task]
    own = parse(path, values, settings.generation.to_dict(), f"{path.name} for {task}")
    prefix = values.get("prefix")
    return dataclasses.replace(
        settings,
        generation=own.generation,
        origins={**settings.origins, **own.origins},
        prefix=prefix if isinstance(prefix, str) else settings.prefix,
        notes=settings.notes + own.notes,
    )


def special_ids(stored: JsonObject) -> dict[str, object]:
    """Return the token ids that a model's `config.json` states, for settings that state none."""
    return {
        name: stored[name]
        for name in TOKEN_IDS
        if isinstance(stored.get(name), (int, list)) and not name.startswith("forced_")
    }


def require_ids(path: Path, generation: GenerationConfig, vocabulary_size: int) -> None:
    """Raise CheckpointError for a special token whose id is not below `vocabulary_size`."""
    try:
        check_token_ids(generation, vocabulary_size)
    except ConfigurationError as error:
        raise CheckpointError(f"{path} cannot be followed: {error}") from error
