"""Golden answers, and comparisons of exported files with the Keras model."""
