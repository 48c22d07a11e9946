"""Artifacts with dynamic and static builds."""

from bart_export.checkpoints import resolve
from bart_export.checkpoints.weight_names import layer_names
from bart_export.convert import tflite
from bart_export.convert.quantize import quantize
from bart_export.export.tflite_target import file_entry, file_name
from bart_export.graph.parameters import InferenceParameters
from bart_export.recipes.table import RECIPES
from support.golden_cases import preset_of
from support.made_up_artifacts import variant


def add(made, shapes, recipes, target):
    """Commit and open an artifact with the files of `made` and static builds."""
    checkpoint = resolve.read(resolve.find(preset_of(made)).directory)
    parameters = InferenceParameters(checkpoint.config, checkpoint.weights.__getitem__)

    def write(draft):
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
        return entries

    return variant(made, target, write)
