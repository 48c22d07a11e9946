"""The export of a SavedModel: what writes its next version with all that a deployment needs.

A `Model` and a `SavedModelOptions` go in; a version directory and the files to serve it with appear
in the draft, and one `Written` comes out.
"""

import dataclasses
import functools
from typing import Any

from bart_export.artifact.artifact import Draft
from bart_export.convert import saved_model
from bart_export.export.deployment import deployment
from bart_export.export.result import Exported, Model, Written
from bart_export.progress import Stage
from bart_export.verify import golden
from bart_export.verify import saved_model as saved_model_quality


def export_saved_model(model: Model, options: Any, draft: Draft, stage: Stage) -> Exported:
    """Write the next version of a SavedModel."""
    settings = options.settings(model.generation)
    deployment.model_name(draft.target)
    version = saved_model.next_version(draft.target)
    name = f"saved_model/{version}"
    directory = draft.directory / name
    stage("write the SavedModel")
    saved_model.write(
        model.backbone,
        model.tokenizer,
        settings,
        model.encoder_sequence_length,
        options.dtype,
        directory,
    )
    stage("measure what serving takes")
    served = deployment.Served(
        tokenizer=model.tokenizer,
        generation=settings,
        encoder_sequence_length=model.encoder_sequence_length,
        text=golden.TEXTS[0],
    )
    memory = deployment.write(draft, version, served).memory
    details = {"target": "saved_model", "version": version, "dtype": options.dtype}
    files = {
        path.relative_to(draft.directory).as_posix(): details
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    files[f"{name}/saved_model.pb"] = {**details, "memory": dataclasses.asdict(memory)}
    check = functools.partial(
        saved_model_quality.check, name, directory, options.dtype, model.tokenizer, settings
    )
    own = None if settings == model.generation else settings
    return Exported([Written(name, files, check, own)])
