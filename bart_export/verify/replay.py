"""Replay: an artifact's files are asked again what golden.json says they answered.

Needs neither TensorFlow nor the checkpoint: an artifact that was copied to a phone or a board can
be checked there. In goes an artifact; a row of counts per file comes out.
"""

import dataclasses
from collections.abc import Callable, Sequence

from bart_export.artifact.artifact import GOLDEN, Artifact
from bart_export.artifact.figures import FileVerification, GoldenCase
from bart_export.errors import ArtifactError, VerificationFailed
from bart_export.recipes.table import ROUNDING
from bart_export.runtime.generator import Generator
from bart_export.verify.golden import Question, ask, ask_again

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
        VerificationFailed: for a file that answers otherwise than it did: where its recipe keeps
            float32 weights in any answer that more than rounding decides, where weights are
            rounded in more than half of its answers.
    """
    for name in artifact.manifest.files:
        artifact.path(name, rehash=True)
    cases = artifact.golden().cases
    return [replay_file(artifact, name, cases, open_file) for name in artifact.manifest.tflite()]


def replay_file(
    artifact: Artifact,
    name: str,
    cases: Sequence[GoldenCase],
    open_file: Callable[[str], Generator],
) -> Replayed:
    """Ask one file its questions again."""
    generator = open_file(name)
    engine, tokenizer = generator.engine, generator.tokenizer
    noise = noise_of(artifact, name)
    equal = asked = 0
    for case in cases:
        if name not in case.files:
            continue  # a question for another target
        question = Question(case.text, case.source_token_ids, case.setting, case.generation)
        answer = ask(engine.start, engine.step, tokenizer, question)
        asked += 1
        wanted = case.files[name].token_ids
        equal += answer.token_ids == wanted or (
            noise > 0 and ask_again(engine.start, engine.step, tokenizer, question, wanted, noise)
        )
    if not asked:
        raise ArtifactError(
            f"{artifact.directory / GOLDEN} lacks answers of {name}. Export the artifact again."
        )
    if equal < asked * (1.0 if is_exact(artifact, name) else ROUNDED_SHARE):
        raise VerificationFailed(
            f"{artifact.directory / name} gave {equal} of its {asked} recorded answers again; "
            "it is damaged, or this machine's runtime computes it wrongly."
        )
    return Replayed(name, equal, asked)


def is_exact(artifact: Artifact, name: str) -> bool:
    """Return whether a file is to say, token for token, what the float model says."""
    return artifact.manifest.tflite()[name].tolerance.get("tokens") == 1.0


def noise_of(artifact: Artifact, name: str) -> float:
    """Return how far another processor may move a logit of an exact file, 0 of any other."""
    if not is_exact(artifact, name):
        return 0.0
    rows = artifact.manifest.verification
    costs = (row.float32 for row in rows if isinstance(row, FileVerification) and row.file == name)
    return ROUNDING * max((cost or 0.0 for cost in costs), default=0.0)
