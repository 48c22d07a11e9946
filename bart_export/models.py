"""The classes that `keras_hub.models` has for BART, under the same names.

`bart_export.models.Backbone.from_preset` finds out which class a preset is of.
"""

from bart_export.model import Backbone, BartBackbone
from bart_export.text.tokenizer import BartTokenizer

__all__ = ["Backbone", "BartBackbone", "BartTokenizer"]
