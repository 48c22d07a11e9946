"""The tables and lists of a report: files, costs, speeds, signatures and contents.

Tables have few columns of short cells: a browser wraps others word by word. A dash stands for what
was not measured.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from bart_export.artifact.manifest import Manifest, TensorSpec, TfliteEntry
from bart_export.documents import is_number
from bart_export.recipes.table import MODES, RECIPES, STORAGES
from bart_export.report.facts import Figure, Reported
from bart_export.report.markdown import code, table

DASH = "–"


def file_line(one: Reported) -> str:
    """Return what a file is for, how it stores and computes, and what runs it."""
    runtimes = one.entry.runtimes.items()
    runs_on = ", ".join(f"{name} {oldest}" for name, oldest in runtimes) or DASH
    return (
        f"{code(one.name)}: for {purpose(one.entry)}. Matrices in {matrices(one.entry)}; computes "
        f"in {numbers(one.entry)}; runs on {runs_on}."
    )


def numbers(entry: TfliteEntry) -> str:
    """Return what a file computes with, and on how many texts that was calibrated."""
    words = MODES[entry.mode].description
    return f"{words} on {entry.calibration.texts} texts" if entry.calibration else words


def purpose(entry: TfliteEntry) -> str:
    """Return what a file's recipe is for, and the sizes of a static build."""
    recipe = RECIPES.get(entry.recipe)
    words = recipe.purpose if recipe else "a recipe file"
    if shapes := entry.shapes:
        words += (
            f"; static: sources of {listed(shapes.source_lengths)} tokens, texts of "
            f"{shapes.target_length}, {listed(shapes.num_beams)} beams"
        )
    return words


def listed(numbers: Iterable[int]) -> str:
    """Return numbers as words have them."""
    return " or ".join(map(str, numbers))


def matrices(entry: TfliteEntry) -> str:
    """Return how a file stores its matrices."""
    storages = dict.fromkeys(storage for _, storage in entry.layers) or ("float32",)
    return "; ".join(STORAGES[name].description for name in storages)


def cost_table(files: Sequence[Reported]) -> str:
    """Return the table of sizes and of how far files are from the float model."""
    return table(
        ("file", "MB", "same next token", "same texts", "ROUGE-L lost"),
        [
            (
                code(one.label),
                f"{one.megabytes:.1f}",
                interval(one.same_token, "{:.1%}"),
                interval(one.same_text, "{:.0%}"),
                interval(one.rouge_loss, "{:+.2f}"),
            )
            for one in files
        ],
        numbers=4,
    )


def speed_table(files: Sequence[Reported], num_beams: Sequence[int]) -> str:
    """Return the table of speeds, for each number of beams."""
    return table(
        ("file", *("greedy" if beams == 1 else f"{beams} beams" for beams in num_beams)),
        [
            (
                code(one.label),
                *(interval(one.tokens_per_second(beams), "{:.0f}") for beams in num_beams),
            )
            for one in files
        ],
        numbers=len(num_beams),
    )


def interval(figure: Figure | None, words: str) -> str:
    """Return a figure, and in brackets its ends, in a cell that does not wrap."""
    if figure is None:
        return DASH
    value, low, high = map(words.format, dataclasses.astuple(figure))
    cell = f"{value} ({low} to {high})"
    return cell.replace("-", "\N{MINUS SIGN}").replace(" ", "\N{NO-BREAK SPACE}")


LAYERED = re.compile(r"(.*_)\d+")  # a tensor that there is for every decoder layer


def signature_lines(manifest: Manifest) -> list[str]:
    """Return a line for each signature of those targets that there are files of.

    Tensors that there are for every layer stand once.
    """
    targets = {entry.target for entry in manifest.files.values()}
    return [
        f"{code(name)} of {target}: {gathered(signature.inputs)} → {gathered(signature.outputs)}"
        for target, declared in manifest.signatures.items()
        for name, signature in declared.items()
        if target in targets
    ]


def gathered(tensors: Mapping[str, TensorSpec]) -> str:
    """Return tensors in a line, with those of all layers as one."""
    found: dict[str, str] = {}
    for name, tensor in tensors.items():
        layered = LAYERED.fullmatch(name)
        shown = f"{code(f'{layered[1]}0')} …" if layered else code(name)
        shape = ", ".join(map(str, tensor.shape))
        found.setdefault(shown, f"{shown} {tensor.dtype} ({shape})")
    return ", ".join(found.values())


def contents(manifest: Manifest) -> str:
    """Return the table of what is in the directory, the versions of a SavedModel as one each."""
    verified = [row.file for row in manifest.verification]
    sizes: dict[str, int] = {}
    for name, entry in manifest.files.items():
        whole = next((file for file in verified if name.startswith(f"{file}/")), name)
        sizes[whole] = sizes.get(whole, 0) + entry.bytes
    return table(
        ("file or directory", "bytes"),
        [(code(name), f"{size:,}") for name, size in sorted(sizes.items())],
        numbers=1,
    )


def compared(manifest: Manifest, files: Sequence[Reported]) -> list[str]:
    """Return what was compared of everything that the table of costs does not have."""
    shown = {one.name for one in files}
    lines = []
    for row in manifest.verification:
        if row.file not in shown:
            figures = row.to_dict().items()
            words = ", ".join(f"{name} {value:.4g}" for name, value in figures if is_number(value))
            lines.append(f"{code(row.file)} compared with the float model: {words}.")
    return lines
