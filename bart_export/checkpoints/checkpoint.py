"""`Checkpoint`: the contents of a checkpoint in either format, as one frozen record."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from bart_export.checkpoints.generation import StatedSettings, require_ids
from bart_export.checkpoints.tokenizer_files import TokenizerTables
from bart_export.checkpoints.weight_names import FINAL_LOGITS_BIAS, TOKEN_EMBEDDING
from bart_export.checkpoints.weights import Array, LazyWeights
from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import CheckpointError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint(TokenizerTables):
    """A complete BART model on disk.

    `weights` maps canonical names to arrays with the shapes in `weight_names.weights` and the
    stored dtypes; each lookup reads the file.
    """

    directory: Path
    format: str  # "keras" or "hugging_face"
    config: BartConfig
    settings: StatedSettings | None  # None if the checkpoint has no generation settings
    encoder_sequence_length: int  # at most `config.max_sequence_length`
    dtype: str | None  # the dtype policy of a Keras preset
    weights: Mapping[str, Array]
    weight_files: tuple[Path, ...]
    decoder_sequence_length: int | None = None  # in training, if known
    rows_without_token: int = 0  # embedding rows beyond the vocabulary, which were dropped
    notes: tuple[str, ...] = ()  # lines about stored values that were changed or ignored

    @property
    def generation(self) -> GenerationConfig | None:
        """The checkpoint's own generation settings, or None if it has none."""
        return None if self.settings is None else self.settings.generation


def without_padding(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint without the embedding rows beyond its tokenizer's vocabulary.

    `resize_token_embeddings(pad_to_multiple_of=…)` adds rows without a token. The model could
    generate their ids, which have no text.

    Raises:
        CheckpointError: if a special token in the settings is one of these rows.
    """
    rows = max(checkpoint.vocabulary.values(), default=-1) + 1
    config = checkpoint.config
    surplus = config.vocabulary_size - rows
    if not rows or surplus <= 0:
        return checkpoint
    if checkpoint.generation is not None:
        require_ids(checkpoint.directory, checkpoint.generation, rows)
    note = (
        f"The embedding has {config.vocabulary_size} rows for the tokenizer's {rows} tokens; the "
        f"last {surplus} are left out, so that they cannot be generated."
    )

    def first_rows(name: str) -> Array:
        values = checkpoint.weights[name]
        return values[:rows] if name in (TOKEN_EMBEDDING, FINAL_LOGITS_BIAS) else values

    return dataclasses.replace(
        checkpoint,
        config=dataclasses.replace(config, vocabulary_size=rows),
        weights=LazyWeights(checkpoint.weights, first_rows),
        rows_without_token=surplus,
        notes=(*checkpoint.notes, note),
    )


def weights_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of the weight files in order of their names, or raise CheckpointError."""
    digest = hashlib.sha256()
    for path in checkpoint.weight_files:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    return digest.hexdigest()
