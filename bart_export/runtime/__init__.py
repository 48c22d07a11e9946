"""Text generation on LiteRT, without TensorFlow."""

from bart_export.runtime.generator import Generator
from bart_export.runtime.results import GeneratedSequence, Result, Timings

__all__ = ["GeneratedSequence", "Generator", "Result", "Timings"]
