"""The BART classes of `keras_hub.models`, under the same names.

`bart_export.models.Backbone.from_preset` returns an instance of the preset's class.
"""

from bart_export.model import Backbone, BartBackbone
from bart_export.text.tokenizer import BartTokenizer

__all__ = ["Backbone", "BartBackbone", "BartTokenizer"]
