"""Export BART checkpoints to TFLite and SavedModel, and verify the files against the Keras model.

Importing the package is cheap: a public name loads its module on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bart_export import models
    from bart_export.model import Backbone, BartBackbone
    from bart_export.runtime import Generator
    from bart_export.text.tokenizer import BartTokenizer

__version__ = "0.1.0"

__all__ = ["Backbone", "BartBackbone", "BartTokenizer", "Generator", "__version__", "models"]

# Public names, and the modules that define them.
MODULES = {
    "Backbone": "bart_export.model",
    "BartBackbone": "bart_export.model",
    "BartTokenizer": "bart_export.text.tokenizer",
    "Generator": "bart_export.runtime",
    "models": "bart_export.models",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(MODULES[name])
    value = module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
