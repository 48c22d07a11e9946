"""Turn the trained checkpoint into the Keras preset inside the package.

Usage: make_preset.py CHECKPOINT_DIR PRESET_DIR

CHECKPOINT_DIR is what train.py saved, cast to float16, with vocab.json, merges.txt and a
generation_config.json beside it. PRESET_DIR keeps its model card, which is written by hand.
"""

import sys
from pathlib import Path

from bart_export.checkpoints import keras_preset, resolve

# The lengths that train.py cut the pairs to, both ends included.
SOURCE, TARGET = 160, 32

MODEL_CARD = "README.md"


def main() -> None:
    source, preset = map(Path, sys.argv[1:])
    card = (preset / MODEL_CARD).read_text(encoding="utf-8")
    checkpoint = resolve.read(source)
    keras_preset.write(
        preset,
        checkpoint.config,
        checkpoint.weights,
        generation=checkpoint.generation,
        vocabulary=checkpoint.vocabulary,
        merges=checkpoint.merges,
        weights_dtype="float16",
        encoder_sequence_length=SOURCE,
        decoder_sequence_length=TARGET,
    )
    (preset / MODEL_CARD).write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
