"""Write a Keras preset with the shape of a published BART and random weights, for measurements.

Usage: random_checkpoint.py DIRECTORY [--shape bart_base|bart_large|bart_large_cnn] [--seed N]

The tokenizer is the real one, so the preset accepts texts; its output is meaningless. Each tensor
is drawn from a separate generator, so a seed gives the same checkpoint everywhere, and only one
tensor is in memory at a time.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bart_export.checkpoints import keras_preset, weight_names
from bart_export.config import BartConfig
from bart_export.presets import PRESETS

BASE = BartConfig(
    vocabulary_size=50265, num_layers=6, num_heads=12, hidden_dim=768, intermediate_dim=3072
)
LARGE = BartConfig(
    vocabulary_size=50265, num_layers=12, num_heads=16, hidden_dim=1024, intermediate_dim=4096
)
# Configurations by shape, with the preset that has the generation settings.
SHAPES = {
    "bart_base": (BASE, "bart_base_en"),
    "bart_large": (LARGE, "bart_large_en"),
    "bart_large_cnn": (dataclasses.replace(LARGE, vocabulary_size=50264), "bart_large_en_cnn"),
}
DEVIATION = 0.02  # standard deviation of BART's initial weights
TOKENIZER = Path(__file__).parents[1] / "tests" / "data" / "vocabulary"

FloatArray = npt.NDArray[np.float32]


class RandomWeights(Mapping[str, FloatArray]):
    """Weights by name, drawn on access; the scales of norms are 1."""

    def __init__(self, config: BartConfig, seed: int) -> None:
        self.rows = {
            row.name: (number, row) for number, row in enumerate(weight_names.weights(config))
        }
        self.seed = seed

    def __getitem__(self, name: str) -> FloatArray:
        number, row = self.rows[name]
        if name.endswith("/gamma"):
            return np.ones(row.shape, np.float32)
        generator = np.random.default_rng((self.seed, number))
        values = generator.standard_normal(row.shape, dtype=np.float32)
        values *= DEVIATION
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def write(directory: Path, shape: str, seed: int) -> None:
    """Write the preset directory."""
    config, preset = SHAPES[shape]
    merges = (TOKENIZER / "merges.txt").read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split(" ")) for line in merges if not line.startswith("#version")]
    keras_preset.write(
        directory,
        config,
        RandomWeights(config, seed),
        generation=PRESETS[preset].generation,
        vocabulary=json.loads((TOKENIZER / "vocabulary.json").read_text(encoding="utf-8")),
        merges=[(left, right) for left, right in pairs],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="bart_base")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.directory, arguments.shape, arguments.seed)


if __name__ == "__main__":
    main()
