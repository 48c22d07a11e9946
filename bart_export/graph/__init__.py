"""TensorFlow functions over the weights of a BART: what exported files compute."""
