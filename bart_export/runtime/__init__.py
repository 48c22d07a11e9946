"""Generation on LiteRT, without TensorFlow: text in, text out."""

from bart_export.runtime.generator import GeneratedSequence, Generator, Result, Timings

__all__ = ["GeneratedSequence", "Generator", "Result", "Timings"]
