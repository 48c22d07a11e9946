"""BART as a Keras model."""

from bart_export.model.backbone import Backbone
from bart_export.model.bart_backbone import BartBackbone

__all__ = ["Backbone", "BartBackbone"]
