"""Uploads an artifact to the Hugging Face Hub, in one commit."""

from typing import Any

from bart_export.artifact import hub_client
from bart_export.artifact.artifact import MANIFEST, Artifact
from bart_export.errors import ArtifactError, import_extra, one_line
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
        ArtifactError: if the artifact is damaged, or the hub refuses it or cannot be reached.
        MissingExtra: if huggingface_hub is not installed.
    """
    hub = import_extra("huggingface_hub", "Pushing an artifact", "hub")
    paths = {name: artifact.path(name, rehash=True) for name in artifact.manifest.files}
    paths[MANIFEST] = artifact.directory / MANIFEST
    contents: dict[str, Any] = {**paths, CARD: card.encode()}
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
            raise ArtifactError(failure(f"{HUB}{repository}", error)) from error
    return str(commit.pr_url if create_pr else url)


def failure(handle: str, error: Exception) -> str:
    """Return a one-line message for an exception of huggingface_hub."""
    status = hub_client.http_status(error) or hub_client.http_status(error.__cause__)
    if status == 401:
        return (
            f"Pushing to {handle} needs a token that may write: {hub_client.SIGN_IN}. Tokens are "
            "made at huggingface.co/settings/tokens."
        )
    if status == 403:
        return (
            f"The token may not write to {handle}. Use one that may, or propose the files with "
            "--create-pr."
        )
    rejected = "metadata" in str(error)  # the card's, a ValueError of the client
    if isinstance(error, hub_client.UNEXPECTED) and status is None and not rejected:
        check = "HF_ENDPOINT and the network."
        return hub_client.unexpected_response("Hugging Face", handle, check)
    reason = one_line(error).removesuffix(".")
    return f"Cannot push to {handle}: {reason}. Check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
