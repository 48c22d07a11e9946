"""A checkpoint as this package sees it, whatever wrote it: one frozen record that readers fill."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from bart_export.checkpoints.generation import StatedSettings, require_ids
from bart_export.checkpoints.weight_names import FINAL_LOGITS_BIAS, TOKEN_EMBEDDING
from bart_export.checkpoints.weights import Array, LazyWeights
from bart_export.config import BartConfig, GenerationConfig
from bart_export.errors import CheckpointError
from bart_export.text.added_tokens import AddedToken
from bart_export.text.tokenizer import BartTokenizer


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A whole BART on disk.

    `format` is "keras" or "hugging_face". `settings` is what the checkpoint itself says about
    generation, None when it says nothing. `encoder_sequence_length` is the number of source tokens
    it was prepared for, never above `config.max_sequence_length`, `decoder_sequence_length` that of
    target tokens in training, None where it does not say. `dtype` is the dtype policy a
    Keras preset was saved with, None when it says none. `weights` maps canonical names to arrays of
    exactly the shapes of `weight_names.weights`, in the stored dtype; each lookup reads the file.
    `vocabulary` maps byte-level BPE tokens and added tokens to ids, `merges` are the pairs to
    merge, the first to merge first. `rows_without_token` counts embedding rows beyond the
    tokenizer's tokens that were left out. `notes` are lines about what was not taken as it is
    stored.
    """

    directory: Path
    format: str
    config: BartConfig
    settings: StatedSettings | None
    encoder_sequence_length: int
    dtype: str | None
    weights: Mapping[str, Array]
    weight_files: tuple[Path, ...]
    vocabulary: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    added_tokens: tuple[AddedToken, ...] = ()
    add_prefix_space: bool = False
    decoder_sequence_length: int | None = None
    rows_without_token: int = 0
    notes: tuple[str, ...] = ()

    @property
    def generation(self) -> GenerationConfig | None:
        """The generation settings that the checkpoint itself states, None where it states none."""
        return None if self.settings is None else self.settings.generation

    def tokenizer(self) -> BartTokenizer:
        """Return the tokenizer that the files describe."""
        return BartTokenizer(
            dict(self.vocabulary),
            list(self.merges),
            self.added_tokens,
            add_prefix_space=self.add_prefix_space,
        )


def without_padding(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose vocabulary ends with its tokenizer's.

    `resize_token_embeddings(pad_to_multiple_of=…)` adds rows that no token has. The model may well
    give them the highest score, and there is no text for it.

    Raises:
        CheckpointError: when such a row is a special token of the settings.
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
        f"last {surplus} are left out, so that none of them can be generated."
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
    """Return the SHA-256 of the weight files' bytes, in the order of their names, as hex digits.

    Raises:
        CheckpointError: when a file cannot be read, or the checkpoint was read without weights.
    """
    if not checkpoint.weight_files:
        raise CheckpointError(
            f"The checkpoint {checkpoint.directory} was read without weights and has no digest."
        )
    digest = hashlib.sha256()
    for path in checkpoint.weight_files:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    return digest.hexdigest()
