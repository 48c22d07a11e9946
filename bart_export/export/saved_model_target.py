"""The export of a SavedModel: what writes its next version with all that a deployment needs."""

import dataclasses
import functools

from bart_export.artifact.artifact import Draft
from bart_export.artifact.manifest import SAVED_MODEL, SavedModelEntry
from bart_export.convert import saved_model
from bart_export.export.deployment import deployment
from bart_export.export.options import SavedModelOptions
from bart_export.export.result import ExportedFile, ExportResult, Model
from bart_export.progress import Stage
from bart_export.verify import golden
from bart_export.verify import saved_model as saved_model_quality


def export_saved_model(
    model: Model, options: SavedModelOptions, draft: Draft, stage: Stage
) -> ExportResult:
    """Write the next version of a SavedModel."""
    info, settings = model.info, options.settings(model.info.generation)
    deployment.model_name(draft.target)
    version = saved_model.next_version(draft.target)
    name = f"saved_model/{version}"
    directory = draft.directory / name
    stage("write the SavedModel")
    saved_model.write(
        model.backbone,
        info.tokenizer,
        settings,
        info.encoder_sequence_length,
        options.dtype,
        directory,
    )
    stage("measure what serving takes")
    served = dataclasses.replace(info, generation=settings)
    memory = deployment.write(draft, version, served, golden.TEXTS[0]).memory
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    files = [path.relative_to(draft.directory).as_posix() for path in paths]
    entries = {
        file: SavedModelEntry(*draft.content(file), SAVED_MODEL, version, options.dtype)
        for file in files
    }
    graph = f"{name}/saved_model.pb"
    entries[graph] = dataclasses.replace(entries[graph], memory=memory)
    check = functools.partial(
        saved_model_quality.check, name, directory, options.dtype, info.tokenizer, settings
    )
    own = None if settings == info.generation else settings
    return ExportResult([ExportedFile(name, entries, check, own)])
