"""Presets: the checkpoints that have names of their own. How one is fetched is in `checkpoints`."""

import dataclasses
from pathlib import Path
from typing import Any

from bart_export.config import GenerationConfig

ASSETS = Path(__file__).parent / "assets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A known preset.

    `handle` is where it comes from; an embedded preset's is its own name, and `directory` its place
    in this package. `aliases` are other hub handles of the same weights, without version.
    `parameters` counts trained values, the tied embedding once. `generation` are the settings the
    original checkpoint shipped with, where the preset's own files do not hold them.
    """

    name: str
    handle: str
    aliases: tuple[str, ...]
    parameters: int
    description: str
    generation: GenerationConfig | None
    directory: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the preset as KerasHub's `Backbone.presets` has it; an embedded one has no handle.

        `metadata` has a `description`, the number of parameters as `params`, and the family of
        models as `path`.
        """
        return {
            "metadata": {
                "description": self.description,
                "params": self.parameters,
                "path": "bart",
            },
            "kaggle_handle": self.handle if self.directory is None else None,
        }


# Generation settings are those of the original checkpoints at huggingface.co/facebook, which Keras
# presets leave out. The stored metadata of bart_large_en_cnn counts one row of the embedding too
# many; the count here is that of its weights.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="bart_mini_en",
            handle="bart_mini_en",
            aliases=(),
            parameters=7_889_920,
            description="3 layers, 512 positions, embedded in this package. Writes a headline for "
            "an English description of a piece of software.",
            generation=None,
            directory=ASSETS / "bart_mini_en",
        ),
        Preset(
            name="bart_base_en",
            handle="kaggle://keras/bart/keras/bart_base_en/3",
            aliases=("kaggle://keras/bart/keras/bart_base_en", "hf://keras/bart_base_en"),
            parameters=139_417_344,
            description="6 layers, case kept. Pre-trained on BookCorpus, English Wikipedia and "
            "CommonCrawl; made to be fine-tuned.",
            generation=GenerationConfig(
                num_beams=4,
                no_repeat_ngram_size=3,
                early_stopping=True,
                forced_bos_token_id=0,
                forced_eos_token_id=2,
            ),
        ),
        Preset(
            name="bart_large_en",
            handle="kaggle://keras/bart/keras/bart_large_en/3",
            aliases=("kaggle://keras/bart/keras/bart_large_en", "hf://keras/bart_large_en"),
            parameters=406_287_360,
            description="12 layers, case kept. Pre-trained on BookCorpus, English Wikipedia and "
            "CommonCrawl; made to be fine-tuned.",
            generation=GenerationConfig(
                num_beams=4,
                no_repeat_ngram_size=3,
                early_stopping=True,
                forced_eos_token_id=2,
            ),
        ),
        Preset(
            name="bart_large_en_cnn",
            handle="kaggle://keras/bart/keras/bart_large_en_cnn/3",
            aliases=("kaggle://keras/bart/keras/bart_large_en_cnn", "hf://keras/bart_large_en_cnn"),
            parameters=406_286_336,
            description="bart_large_en fine-tuned on CNN/DailyMail: summarizes news articles.",
            generation=GenerationConfig(
                num_beams=4,
                length_penalty=2.0,
                max_length=142,
                min_length=56,
                no_repeat_ngram_size=3,
                early_stopping=True,
                forced_bos_token_id=0,
                forced_eos_token_id=2,
            ),
        ),
    )
}
