"""bart-export: a BART checkpoint, turned into things that run somewhere else, and proved equal."""

__version__ = "0.1.0"
