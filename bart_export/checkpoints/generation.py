"""Generation settings from `generation_config.json` or, in older checkpoints, `config.json`.

An active setting that is not implemented is an error, because ignoring it would change the output.
The source file of each setting is recorded for the export's report.
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

# transformers' defaults for BART, which its files omit.
BART_DEFAULTS = {
    "decoder_start_token_id": 2,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": 2,
}

# Settings that are not implemented, with the values other than null that have no effect.
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
    """A checkpoint's generation settings, and the files that they come from."""

    generation: GenerationConfig  # including defaults
    origins: Mapping[str, str]  # setting → the file that states it; defaults are not in it
    # Task → its own settings (`task_specific_params`).
    tasks: Mapping[str, JsonObject] = dataclasses.field(default_factory=dict)
    prefix: str = ""  # prepended to source texts by transformers' pipelines
    tasks_file: str = CONFIG_FILE  # name of the file with `tasks` and `prefix`
    notes: tuple[str, ...] = ()  # lines about values that were changed


def parse(
    path: Path, stored: JsonObject, defaults: Mapping[str, object], origin: str | None = None
) -> StatedSettings:
    """Return the generation settings in `stored`, the parsed content of `path`.

    Missing settings come from `defaults`, or else from `GenerationConfig`; a missing max_length
    means 20, as in transformers. `origin` describes where the settings come from; by default it is
    the file's name.

    Raises:
        CheckpointError: for values out of range, and for active settings that are not implemented.
    """
    refused = UNSUPPORTED | (UNSUPPORTED_SAMPLING if stored.get("do_sample") else {})
    active = [
        f"{name}={shown(stored[name])}"
        for name, inactive in refused.items()
        if stored.get(name) is not None and stored[name] not in inactive
    ]
    if active:
        raise CheckpointError(
            f"{path} has {', '.join(active)}, which is not implemented. Remove the setting to "
            "generate without it."
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
                f"{without_start} in {path} must be an integer, received {shown(length)}."
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
            f"min_length={lowest} is above max_length={most}; it is lowered to {most}, which "
            "generates the same texts.",
        )
    try:
        generation = GenerationConfig.from_dict(values)
    except ConfigurationError as error:
        raise CheckpointError(f"{path} has unusable settings: {error}") from error
    return StatedSettings(generation, dict.fromkeys(stated, origin or path.name), notes=notes)


def parse_model_config(path: Path, stored: JsonObject) -> StatedSettings:
    """Return the generation settings in an older checkpoint's `config.json`; see `parse`."""
    settings = dict(stored)
    if stored.get("force_bos_token_to_be_generated") and stored.get("forced_bos_token_id") is None:
        settings["forced_bos_token_id"] = stored.get("bos_token_id", BART_DEFAULTS["bos_token_id"])
    return parse(path, settings, BART_DEFAULTS)


def with_tasks(path: Path, settings: StatedSettings, stored: JsonObject) -> StatedSettings:
    """Return settings with the tasks and the prefix in `stored`, the parsed content of `path`."""
    tasks, prefix = stored.get("task_specific_params"), stored.get("prefix")
    stored_tasks = tasks.items() if isinstance(tasks, dict) else ()
    return dataclasses.replace(
        settings,
        tasks={name: values for name, values in stored_tasks if isinstance(values, dict)},
        prefix=prefix if isinstance(prefix, str) else "",
        tasks_file=path.name,
    )


def for_task(directory: Path, settings: StatedSettings, task: str) -> StatedSettings:
    """Return a checkpoint's settings, overridden by its settings for a task.

    Raises:
        ConfigurationError: if it has no such task.
        CheckpointError: see `parse`.
    """
    path = directory / settings.tasks_file
    if task not in settings.tasks:
        known = ", ".join(settings.tasks) or "none"
        raise ConfigurationError(
            f"--task must be one of the task_specific_params in {path}, received {shown(task)}. "
            f"It has: {known}."
        )
    values = settings.tasks[task]
    task_settings = parse(path, values, settings.generation.to_dict(), f"{path.name} for {task}")
    prefix = values.get("prefix")
    return dataclasses.replace(
        settings,
        generation=task_settings.generation,
        origins={**settings.origins, **task_settings.origins},
        prefix=prefix if isinstance(prefix, str) else settings.prefix,
        notes=settings.notes + task_settings.notes,
    )


def special_ids(stored: JsonObject) -> dict[str, object]:
    """Return the token ids in a `config.json`, which are defaults for `generation_config.json`."""
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
        raise CheckpointError(f"{path} has unusable settings: {error}") from error
