"""The tables of a report: files, costs, speeds, signatures and contents.

Values of `reported` and fields of a manifest go in, Markdown comes out. A dash stands for what was
not measured.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bart_export.quality.report.markdown import code, table
from bart_export.quality.report.reported import Reported
from bart_export.quality.rouge import CONFIDENCE
from bart_export.recipes import MODES, RECIPES, STORAGES

DASH = "–"


def file_table(files: Sequence[Reported]) -> str:
    """Return the table of what each file is for, how it stores and computes, and what runs it."""
    return table(
        ("file", "for", "matrices", "computes in", "runs on"),
        [
            (
                code(one.name),
                purpose(one.entry),
                matrices(one.entry),
                numbers(one.entry),
                ", ".join(
                    f"{name} {oldest}" for name, oldest in one.entry.get("runtimes", {}).items()
                )
                or DASH,
            )
            for one in files
        ],
    )


def numbers(entry: Mapping[str, Any]) -> str:
    """Return what a file computes with, and on how many texts that was calibrated."""
    words = MODES[entry["mode"]].description if entry.get("mode") in MODES else DASH
    calibration = entry.get("calibration")
    return f"{words} on {calibration['texts']} texts" if calibration else words


def purpose(entry: Mapping[str, Any]) -> str:
    """Return what a file's recipe is for, and the sizes of a static build."""
    recipe = RECIPES.get(entry["recipe"])
    words = recipe.purpose if recipe else "a recipe file"
    if shapes := entry.get("shapes"):
        words += (
            f"; static: sources of {listed(shapes['source_lengths'])} tokens, texts of "
            f"{shapes['target_length']}, {listed(shapes['num_beams'])} beams"
        )
    return words


def listed(numbers: Iterable[int]) -> str:
    """Return numbers as words have them."""
    return " or ".join(map(str, numbers))


def matrices(entry: Mapping[str, Any]) -> str:
    """Return how a file stores its matrices."""
    storages = dict.fromkeys(storage for _, storage in entry.get("layers", [])) or ("float32",)
    return "; ".join(STORAGES[name].description for name in storages)


def cost_table(files: Sequence[Reported]) -> str:
    """Return the table of sizes and of how far files are from the float model."""
    return table(
        (
            "file", "MB", "bytes a parameter", "same next token", "divergence", "same texts",
            "ROUGE-L", f"lost, {CONFIDENCE:.0%} interval",
        ),
        [
            (
                code(one.name),
                f"{one.megabytes:.1f}",
                f"{one.bytes_a_parameter:.3f}",
                share(one.figures.get("top1")),
                DASH if one.figures.get("kl") is None else f"{one.figures['kl']:.2g}",
                share(one.figures.get("tokens")),
                DASH if one.rouge_l is None else f"{one.rouge_l['file']:.2f}",
                loss(one.rouge_l),
            )
            for one in files
        ],
        numbers=7,
    )  # fmt: skip


def share(value: float | None) -> str:
    """Return a share in per cent."""
    return DASH if value is None else f"{100 * value:.1f} %"


def loss(rouge: Mapping[str, float] | None) -> str:
    """Return what is lost in points of ROUGE, and between what that lies."""
    if rouge is None:
        return DASH
    low, high = rouge["low"], rouge["high"]
    return f"{rouge['loss']:+.2f} ({low:+.2f} to {high:+.2f})".replace("-", "\N{MINUS SIGN}")


def speed_table(files: Sequence[Reported], num_beams: Sequence[int], new_tokens: int) -> str:
    """Return the table of times, for each number of beams."""
    lengths = [source for one in files for source in one.sources(num_beams[0], "encode_seconds")]
    longest = max(lengths, default=0)
    heads = ["file", f"encoder, {longest} tokens, ms"]
    for beams in num_beams:
        how = "greedy" if beams == 1 else f"{beams} beams"
        heads += [f"a token, {how}, ms", f"tokens a second, {how}"]
    rows = []
    for one in files:
        row = [code(one.name), milliseconds(one, num_beams[0], "encode_seconds", longest)]
        for beams in num_beams:
            rate = one.tokens_per_second(beams, new_tokens)
            row += [
                milliseconds(one, beams, "token_seconds", longest),
                DASH if rate is None else f"{rate:.0f}",
            ]
        rows.append(row)
    return table(heads, rows, numbers=len(heads) - 1)


def milliseconds(one: Reported, num_beams: int, figure: str, source: int) -> str:
    """Return a time at a length of the source."""
    seconds = one.sources(num_beams, figure).get(source)
    return DASH if seconds is None else f"{1000 * seconds:.2f}"


LAYERED = re.compile(r"(.*_)\d+")  # a tensor that there is for every decoder layer


def signature_table(manifest: Mapping[str, Any]) -> str:
    """Return the table of the signatures of those targets that there are files of.

    Tensors that there are for every layer stand once.
    """
    targets = {entry.get("target") for entry in manifest["files"].values()}
    return table(
        ("target", "signature", "inputs", "outputs"),
        [
            (target, code(name), gathered(signature["inputs"]), gathered(signature["outputs"]))
            for target, declared in manifest["signatures"].items()
            for name, signature in declared.items()
            if target in targets
        ],
    )


def gathered(tensors: Mapping[str, Any]) -> str:
    """Return tensors, one a line, with those of all layers as one."""
    found: dict[str, str] = {}
    for name, details in tensors.items():
        layered = LAYERED.fullmatch(name)
        shown = f"{code(f'{layered[1]}0')} …" if layered else code(name)
        found.setdefault(shown, f"{shown} {details['dtype']} {shape(details['shape'])}")
    return "<br>".join(found.values())


def shape(axes: Sequence[int | str] | None) -> str:
    """Return a shape as the report has it."""
    return DASH if axes is None else f"({', '.join(map(str, axes))})"


def contents(manifest: Mapping[str, Any]) -> str:
    """Return the table of what is in the directory, the versions of a SavedModel as one each."""
    verified = {row["file"]: row for row in manifest["verification"]}
    sizes: dict[str, int] = {}
    for name, entry in manifest["files"].items():
        whole = next((file for file in verified if name.startswith(f"{file}/")), name)
        sizes[whole] = sizes.get(whole, 0) + entry["bytes"]
    return table(
        ("file or directory", "what was compared with the float model", "bytes"),
        [
            (code(name), compared(verified.get(name)), f"{size:,}")
            for name, size in sorted(sizes.items())
        ],
        numbers=1,
    )


def compared(row: Mapping[str, Any] | None) -> str:
    """Return the numbers of a row of verification, by their names."""
    if row is None:
        return DASH
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
