"""`generation_config.json` and its older home, `config.json`, as a `GenerationConfig`.

Flows in: the parsed JSON of a checkpoint. Flows out: the settings this package implements. A
setting that is switched on and would change the output, but is not implemented here, is refused;
everything else in those files is bookkeeping and is passed over.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bart_export.config import GenerationConfig
from bart_export.errors import CheckpointError, ConfigurationError

SETTINGS = tuple(
    field.name for field in dataclasses.fields(GenerationConfig) if field.name != "seed"
)
TOKEN_IDS = tuple(name for name in SETTINGS if name.endswith("_token_id"))

# transformers' own defaults of a BART's configuration, which its files leave out.
BART_DEFAULTS: dict[str, int] = {
    "decoder_start_token_id": 2,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": 2,
}

# These count without the start token: one more is the length that counts it.
NEW_TOKENS = (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length"))

# Settings not implemented here, with the values that leave the output alone.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "constraints": (None, []),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None, []),
    "forced_decoder_ids": (None, []),
    "guidance_scale": (None, 1.0),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0.0),
    "renormalize_logits": (None, False),
    "sequence_bias": (None, {}, []),
    "stop_strings": (None, []),
    "suppress_tokens": (None, []),
    "watermarking_config": (None,),
}
UNSUPPORTED_SAMPLING: dict[str, tuple[Any, ...]] = {
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "min_p": (None, 0.0),
    "top_h": (None,),
    "typical_p": (None, 1.0),
}


def parse(path: Path, stored: Mapping[str, Any], defaults: Mapping[str, Any]) -> GenerationConfig:
    """Return the generation settings in `stored`, the parsed file `path`.

    `defaults` hold the values of settings that `stored` does not mention; further ones are
    `GenerationConfig`'s, so that a file without max_length means 20 as in transformers.

    Raises:
        CheckpointError: for values out of range and for settings that are switched on but not
            implemented.
    """
    refused = UNSUPPORTED | (UNSUPPORTED_SAMPLING if stored.get("do_sample") else {})
    active = [
        f"{name}={stored[name]!r}"
        for name, inactive in refused.items()
        if name in stored and stored[name] not in inactive
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
    if isinstance(settings.get("eos_token_id"), list):
        raise CheckpointError(
            f"{path} asks for several end tokens, eos_token_id={settings['eos_token_id']!r}; "
            "exactly one is supported."
        )
    for without_start, name in NEW_TOKENS:
        length = stored.get(without_start)
        if length is not None and type(length) is not int:
            raise CheckpointError(
                f"{path} must give {without_start} as an integer, not {length!r}."
            )
        if length is not None:
            settings[name] = length + 1
    forced = {name for name in settings if name.startswith("forced_")}
    stated = {
        name: value for name, value in settings.items() if value is not None or name in forced
    }
    try:
        return GenerationConfig.from_dict({**defaults, **stated})
    except ConfigurationError as error:
        raise CheckpointError(f"{path} cannot be followed: {error}") from error


def parse_model_config(path: Path, stored: Mapping[str, Any]) -> GenerationConfig:
    """Return the settings that older checkpoints keep in `config.json` itself.

    Raises:
        CheckpointError: as `parse`.
    """
    settings = dict(stored)
    if stored.get("force_bos_token_to_be_generated") and stored.get("forced_bos_token_id") is None:
        settings["forced_bos_token_id"] = stored.get("bos_token_id", BART_DEFAULTS["bos_token_id"])
    return parse(path, settings, BART_DEFAULTS)


def special_ids(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the token ids that a model's `config.json` states, for settings that state none."""
    return {
        name: stored[name]
        for name in TOKEN_IDS
        if isinstance(stored.get(name), int) and not name.startswith("forced_")
    }


def check_ids(path: Path, generation: GenerationConfig, vocabulary_size: int) -> None:
    """Check that every special token is one the model knows.

    Raises:
        CheckpointError: naming the first id that is not below `vocabulary_size`.
    """
    for name in TOKEN_IDS:
        number = getattr(generation, name)
        if number is not None and number >= vocabulary_size:
            raise CheckpointError(
                f"{path} gives {name}={number}, expected an id below the model's "
                f"vocabulary_size={vocabulary_size}."
            )
