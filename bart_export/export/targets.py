"""The targets of an export: what writes the files of each into the draft."""

from bart_export.artifact.artifact import Draft
from bart_export.export.edgetpu_target import export_edgetpu
from bart_export.export.options import EdgeTpuOptions, Options, SavedModelOptions
from bart_export.export.result import ExportResult, Model
from bart_export.export.saved_model_target import export_saved_model
from bart_export.export.tflite_target import export_tflite
from bart_export.progress import Stage


def export_files(model: Model, options: Options, draft: Draft, stage: Stage) -> ExportResult:
    """Write the files of the target that the options are of."""
    if isinstance(options, SavedModelOptions):
        return export_saved_model(model, options, draft, stage)
    if isinstance(options, EdgeTpuOptions):
        return export_edgetpu(model, options, draft, stage)
    return export_tflite(model, options, draft, stage)
