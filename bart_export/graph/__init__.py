"""BART inference as TensorFlow functions, the computation inside exported files."""
