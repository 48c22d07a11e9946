"""Compare a server's answers with those recorded at the export, for the clients' `--check`."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

# (source token ids, settings by name) -> generated token ids
Ask = Callable[[list[int], dict[str, Any]], list[int]]

# Settings of a request; all others were fixed at the export.
SETTINGS = ("max_length", "min_length", "length_penalty", "repetition_penalty", "early_stopping")


def check(artifact: pathlib.Path, version: str, ask: Ask) -> int:
    """Send the golden questions of a version to the server and print the differences.

    Args:
        artifact: an exported directory.
        version: the version that answers. If there are no answers of a SavedModel of this version,
            the server is assumed to run a .tflite file.
        ask: sends a question to the server.

    Returns:
        The number of different answers.

    Raises:
        ValueError: if the artifact has no answers of the file that is served.
    """
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    cases = json.loads((artifact / "golden.json").read_text(encoding="utf-8"))["cases"]
    file = f"saved_model/{version}"
    if not any(file in case["files"] for case in cases):
        served = fixed(manifest["generation"])
        cases = [case for case in cases if fixed(case["generation"]) == served]
        recorded = [name for case in cases for name in case["files"] if name.endswith(".tflite")]
        file = next(iter(recorded), file)
    cases = [case for case in cases if file in case["files"]]
    if not cases:
        raise ValueError(f"{artifact} has no recorded answers of {file}, which the server runs.")
    differ = 0
    for case in cases:
        answer = ask(case["source_token_ids"], settings(case["generation"]))
        if answer != case["files"][file]["token_ids"]:
            differ += 1
            print(f"Different answer for setting {case['setting']!r}: {case['text'][:50]}...")
    print(f"{len(cases) - differ} of {len(cases)} answers equal those recorded for {file}.")
    return differ


def fixed(generation: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that affect an answer and that no request can change."""
    names = ("num_beams", "no_repeat_ngram_size")
    return {
        name: value
        for name, value in generation.items()
        if name in names or name.endswith("_token_id")
    }


def settings(generation: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a request, with `early_stopping` as a word."""
    chosen = {name: generation[name] for name in SETTINGS}
    return chosen | {"early_stopping": str(chosen["early_stopping"]).lower()}
