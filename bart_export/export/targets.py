"""The targets of an export: for each, what writes its files and what compares them with the model.

A `Model` and a target's options go in; files appear in the draft, and an `Exported` comes out, in
which a `Written` for each file, or directory of files, says what the manifest is told and how it is
checked.
The order of the journey is not known here.
"""

from collections.abc import Callable
from typing import Any

from bart_export.artifact.artifact import Draft
from bart_export.export.edgetpu_target import export_edgetpu
from bart_export.export.result import Exported, Model, Written
from bart_export.export.saved_model_target import export_saved_model
from bart_export.export.tflite_target import export_tflite
from bart_export.progress import Stage

__all__ = ["EXPORTERS", "Exported", "Model", "Written"]

# (model, options, draft, stage) -> what was done
EXPORTERS: dict[str, Callable[[Model, Any, Draft, Stage], Exported]] = {
    "tflite": export_tflite,
    "saved_model": export_saved_model,
    "edgetpu": export_edgetpu,
}
