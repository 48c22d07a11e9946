"""Artifacts with the files of a deployment, and what stands in them as data."""

import shutil

import yaml

from bart_export.artifact.artifact import Draft
from bart_export.export.deployment.deployment import write
from bart_export.export.deployment.memory import Memory
from bart_export.runtime.generator import ModelInfo
from bart_export.verify.golden import TEXTS

MEMORY = Memory(loaded=700 * 2**20, peak=1900 * 2**20)
SIZE = 560 * 2**20


def served(artifact):
    """Return what an artifact's SavedModel was exported with, and a text."""
    return ModelInfo.from_artifact(artifact), TEXTS[0]


def deploy(artifact, directory):
    """Write the files for a second version, the same as the first, into a new draft."""
    shutil.copytree(
        artifact.directory / "saved_model" / "1",
        directory / "saved_model" / "2",
        ignore=shutil.ignore_patterns("assets.extra", "batching_params.pbtxt"),
    )
    draft = Draft(directory, artifact.directory)
    return draft, write(draft, 2, *served(artifact))


def documents(text):
    """Return the documents of a YAML text, by their kind where they have one."""
    return {one.get("kind", ""): one for one in yaml.safe_load_all(text)}
