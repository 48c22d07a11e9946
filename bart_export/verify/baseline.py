"""A preset as what an artifact's files are compared with: the Keras model, and float files of it.

An artifact and a preset go in; a `recheck.Truth` comes out. Float files are built anew, in a
directory of their own, and held to the Keras model before anything is compared with them.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence

from bart_export.artifact.artifact import Artifact
from bart_export.checkpoints import resolve
from bart_export.contract import StaticShapes
from bart_export.convert import tflite
from bart_export.errors import ConfigurationError
from bart_export.graph.parameters import InferenceParameters
from bart_export.model import BartBackbone
from bart_export.progress import Stage
from bart_export.recipes.table import RECIPES, with_bounds
from bart_export.runtime.generator import ModelInfo
from bart_export.verify import golden, verify, weights
from bart_export.verify.compare_files import Texts, Truth
from bart_export.verify.gate import File, Gate, answer_texts
from bart_export.verify.reference import Float64Reference, KerasReference
from bart_export.verify.verify import Reference


def preset_truth(
    artifact: Artifact,
    info: ModelInfo,
    files: Sequence[File],
    preset: str,
    texts: Texts | None,
    tolerance: Mapping[str, float],
    scratch: pathlib.Path,
    stage: Stage,
) -> Truth:
    """Return a preset as what the files of an artifact are compared with.

    Args:
        artifact: whose files they are.
        info: about it.
        files: what will be compared.
        preset: what `origin.resolve` takes.
        texts: to compare along; None for the golden ones.
        tolerance: bounds in the place of those that float files are held to.
        scratch: a directory for float files, which must stay while the truth is used.
        stage: told the name of each stage as it begins.

    Raises:
        ConfigurationError: for a preset of another architecture.
        VerificationFailed: if a float file does not say what the Keras model says.
    """
    stage(f"read {preset}")
    checkpoint = resolve.read(resolve.find(preset).directory)
    if checkpoint.config != info.config:
        raise ConfigurationError(
            f"--against must be the preset that {artifact.directory} was made of, "
            f"{artifact.manifest.preset}, or one of its architecture; {preset} has another."
        )
    backbone = BartBackbone.from_checkpoint(checkpoint)
    keras = KerasReference(backbone)
    parameters = InferenceParameters(info.config, lambda name: checkpoint.weights[name])
    stage("ask the Keras model")
    asked = verify.consult(
        keras,
        info.tokenizer,
        golden.questions(info),
        Float64Reference(backbone),
    )
    read = weights.parameters_of(info.config, parameters)
    bases = {}
    for number, shapes in enumerate(dict.fromkeys(file.shapes for file in files)):
        stage("convert the graph")
        path = scratch / f"float32_{number}.tflite"
        tflite.write_float(parameters, path, shapes)
        name = f"The float32 file that this version makes of {preset}"
        recipe = with_bounds(RECIPES["float32"], tolerance)
        base = File.of_draft(name, path, recipe, info.config, shapes)
        Gate(info, base, read).hold_base(asked)
        bases[shapes] = base

    @functools.cache
    def answers(shapes: StaticShapes | None) -> Reference:
        if texts is None:
            return asked
        with bases[shapes].open() as model:
            return answer_texts(
                info, shapes, texts.examples, model, keras, lambda: stage("ask the float model")
            )

    return Truth(bases, read, answers)
