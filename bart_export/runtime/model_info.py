"""What everything that is made of a model has in common."""

import dataclasses

from bart_export.artifact.artifact import Artifact
from bart_export.config import BartConfig, GenerationConfig
from bart_export.text.tokenizer import BartTokenizer


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A model's architecture, tokenizer and settings.

    `encoder_sequence_length` is how many source tokens it was prepared for, both ends included.
    """

    config: BartConfig
    tokenizer: BartTokenizer
    generation: GenerationConfig
    encoder_sequence_length: int

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "ModelInfo":
        """Return what an artifact says of its model.

        Raises:
            ArtifactError, TokenizerError: as `BartTokenizer.from_artifact` does.
        """
        return cls(
            artifact.config,
            BartTokenizer.from_artifact(artifact),
            artifact.generation,
            artifact.manifest.encoder_sequence_length,
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text, cut to what the model was prepared for."""
        return tuple(self.tokenizer.encode(text, self.encoder_sequence_length, truncate=True))
