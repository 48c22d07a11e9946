"""`Checkpoint`: the contents of a checkpoint in either format, as one frozen record."""

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
    """A complete BART on disk.

    Attributes:
        directory: where it is.
        format: "keras" or "hugging_face".
        config: the architecture.
        settings: the checkpoint's generation settings, or None if it has none.
        encoder_sequence_length: maximum source tokens, at most `config.max_sequence_length`.
        decoder_sequence_length: maximum target tokens in training, or None if unknown.
        dtype: the dtype policy of a Keras preset, or None if it has none.
        weights: canonical name → array with the shape in `weight_names.weights` and the stored
            dtype; each lookup reads the file.
        weight_files: the files of the weights.
        vocabulary: byte-level BPE tokens and added tokens → ids.
        merges: BPE merges in order of rank.
        added_tokens: tokens that are split off before BPE.
        add_prefix_space: whether a space is put before a text.
        rows_without_token: number of embedding rows without a token, which were dropped.
        notes: lines about stored values that were changed or ignored.
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
        """The checkpoint's own generation settings, or None if it has none."""
        return None if self.settings is None else self.settings.generation

    def tokenizer(self) -> BartTokenizer:
        """Return the checkpoint's tokenizer."""
        return BartTokenizer(
            dict(self.vocabulary),
            list(self.merges),
            self.added_tokens,
            add_prefix_space=self.add_prefix_space,
        )


def without_padding(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint without the embedding rows beyond its tokenizer's vocabulary.

    `resize_token_embeddings(pad_to_multiple_of=…)` adds rows without a token. The model could
    generate their ids, which have no text.

    Raises:
        CheckpointError: if a special token of the settings is such a row.
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
    """Return the hexadecimal SHA-256 of the weight files, concatenated in order of their names.

    Raises:
        CheckpointError: if a file cannot be read, or the checkpoint was read without weights.
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
