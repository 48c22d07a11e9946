"""The report of an artifact: REPORT.md, a model card that a person reads, and its pictures.

Nothing is measured here and no figure is made up: what a manifest does not have, the report says
was not measured.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bart_export.artifact.artifact import REPORT
from bart_export.artifact.figures import Measurement
from bart_export.artifact.manifest import HostEntry, Manifest, StaticEntry
from bart_export.presets import PRESETS
from bart_export.report import layer_picture, pictures, style
from bart_export.report.facts import Reported, reported
from bart_export.report.markdown import bullets, code, paragraph, table
from bart_export.report.tables import (
    compared,
    contents,
    cost_table,
    file_line,
    signature_lines,
    speed_table,
)

COSTS, SENSITIVITY = "report/costs.svg", "report/sensitivity.svg"
DIRECTORY = "report"
MOST_SENSITIVE = 10
GOLDEN_TEXTS = "three short texts that ship with bart-export"
UNKNOWN_LICENCE = "the checkpoint's licence applies; it was not in the checkpoint"


def write(directory: pathlib.Path, manifest: Manifest) -> list[str]:
    """Write the report of an artifact.

    Args:
        directory: the artifact's, or a draft's.
        manifest: what it is about, with an entry for every other file.

    Returns:
        The names of the files written, for the manifest.
    """
    others = {
        name: entry
        for name, entry in manifest.files.items()
        if name != REPORT and not name.startswith(f"{DIRECTORY}/")
    }
    manifest = dataclasses.replace(manifest, files=others)
    files = reported(manifest)
    written = draw(directory, manifest, files)
    text = "\n\n".join(part for part in parts(manifest, files, written) if part)
    (directory / REPORT).write_text(text + "\n", encoding="utf-8")
    return [REPORT, *written]


def draw(directory: pathlib.Path, manifest: Manifest, files: list[Reported]) -> list[str]:
    """Draw the pictures of what was measured; return their names."""
    drawn = {}
    with style.drawing():
        if columns := pictures.cost_columns(files, manifest.generation.num_beams):
            drawn[COSTS] = pictures.costs(files, columns)
        if rows := manifest.sensitivity:
            divergences = {row.layer: row.kl for row in rows}
            drawn[SENSITIVITY] = layer_picture.sensitivities(divergences, rows[0].storage)
        for name, figure in drawn.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(style.to_svg(figure), encoding="utf-8")
    return list(drawn)


def parts(manifest: Manifest, files: list[Reported], pictures: Sequence[str]) -> list[str]:
    """Return the paragraphs, tables and pictures of the report, in their order."""
    known = PRESETS.get(manifest.preset)
    return [
        f"# {title(manifest.preset)}",
        paragraph(known.description) if known else "",
        about(manifest),
        *(costs(manifest, files, pictures) if files else ()),
        *sensitivity(manifest, pictures),
        *use(manifest, files),
        "## Configuration",
        settings(manifest.config.to_dict()),
        "## Generation",
        paragraph("What a call leaves open, in the words of Hugging Face's `generate()`."),
        settings(manifest.generation.to_dict()),
        bullets(manifest.notes),
        "## Signatures",
        bullets(signature_lines(manifest)),
        bullets(
            f"{code(name)} has fixed sizes: {', '.join(map(code, entry.signatures))}."
            for name, entry in manifest.files.items()
            if isinstance(entry, (StaticEntry, HostEntry))
        ),
        "## Contents",
        contents(manifest),
        bullets(compared(manifest, files)),
        "## What was not checked",
        bullets(unchecked(manifest, files)),
    ]


def title(preset: str) -> str:
    """Return the name of a preset that was named by a path or a handle."""
    return pathlib.PurePosixPath(preset.replace("\\", "/")).name or preset


def settings(values: Mapping[str, Any]) -> str:
    """Return a table of names and values."""
    return table(("", ""), [(code(name), show(value)) for name, value in values.items()])


def about(manifest: Manifest) -> str:
    """Return the table that says what was exported, from where, and by what."""
    source = manifest.source
    rows = [
        ("source", code(source.handle)),
        *((("revision", source.revision),) if source.revision else ()),
        ("format", source.format),
        ("SHA-256 of the weights", code(source.weights_sha256)),
        ("licence", manifest.licence or UNKNOWN_LICENCE),
        ("parameters", f"{manifest.parameter_count:,}"),
        ("longest source", f"{manifest.encoder_sequence_length} tokens"),
        ("made by", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
    ]
    return table(("", ""), rows)


def costs(manifest: Manifest, files: list[Reported], pictures: Sequence[str]) -> list[str]:
    """Return the sections that say what each `.tflite` file costs."""
    parts = [
        "## Files for LiteRT",
        bullets(map(file_line, files)),
        "## What each file costs",
        paragraph(
            "The float model is this checkpoint in Keras. Along its own greedy texts, *same next "
            "token* is the share of steps at which a file finds the same token likeliest, through "
            "the file's worst signature. *Same texts* is the share of texts that the file writes "
            "token for token. In brackets is what the figure may be over other texts: the interval "
            "that holds it with 95 % confidence. Files whose intervals overlap were not told apart "
            "by these texts."
        ),
    ]
    if COSTS in pictures:
        parts += [
            picture(COSTS, "Size, quality and speed of each file"),
            paragraph("The picture has only figures by which files can be told apart."),
        ]
    parts += [cost_table(files), bullets(counts(files))]
    measured = [row for one in files if (row := one.measurement) and row.lengths]
    if not measured:
        return [*parts, paragraph("Times were not measured: `bart-export bench` measures them.")]
    work = measured[0].lengths[0]
    place = ", ".join(dict.fromkeys(map(machine_of, measured)))
    runs = len({row.export for row in measured})
    caution = (
        f"They were taken in {runs} exports: compare those of one export."
        if runs > 1
        else "Files took turns."
    )
    beams = sorted({1, manifest.generation.num_beams})
    return [
        *parts,
        "## How long it takes",
        paragraph(
            f"Tokens a second from {work.source} source ids to the last of "
            f"{work.new_tokens} new tokens, everything counted: medians of a few rounds while "
            f"exporting, with the slowest and the fastest, on {place}. {caution} `bart-export "
            "bench` measures more, where the file is to run."
        ),
        speed_table(files, beams),
    ]


def counts(files: list[Reported]) -> list[str]:
    """Return over how many steps and texts, and over which, the figures of files are."""
    given: dict[str, list[str]] = {}
    for one in files:
        row = one.verification
        if row is None:
            continue
        texts = (
            f"{row.data.texts} texts of a file with SHA-256 {code(row.data.sha256)}"
            if row.data
            else GOLDEN_TEXTS
        )
        line = f"{row.steps} steps along {texts}, {row.questions} generated"
        given.setdefault(line, []).append(code(one.label))
    return [f"{', '.join(names)}: {line}." for line, names in given.items()]


def machine_of(row: Measurement) -> str:
    """Return what a file's times were measured on."""
    machine = row.machine
    return f"{machine.processor} ({machine.architecture}) with {row.num_threads} threads"


def picture(name: str, what: str) -> str:
    """Return a picture; `what` is for readers who do not see it."""
    return f"![{what}]({name})"


def sensitivity(manifest: Manifest, pictures: Sequence[str]) -> list[str]:
    """Return the section that says how much each layer minds being stored narrowly."""
    heading = "## Sensitivity of each layer"
    rows = manifest.sensitivity
    if SENSITIVITY not in pictures or not rows:
        command = f"bart-export tune {manifest.preset} --budget top1=0.98"
        return [
            heading,
            paragraph(
                f"Not measured. `{command}` measures it, and writes a recipe file that stores "
                "wider what is sensitive."
            ),
        ]
    worst = sorted(rows, key=lambda row: -row.kl)[:MOST_SENSITIVE]
    storage = rows[0].storage
    return [
        heading,
        paragraph(
            "The divergence of a step, in thousandths of a nat, with one matrix alone in "
            f"{storage} and all else in float32. A recipe file can store the worst ones wider."
        ),
        picture(SENSITIVITY, f"Divergence with each layer alone in {storage}"),
        table(
            ("the most sensitive", "divergence"),
            [(code(row.layer), f"{1000 * row.kl:.3g}") for row in worst],
            numbers=1,
        ),
    ]


def use(manifest: Manifest, files: list[Reported]) -> list[str]:
    """Return the section that says how to use the artifact."""
    parts = ["## How to use it"]
    if files:
        parts += [
            paragraph("In this directory, with bart-export installed, which takes no TensorFlow:"),
            '```sh\nbart-export generate . "A text."\n'
            f'bart-export generate . "A text." --recipe {files[0].entry.recipe}\n'
            "bart-export verify .\n```",
            "```python\nfrom bart_export.runtime import Generator\n\n"
            'print(Generator.from_artifact(".").generate("A text.").text)\n```',
        ]
    if any(entry.target == "saved_model" for entry in manifest.files.values()):
        parts += [
            paragraph(
                "`saved_model` is what TensorFlow Serving loads, and `bart-export serve .` speaks "
                "its API as well."
            )
        ]
    return parts


def unchecked(manifest: Manifest, files: list[Reported]) -> list[str]:
    """Return what a reader might expect to be known, and is not."""
    notes = ["What the model writes: whether it is true, fair or safe was not looked at."]
    if files:
        notes.append(
            "GPUs, NPUs, phones and Edge TPUs: files were run on a CPU where they were exported. "
            "The list of files says which engines are known to compute a recipe rightly."
        )
        if not any(one.rouge_l for one in files):
            notes.append(
                "Quality against texts that people wrote: there were none. An export with `--data "
                "FILE.jsonl` measures ROUGE."
            )
        if not any(one.verification and one.verification.data for one in files):
            notes.append(
                f"Texts of your own: figures are over {GOLDEN_TEXTS}, too few to choose a recipe "
                "by. `bart-export verify . --data FILE.jsonl` takes yours."
            )
    if not manifest.licence:
        notes.append("The licence: the checkpoint did not come with one.")
    return notes


def show(value: Any) -> str:
    """Return a value of a setting as the report has it."""
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
