"""Artifacts with dynamic and static builds."""

import dataclasses
import shutil

from bart_export.artifact import artifact, drafts
from bart_export.checkpoints import resolve
from bart_export.checkpoints.weight_names import layer_names
from bart_export.convert import tflite
from bart_export.convert.quantize import quantize
from bart_export.export.tflite_target import file_entry, file_name
from bart_export.graph.parameters import InferenceParameters
from bart_export.recipes.table import RECIPES
from support.golden_cases import preset_of


def add(made, shapes, recipes, target):
    """Commit and open an artifact with the files of `made` and static builds."""
    checkpoint = resolve.read(resolve.find(preset_of(made)).directory)
    parameters = InferenceParameters(checkpoint.config, checkpoint.weights.__getitem__)
    with drafts.draft(target) as draft:
        (draft.directory / "tflite").mkdir()
        entries = {}
        for name in recipes:
            recipe = RECIPES[name]
            file = f"tflite/{file_name(recipe, shapes)}"
            if recipe.mode == "float":
                float_file = draft.directory / file
                tflite.write_float(parameters, float_file, shapes)
            else:
                content = quantize(float_file, recipe, layer_names(made.config))
                (draft.directory / file).write_bytes(content)
            entries[file] = file_entry(draft, file, recipe, made.config, shapes)
        commit(draft, made, {**made.manifest.files, **entries})
    return artifact.Artifact.open(target)


def without(made, name, target):
    """Commit and open an artifact with all files of `made` but one."""
    files = {other: entry for other, entry in made.manifest.files.items() if other != name}
    with drafts.draft(target) as draft:
        commit(draft, made, files)
    return artifact.Artifact.open(target)


def commit(draft, made, files):
    ignored = shutil.ignore_patterns("manifest.json", ".cache")
    shutil.copytree(made.directory, draft.directory, ignore=ignored, dirs_exist_ok=True)
    draft.commit(dataclasses.replace(made.manifest, files=files))
