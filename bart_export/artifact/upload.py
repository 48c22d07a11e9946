"""Uploads an artifact to the Hugging Face Hub, in one commit."""

import pathlib

from bart_export.artifact import hub_client
from bart_export.artifact.artifact import MANIFEST, Artifact
from bart_export.artifact.manifest import check_names
from bart_export.errors import ArtifactError
from bart_export.locations import HUB

CARD = "README.md"


def push(
    artifact: Artifact,
    repository: str,
    card: str,
    *,
    private: bool,
    create_pr: bool,
) -> str:
    """Upload an artifact's files and its model card; nothing else in the directory is uploaded.

    Args:
        artifact: the artifact; all hashes are checked first.
        repository: "org/name", which is created if it does not exist.
        card: the content of README.md.
        private: whether a new repository is private.
        create_pr: open a pull request instead of writing to the main branch.

    Returns:
        The URL of the repository, or of the pull request.

    Raises:
        ArtifactError: if the artifact is damaged or has a README.md, or the hub refuses it or
            cannot be reached.
    """
    import huggingface_hub as hub

    try:
        check_names([*artifact.manifest.files, CARD])
    except ValueError as error:
        raise ArtifactError(
            f"{artifact.location} cannot be pushed with a model card: {error}. Export the artifact "
            "again."
        ) from None
    paths = {name: artifact.path(name, rehash=True) for name in artifact.manifest.files}
    paths[MANIFEST] = artifact.directory / MANIFEST
    contents: dict[str, pathlib.Path | bytes] = {**paths, CARD: card.encode()}
    operations = [hub.CommitOperationAdd(name, content) for name, content in contents.items()]
    with hub_client.quiet("huggingface_hub"):
        try:
            url = hub.create_repo(repository, private=private or None, exist_ok=True)
            commit = hub.create_commit(
                repository,
                operations,
                commit_message="Upload an artifact of bart-export",
                create_pr=create_pr,
            )
        except Exception as error:  # of the client, its HTTP library or the system
            message = hub_client.hugging_face_failure(f"{HUB}{repository}", error, push=True)
            raise ArtifactError(message) from error
    return str(commit.pr_url if create_pr else url)
