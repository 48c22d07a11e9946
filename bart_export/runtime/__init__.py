"""Generation on LiteRT, without TensorFlow: text in, text out."""

from bart_export.runtime.generator import Generator
from bart_export.runtime.results import GeneratedSequence, Result, Timings

__all__ = ["GeneratedSequence", "Generator", "Result", "Timings"]
