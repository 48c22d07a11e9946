"""Artifacts with both builds: the files of one that was exported, and static ones beside them."""

import shutil

from bart_export import artifact, checkpoints
from bart_export.model import BartBackbone
from bart_export.presets import resolve
from bart_export.recipes import RECIPES
from bart_export.targets import tflite


def add(made, shapes, recipes, target, *, dynamic=True):
    """Commit an artifact with static builds of `made`'s checkpoint, and its own files, and open it.

    Without `dynamic` the files of `made` itself are left out of the manifest.
    """
    preset = made.manifest["preset"]
    backbone = BartBackbone.from_checkpoint(checkpoints.read(resolve(preset).directory))
    ignored = shutil.ignore_patterns(artifact.MANIFEST, ".cache")
    with artifact.draft(target) as draft:
        wanted = [RECIPES[name] for name in recipes]
        written = tflite.write_recipes(backbone, wanted, shapes, draft, lambda _: None)
        shutil.copytree(made.directory, draft.directory, ignore=ignored, dirs_exist_ok=True)
        fields = {name: value for name, value in made.manifest.items() if "sha256" not in name}
        kept = {
            name: entry
            for name, entry in fields["files"].items()
            if dynamic or entry.get("target") != "tflite"
        }
        entries = {
            name: draft.entry(
                name,
                target="tflite",
                recipe=recipe.name,
                runtimes=dict(recipe.runtimes),
                refusals=dict(recipe.refusals),
                **tflite.build_fields(made.config, shapes),
            )
            for name, recipe in written.items()
        }
        draft.commit({**fields, "files": kept | entries})
    return artifact.Artifact.open(target)
