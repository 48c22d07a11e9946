"""bart-export: a BART checkpoint, turned into things that run somewhere else, and proved equal.

Importing the package costs nothing: a public name brings in its module, and what that module
needs, when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bart_export.model import BartBackbone
    from bart_export.runtime import Generator

__version__ = "0.1.0"

__all__ = ["BartBackbone", "Generator", "__version__"]

# Public name → the module that defines it.
MODULES = {
    "BartBackbone": "bart_export.model",
    "Generator": "bart_export.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
