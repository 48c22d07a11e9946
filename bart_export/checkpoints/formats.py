"""Which reader understands a directory: the formats of checkpoints, told apart by config.json.

Flows in: a local directory. Flows out: a `Checkpoint`. A new format is a row of `READERS`.
"""

from pathlib import Path

from bart_export.artifact.artifact import Artifact, is_artifact
from bart_export.checkpoints import hubs, hugging_face, keras_preset, licence
from bart_export.checkpoints.checkpoint import Checkpoint, without_padding
from bart_export.checkpoints.files import CONFIG_FILE, check_small_file, read_json
from bart_export.errors import PresetError

# The key of config.json that tells who wrote it, and who reads it.
READERS = (("registered_name", keras_preset.read), ("model_type", hugging_face.read))


def read(directory: Path, *, weights: bool = True, tokenizer: bool = True) -> Checkpoint:
    """Read a Keras preset or a Hugging Face directory.

    Names and shapes of all weights are checked against the configuration before this returns; only
    headers are read for it. With `weights=False` no weight file is opened: `weights` and
    `weight_files` are empty and `config.final_logits_bias` is what config.json says. With
    `tokenizer=False` the directory needs no tokenizer, `vocabulary` and `merges` are empty, and
    the model keeps embedding rows that no token has; otherwise they are left out.

    Raises:
        PresetError: when the directory holds no model, or one that is not a BART.
        CheckpointError: when a file is missing, damaged or does not fit the others.
        TokenizerError: when the tokenizer files are missing or do not fit the model.
        MissingExtra: when a package that reads the weight files is not installed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise PresetError(f"Expected a checkpoint directory, received {directory}, which is none.")
    for name in hubs.SMALL_FILES:
        if (directory / name).exists() and name not in licence.FILES:
            check_small_file(directory / name)
    hubs.refuse_adapter(str(directory), directory)
    path = directory / CONFIG_FILE
    if is_artifact(directory):
        made_of = Artifact.open(directory).manifest.preset
        raise PresetError(
            f"{directory} is an artifact, not a checkpoint. It was made of {made_of}."
        )
    if not path.is_file():
        raise PresetError(
            f"{directory} holds no {CONFIG_FILE}. A checkpoint is a Keras preset (config.json, "
            "model.weights.h5, assets/tokenizer) or a Hugging Face directory (config.json, "
            "model.safetensors, vocab.json, merges.txt)."
        )
    stored = read_json(path)
    for key, reader in READERS:
        if key in stored:
            return without_padding(reader(directory, stored, weights, tokenizer))
    raise PresetError(
        f"{path} has neither registered_name, as Keras presets do, nor model_type, as Hugging Face "
        "checkpoints do, so it is not known which model it describes."
    )
