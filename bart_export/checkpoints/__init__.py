"""BART checkpoints: finding or downloading them, and reading them into a `Checkpoint`.

Reading needs neither Keras nor TensorFlow, and never unpickles arbitrary objects. A missing,
damaged or malicious file raises a `CheckpointError` that names it.
"""
