"""BART as a Keras model."""

from bart_export.model.backbone import BartBackbone

__all__ = ["BartBackbone"]
