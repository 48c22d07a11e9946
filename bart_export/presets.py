"""The named presets. `checkpoints` downloads and reads them."""

import dataclasses
from pathlib import Path

from bart_export.config import GenerationConfig

ASSETS = Path(__file__).parent / "assets"
CALIBRATION_FILE = "calibration.jsonl"  # texts in a preset's directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A named preset, on a hub unless it has a `directory` in this package.

    `parameters` counts the tied embedding once. `generation` has the original checkpoint's settings
    if the preset's files lack them.
    """

    name: str
    parameters: int
    description: str
    generation: GenerationConfig | None = None
    directory: Path | None = None

    @property
    def handle(self) -> str:
        """The hub's handle with its version, or the name of an embedded preset."""
        return self.name if self.directory else f"kaggle://keras/bart/keras/{self.name}/3"

    @property
    def aliases(self) -> tuple[str, ...]:
        """The handles of its weights on the hubs, without a version."""
        hubs = ("kaggle://keras/bart/keras/", "hf://keras/")
        return () if self.directory else tuple(f"{hub}{self.name}" for hub in hubs)

    def to_dict(self) -> dict[str, object]:
        """Return the preset in the form of KerasHub's `Backbone.presets`."""
        metadata = {"description": self.description, "params": self.parameters, "path": "bart"}
        return {"metadata": metadata, "kaggle_handle": None if self.directory else self.handle}


# The settings of the original checkpoints at huggingface.co/facebook, which Keras presets lack. The
# metadata of bart_large_en_cnn counts one embedding row too many; the count below does not.
PRETRAINED = GenerationConfig(
    num_beams=4, no_repeat_ngram_size=3, early_stopping=True, forced_eos_token_id=2
)
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="bart_mini_en",
            parameters=7_889_920,
            description="3 layers, 512 positions, embedded in this package. Writes a headline for "
            "an English description of a piece of software.",
            directory=ASSETS / "bart_mini_en",
        ),
        Preset(
            name="bart_base_en",
            parameters=139_417_344,
            description="6 layers, cased. Pre-trained on BookCorpus, English Wikipedia and "
            "CommonCrawl; meant for fine-tuning.",
            generation=PRETRAINED.replace(forced_bos_token_id=0),
        ),
        Preset(
            name="bart_large_en",
            parameters=406_287_360,
            description="12 layers, cased. Pre-trained on BookCorpus, English Wikipedia and "
            "CommonCrawl; meant for fine-tuning.",
            generation=PRETRAINED,
        ),
        Preset(
            name="bart_large_en_cnn",
            parameters=406_286_336,
            description="bart_large_en fine-tuned on CNN/DailyMail: summarizes news articles.",
            generation=PRETRAINED.replace(
                length_penalty=2.0, max_length=142, min_length=56, forced_bos_token_id=0
            ),
        ),
    )
}
