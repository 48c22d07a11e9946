"""Artifacts with deployment files, and the documents in those."""

import shutil

import yaml

from bart_export.artifact.drafts import Draft
from bart_export.artifact.manifest import Memory
from bart_export.export.saved_model_target import write_deployment
from bart_export.runtime.generator import ModelInfo

MEMORY = Memory(loaded=700 * 2**20, peak=1900 * 2**20)
SIZE = 560 * 2**20


def deploy(artifact, directory):
    """Write the deployment files of a second, equal version to a new draft."""
    shutil.copytree(
        artifact.directory / "saved_model" / "1",
        directory / "saved_model" / "2",
        ignore=shutil.ignore_patterns("assets.extra", "batching_params.pbtxt"),
    )
    draft = Draft(directory, artifact.directory)
    return draft, write_deployment(draft, 2, ModelInfo.from_artifact(artifact))


def documents(text):
    """Return the documents of a YAML text, by kind if they have one."""
    return {one.get("kind", ""): one for one in yaml.safe_load_all(text)}
