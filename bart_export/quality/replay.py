"""Replay: an artifact's files are asked again what golden.json says they answered.

Needs neither TensorFlow nor the checkpoint: an artifact that was copied to a phone or a board can
be checked there. In goes an artifact; a row of counts per file comes out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from bart_export.artifact import GOLDEN, Artifact
from bart_export.config import GenerationConfig
from bart_export.errors import ArtifactError, VerificationFailed
from bart_export.quality.golden import Question, ask
from bart_export.runtime.generator import Generator

# Rounded weights leave near-ties that another processor may decide otherwise.
ROUNDED_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Replayed:
    """How many of a file's recorded answers it gave again, token for token."""

    file: str
    equal: int
    asked: int


def replay(artifact: Artifact, open_file: Callable[[str], Generator]) -> list[Replayed]:
    """Check every hash of an artifact, then ask its `.tflite` files their golden questions again.

    Args:
        artifact: what to check.
        open_file: opens a file of the artifact by its name.

    Raises:
        ArtifactError: for a file that is missing or altered.
        VerificationFailed: for a file that answers otherwise than it did: at all where its recipe
            keeps float32 weights, in more than half of its answers where weights are rounded.
    """
    for name in artifact.manifest["files"]:
        artifact.path(name, rehash=True)
    cases = artifact.golden()["cases"]
    return [replay_file(artifact, name, cases, open_file) for name in artifact.files("tflite")]


def replay_file(
    artifact: Artifact,
    name: str,
    cases: list[dict[str, Any]],
    open_file: Callable[[str], Generator],
) -> Replayed:
    """Ask one file its questions again."""
    generator = open_file(name)
    equal = asked = 0
    for case in cases:
        if name not in case["files"]:
            continue  # a question for another target
        question = Question(
            case["text"],
            tuple(case["source_token_ids"]),
            case["setting"],
            GenerationConfig.from_dict(case["generation"]),
        )
        engine = generator.engine
        answer = ask(engine.start, engine.step, generator.tokenizer, question)
        asked += 1
        equal += list(answer.token_ids) == case["files"][name]["token_ids"]
    if not asked:
        raise ArtifactError(
            f"{artifact.directory / GOLDEN} lacks answers of {name}. Export the artifact again."
        )
    exact = artifact.manifest["files"][name]["tolerance"].get("tokens") == 1.0
    if equal < asked * (1.0 if exact else ROUNDED_SHARE):
        raise VerificationFailed(
            f"{artifact.directory / name} gave {equal} of its {asked} recorded answers again; "
            "it is damaged, or this machine's runtime computes it wrongly."
        )
    return Replayed(name, equal, asked)
