"""Whether a server answers what was recorded when its model was exported: for `--check`.

An artifact's golden.json and a way to ask come in; the number of different answers comes out. How
a server is asked is not known here.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

# (source token ids, settings by name) -> generated token ids
Ask = Callable[[list[int], dict[str, Any]], list[int]]

# What a request sets for each text; the rest of a case's settings was fixed at export.
SETTINGS = ("max_length", "min_length", "length_penalty", "repetition_penalty", "early_stopping")


def check(artifact: pathlib.Path, version: str, ask: Ask) -> int:
    """Ask every question that a served version was asked at its export, and say what came back.

    Args:
        artifact: the directory that was exported.
        version: the one that answers. A SavedModel's answers are recorded under its version; where
            there are none, the server is taken to run a .tflite file.
        ask: how to ask the server.

    Returns:
        how many answers differ.

    Raises:
        ValueError: for a directory that records nothing of what is served.
    """
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    cases = json.loads((artifact / "golden.json").read_text(encoding="utf-8"))["cases"]
    file = f"saved_model/{version}"
    if not any(file in case["files"] for case in cases):
        served = fixed(manifest["generation"])
        cases = [case for case in cases if fixed(case["generation"]) == served]
        recorded = [name for case in cases for name in case["files"] if name.endswith(".tflite")]
        file = next(iter(recorded), file)
    asked = [case for case in cases if file in case["files"]]
    if not asked:
        raise ValueError(f"{artifact} records no answers of {file}, which the server serves.")
    differ = 0
    for case in asked:
        answer = ask(case["source_token_ids"], settings(case["generation"]))
        if answer != case["files"][file]["token_ids"]:
            differ += 1
            print(f"Another answer with the setting {case['setting']!r}: {case['text'][:50]}...")
    print(f"{len(asked) - differ} of {len(asked)} answers are those recorded for {file}.")
    return differ


def fixed(generation: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that no request can change and that an answer depends on."""
    names = ("num_beams", "no_repeat_ngram_size")
    return {
        name: value
        for name, value in generation.items()
        if name in names or name.endswith("_token_id")
    }


def settings(generation: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a request; `early_stopping` is one of three words there."""
    chosen = {name: generation[name] for name in SETTINGS}
    return chosen | {"early_stopping": str(chosen["early_stopping"]).lower()}
