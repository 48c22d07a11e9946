"""Checkpoints on disk → a configuration, generation settings, a vocabulary and named arrays.

    names.py             the one table of weight names, in every format
    checkpoint.py        `Checkpoint`, and `weights_digest(checkpoint)`
    formats.py           `read(directory)`, by the format of config.json
    keras_preset.py      Keras presets: read, and `write` ones that KerasHub loads
    keras_json.py        their JSON files
    keras_weights.py     their HDF5 files
    hugging_face.py      transformers' directories
    safetensors_file.py  their weight files
    generation.py        generation_config.json
    resolved.py          a preset with its checkpoint and what it generates with
    tokenizer_files.py   vocabulary and merges
    pytorch_file.py      their older ones, through PyTorch itself
    files.py             JSON and text
    weights_check.py     exactly the weights that the configuration asks for

Nothing here imports Keras, TensorFlow or PyTorch to read; nothing is ever unpickled; a damaged file
is a `CheckpointError` that names it.
"""
