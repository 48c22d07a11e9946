"""Checkpoints: where one comes from (`resolve`, `hubs`) and what it says, as one `Checkpoint`.

Reading needs neither Keras, TensorFlow nor PyTorch, and unpickles nothing. What is missing, damaged
or hostile is a `CheckpointError` that names the file.
"""
