"""`bart-export push`: an artifact and its model card to the Hugging Face Hub."""

import click

from bart_export import cli
from bart_export.locations import HUB, REPOSITORY, Location, normalized

PACKAGES = {"huggingface_hub": "huggingface-hub", "jinja2": "jinja2"}


@click.command()
@click.argument("artifact", type=cli.ARTIFACT)
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="If the repository is new, make it private.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
def push(artifact: Location, repository: str, private: bool, create_pr: bool) -> None:
    """Upload an artifact to the repository ORG/NAME on the Hugging Face Hub, and print its URL.

    The repository is created if it does not exist. The files of the manifest, the manifest and a
    model card, README.md, are uploaded in one commit; other files in the directory are not. Sign in
    with `hf auth login` or set HF_TOKEN first.

    \b
      bart-export push artifacts/bart_mini_en me/bart_mini_en
      bart-export generate hf://me/bart_mini_en "A text ..."
    """
    name = normalized(repository).removeprefix(HUB)
    if REPOSITORY.fullmatch(name) is None:
        raise click.UsageError(f"Expected ORG/NAME, such as me/bart, received {repository!r}.")
    cli.require_packages("Pushing an artifact", PACKAGES, "hub")

    from bart_export.artifact import upload
    from bart_export.artifact.artifact import Artifact
    from bart_export.report import card

    opened = Artifact.open(artifact)
    text = card.render(opened.manifest, name)
    click.echo(upload.push(opened, name, text, private=private, create_pr=create_pr))
