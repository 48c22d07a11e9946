"""Artifacts with both builds: the files of one that was exported, and static ones beside them."""

import dataclasses
import shutil

from bart_export.artifact import artifact
from bart_export.checkpoints import resolve
from bart_export.checkpoints.resolve import find
from bart_export.convert import tflite
from bart_export.export.tflite_target import entry_of
from bart_export.model import BartBackbone
from bart_export.recipes.table import RECIPES


def add(made, shapes, recipes, target):
    """Commit an artifact with static builds beside the files of `made`, and open it."""
    preset = made.manifest.preset
    backbone = BartBackbone.from_checkpoint(resolve.read(find(preset).directory))
    with artifact.draft(target) as draft:
        wanted = [RECIPES[name] for name in recipes]
        _, written = tflite.write_recipes(backbone, wanted, shapes, draft, lambda _: None)
        entries = {
            name: entry_of(draft.content(name), recipe, made.config, shapes)
            for name, recipe in written.items()
        }
        commit(draft, made, {**made.manifest.files, **entries})
    return artifact.Artifact.open(target)


def without(made, name, target):
    """Commit an artifact that lacks one of the files of `made`, and open it."""
    files = {other: entry for other, entry in made.manifest.files.items() if other != name}
    with artifact.draft(target) as draft:
        commit(draft, made, files)
    return artifact.Artifact.open(target)


def commit(draft, made, files):
    ignored = shutil.ignore_patterns("manifest.json", ".cache")
    shutil.copytree(made.directory, draft.directory, ignore=ignored, dirs_exist_ok=True)
    draft.commit(dataclasses.replace(made.manifest, files=files))
