"""Coral's own compiler, where it is installed: `.tflite` files go in, what it made and said out.

`edgetpu_compiler` runs on x86-64 Linux alone and is no longer developed. What it prints is read
into values: for each file memory, counts, and the table of operators with a status each. Files that
are compiled together share the Edge TPU's memory for parameters. This project's tests have no
compiler to run: the form of its log is that of the logs people published.
"""

import dataclasses
import itertools
import pathlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from bart_export.edgetpu.rules import MAPPED
from bart_export.errors import EngineError

PROGRAM = "edgetpu_compiler"
SECONDS = 600  # the compiler ends itself after 180
VERSION = re.compile(r"^Edge TPU Compiler version (\S+)", re.MULTILINE)
FILE = re.compile(r"^Input model: (.+)$", re.MULTILINE)
# A line of the table: operator, count and status, two or more blanks apart.
ROW = re.compile(r"^([A-Za-z][\w-]*)\s{2,}(\d+)\s{2,}(\S.*?)\s*$", re.MULTILINE)
ERROR = re.compile(
    r"^(?:ERROR: .*|Invalid model: .*|Compilation failed.*|Internal compiler error.*|"
    r"Model could not be parsed.*)$",
    re.MULTILINE,
)
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
ON_CHIP = "On-chip memory used for caching model parameters"
REMAINING = "On-chip memory remaining for caching model parameters"
STREAMED = "Off-chip memory used for streaming uncached model parameters"


@dataclasses.dataclass(frozen=True)
class LogRow:
    """One line of the compiler's table: so many operations of an operator, and their status."""

    operator: str
    count: int
    status: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one file. Sizes are those of parameters, in bytes."""

    file: str
    output: str
    on_chip_bytes: int
    remaining_bytes: int
    streamed_bytes: int
    subgraphs: int
    rows: tuple[LogRow, ...]

    @property
    def passes(self) -> bool:
        """Whether the Edge TPU runs the whole file."""
        return bool(self.rows) and all(row.status == MAPPED for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return what the compiler says as JSON has it."""
        return {**dataclasses.asdict(self), "passes": self.passes}


@dataclasses.dataclass(frozen=True)
class Log:
    """What the compiler printed: its version, a value for each file, and what failed."""

    version: str
    files: tuple[Compiled, ...]
    errors: tuple[str, ...]


def program() -> str | None:
    """Return where the compiler is, None where it is not on PATH."""
    return shutil.which(PROGRAM)


def compile_files(paths: Sequence[pathlib.Path], directory: pathlib.Path) -> Log:
    """Compile files, together, into `NAME_edgetpu.tflite` in a directory.

    Raises:
        EngineError: if the compiler is not on PATH, or compiles nothing.
    """
    compiler = program()
    if compiler is None:
        raise EngineError(
            f"{PROGRAM} is not on PATH. Coral's documentation says how to install it, on x86-64 "
            "Linux alone."
        )
    command = [compiler, "-s", "-o", str(directory), *map(str, paths)]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{PROGRAM} could not be run: {error}.") from error
    log = parse(run.stdout + run.stderr)
    if run.returncode or not log.files:
        said = "; ".join(log.errors) or f"exit status {run.returncode}"
        raise EngineError(f"{PROGRAM} compiled nothing: {said}")
    return log


def parse(text: str) -> Log:
    """Read what the compiler printed."""
    version = VERSION.search(text)
    begins = [match.start() for match in FILE.finditer(text)]
    parts = [text[begin:end] for begin, end in itertools.pairwise([*begins, len(text)])]
    return Log(
        version=version[1] if version else "",
        files=tuple(parse_file(part) for part in parts),
        errors=tuple(match[0] for match in ERROR.finditer(text)),
    )


def parse_file(text: str) -> Compiled:
    """Read what the compiler printed of one file."""
    fields = dict(re.findall(r"^([A-Z][^:\n]*): (.+)$", text, re.MULTILINE))
    rows = tuple(LogRow(name, int(count), status) for name, count, status in ROW.findall(text))
    return Compiled(
        file=fields.get("Input model", ""),
        output=fields.get("Output model", ""),
        on_chip_bytes=size(fields.get(ON_CHIP, "")),
        remaining_bytes=size(fields.get(REMAINING, "")),
        streamed_bytes=size(fields.get(STREAMED, "")),
        subgraphs=int(fields.get("Number of Edge TPU subgraphs", 0)),
        rows=rows,
    )


def size(text: str) -> int:
    """Return the bytes of a size as the compiler writes it, "1.92MiB"; 0 for none."""
    match = re.fullmatch(r"([\d.]+)([KMG]?i?B)", text.strip())
    return round(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
