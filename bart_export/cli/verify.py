"""`bart-export verify`: an artifact goes in, what its files are worth comes out.

Without options every hash is checked and every golden question asked again. With texts or a preset
the files are compared with the float model, as they were when they were exported. Everything heavy
is imported when the command runs.
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from bart_export.cli.export import TOLERANCE, require_export_packages
from bart_export.documents import scratch_directory
from bart_export.errors import VerificationFailed
from bart_export.progress import Stage, console, stages
from bart_export.recipes import metrics

if TYPE_CHECKING:
    from bart_export.artifact.artifact import Artifact
    from bart_export.artifact.figures import FileVerification, RougeLoss
    from bart_export.runtime.generator import ModelInfo
    from bart_export.verify.compare_files import Row, Texts, Truth
    from bart_export.verify.gate import File

Path = click.Path(path_type=pathlib.Path)


@click.command()
@click.argument("artifact", type=Path)
@click.option(
    "--data",
    "data_file",
    type=Path,
    help='Texts to compare the files with: .jsonl, objects with a "text" and optionally a '
    '"reference". Without --against the baseline is the artifact\'s float32 file.',
)
@click.option(
    "--against",
    metavar="PRESET",
    help="The preset that the artifact was made from, in any form that --preset takes: compare "
    "with its Keras model and its weights. Needs TensorFlow.",
)
@TOLERANCE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(
    artifact: pathlib.Path,
    data_file: pathlib.Path | None,
    against: str | None,
    tolerances: Sequence[str],
    as_json: bool,
) -> None:
    """Check an artifact: the hash of every file, and the answers of its .tflite files.

    Without options, every file answers the golden questions again. With --data or --against, the
    files are compared with the float model: logits and likeliest tokens along its own decoding,
    answers, ROUGE if there are references, every row of every matrix, and the graphs.

    The exit code is 1 if a file answers differently than at its export, or is outside the tolerance
    of its recipe. Only --against needs TensorFlow.
    """
    from bart_export.artifact.artifact import Artifact

    bounds = metrics.parse(tolerances)
    opened = Artifact.open(artifact)
    discard_damaged_caches(opened)
    if data_file is None and against is None:
        if tolerances:
            raise click.UsageError("--tolerance needs --data, --against or both.")
        replay_golden(opened, as_json)
        return
    texts = None if data_file is None else texts_of(data_file)
    rows = compare_files(opened, texts, against, bounds)
    if as_json:
        described = texts and texts.description.to_dict()
        report = {
            "against": against,
            "data": described,
            "files": [row.to_dict() for row in rows],
            "not_asked": unasked(opened),
        }
        click.echo(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        print_table(rows)
        print_unasked(opened)
    failures = [failure for row in rows for failure in row.failures]
    if failures:
        count = sum(bool(row.failures) for row in rows)
        raise VerificationFailed(
            f"{count} of {len(rows)} files are outside their tolerance. The first: {failures[0]}"
        )


def discard_damaged_caches(artifact: "Artifact") -> None:
    """Hash the weight caches that files would be opened with, and say which had to go."""
    from bart_export.artifact.manifest import TfliteEntry
    from bart_export.runtime.weight_cache import discard_damaged

    for name, entry in artifact.manifest.files.items():
        if isinstance(entry, TfliteEntry) and discard_damaged(artifact, name):
            click.echo(f"{name}: the weight cache was damaged and was rebuilt", err=True)


def replay_golden(artifact: "Artifact", as_json: bool) -> None:
    """Check every hash and ask the golden questions again."""
    import dataclasses

    from bart_export.runtime.generator import Generator
    from bart_export.verify.replay import replay

    files = artifact.manifest.tflite()
    rows = replay(
        artifact,
        lambda name: Generator.from_artifact(
            artifact.directory, recipe=files[name].recipe, shapes=files[name].build
        ),
    )
    if as_json:
        report = {
            "files": [dataclasses.asdict(row) for row in rows],
            "not_asked": unasked(artifact),
        }
        click.echo(json.dumps(report, indent=1))
        return
    for row in rows:
        click.echo(f"{row.file}: {row.equal} of {row.asked} golden answers given again")
    print_unasked(artifact)
    count = len(artifact.manifest.files)
    click.echo(f"{artifact.directory} is whole: {count} files are what the manifest says")


def unasked(artifact: "Artifact") -> list[str]:
    """Return what of an artifact no command asks again: SavedModels, segments for the Edge TPU."""
    segments = ["edgetpu"] if artifact.files("edgetpu") else []
    versions = artifact.manifest.saved_model_versions
    return [f"saved_model/{version}" for version in versions] + segments


def print_unasked(artifact: "Artifact") -> None:
    """Print what was not asked."""
    for name in unasked(artifact):
        click.echo(
            f"{name}: not asked anything, only its hashes were checked; the export compared it "
            "with the Keras model"
        )


def texts_of(path: pathlib.Path) -> "Texts":
    """Read a file of texts."""
    from bart_export.verify import data
    from bart_export.verify.compare_files import Texts

    return Texts(data.read(path), data.digest(path))


def compare_files(
    artifact: "Artifact", texts: "Texts | None", against: str | None, bounds: dict[str, float]
) -> "list[Row]":
    """Compare an artifact's files with its float32 file or with a preset, and show progress."""
    from bart_export.runtime.generator import ModelInfo
    from bart_export.verify.compare_files import files_of, own_truth, recheck

    for name in artifact.manifest.files:
        artifact.path(name, rehash=True)
    info, files = ModelInfo.from_artifact(artifact), files_of(artifact, bounds)
    shapes = {file.shapes for file in files}
    count = GOLDEN if texts is None else len(texts.examples)
    with stages(2 * count * len(files) + count * len(shapes)) as stage:
        if against is None:
            assert texts is not None
            truth = own_truth(info, files, texts, stage)
            others = [file for file in files if file.recipe.mode != "float"]
            return recheck(info, others, truth, texts, stage)
        with scratch_directory() as scratch:
            truth = load_preset(artifact, info, files, against, texts, bounds, scratch, stage)
            return recheck(info, files, truth, texts, stage)


GOLDEN = 6  # about half of the golden questions and traces, for the progress bar


def load_preset(
    artifact: "Artifact",
    info: "ModelInfo",
    files: "Sequence[File]",
    preset: str,
    texts: "Texts | None",
    bounds: dict[str, float],
    directory: pathlib.Path,
    stage: Stage,
) -> "Truth":
    """Import TensorFlow and return a preset as what files are compared with."""
    from bart_export.checkpoints.resolve import resolve_preset
    from bart_export.quiet import native_stderr_silenced

    require_export_packages("Comparing with a preset")
    resolve_preset(preset)  # refused before TensorFlow takes its seconds to load
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    stage("load TensorFlow")
    with native_stderr_silenced():
        from bart_export.verify.baseline import preset_truth
    return preset_truth(artifact, info, files, preset, texts, bounds, directory, stage)


# Column -> how the figures of a file stand in it, on two lines each.
COLUMNS: dict[str, Callable[["FileVerification"], str]] = {
    "relative error\nKL, nats": lambda one: f"{one.relative:.2g}\n{one.kl:.2g}",
    "top-1\nequal texts": lambda one: f"{one.top1:.2%}\n{share(one.tokens)}",
    "worst\nrow": lambda one: "–" if one.weights is None else f"{one.weights:.2f}",
    "ROUGE-L\nlost (95 %)": lambda one: "–" if one.rouge is None else lost(one.rouge["rouge_l"]),
}


def share(value: float | None) -> str:
    """Return a share as it stands in a table, a dash for none."""
    return "–" if value is None else f"{value:.1%}"


def lost(rouge: "RougeLoss") -> str:
    """Return a file's score, and what it loses with the interval."""
    return f"{rouge.file:.2f}\n{rouge.loss:.2f} ({rouge.low:.2f} to {rouge.high:.2f})"


def print_table(rows: "Sequence[Row]") -> None:
    """Print the figures of files, and what is wrong with them."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")  # names may break, numbers may not
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if row.comparison is None:
            table.add_row(row.file)
            continue
        table.add_row(row.file, *(show(row.comparison) for show in COLUMNS.values()))
    output = console()
    output.print(table)
    for row in rows:
        for failure in row.failures:
            output.print(failure, soft_wrap=True, highlight=False)
