"""Generation on LiteRT, without TensorFlow."""
