"""Coral's compiler: what it would make of a file by its rules, and what it makes where installed.

`check_file` gives every operation a status in the compiler's own words. Operations that break no
rule are then partitioned as TensorFlow Lite does for a delegate: the Edge TPU takes one part, the
first, and all that depends on an operation outside runs on the CPU. The compiler itself knows more
rules than are published (see `edgetpu.rules`).

`edgetpu_compiler` runs on x86-64 Linux alone and is no longer developed. This project's tests have
no compiler to run: the form of its log is that of the logs people published.
"""

import dataclasses
import pathlib
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence

from bart_export.edgetpu import model_file, rules
from bart_export.edgetpu.model_file import Operation
from bart_export.edgetpu.rules import MAPPED
from bart_export.errors import EngineError

SHOWN = 3  # of the faults that make the compiler refuse a file; there may be hundreds
DAMAGE = (struct.error, AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError)


@dataclasses.dataclass(frozen=True)
class Row:
    """One operation of a file and what becomes of it.

    `number` counts within `subgraph`. `rule` is the name of the rule that it breaks and `reason`
    what breaks it, both "" where none is broken. `parameter_bytes` are those of its constants.
    """

    subgraph: int
    number: int
    operator: str
    version: int
    output: str
    status: str
    rule: str
    reason: str
    parameter_bytes: int

    @property
    def mapped(self) -> bool:
        """Whether the Edge TPU runs it."""
        return self.status == MAPPED


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler would make of a file.

    `refusals` say why it would read nothing of it; the rows then tell what would become of the
    operations without that. `parameter_bytes` are those of the constants of mapped operations,
    each buffer once.
    """

    file: str
    refusals: tuple[str, ...]
    rows: tuple[Row, ...]
    parameter_bytes: int

    @property
    def passes(self) -> bool:
        """Whether the Edge TPU runs the whole file."""
        return not self.refusals and bool(self.rows) and all(row.mapped for row in self.rows)

    @property
    def on_chip_bytes(self) -> int:
        """Parameters that stay in the Edge TPU's memory between runs."""
        return min(self.parameter_bytes, rules.CACHE_BYTES)

    @property
    def streamed_bytes(self) -> int:
        """Parameters that have to be sent to the Edge TPU at every run."""
        return self.parameter_bytes - self.on_chip_bytes

    def to_dict(self) -> dict[str, object]:
        """Return the report as JSON has it."""
        return {
            **dataclasses.asdict(self),
            "passes": self.passes,
            "on_chip_bytes": self.on_chip_bytes,
            "streamed_bytes": self.streamed_bytes,
        }


def check_file(path: pathlib.Path) -> Report:
    """Check a `.tflite` file against the compiler's rules.

    Raises:
        EngineError: for a file that cannot be read, is no `.tflite` file, or is damaged.
    """
    try:
        operations = model_file.read_operations(path)
        faults = [first_fault(operation) for operation in operations]
        taken = partition(operations, [status == MAPPED for status, _, _ in faults])
        rows = []
        for place, (operation, fault) in enumerate(zip(operations, faults, strict=True)):
            if fault[0] == MAPPED and place not in taken:
                fault = rules.AFTERWARDS, "", ""
            rows.append(
                Row(
                    operation.subgraph,
                    operation.number,
                    operation.operator,
                    operation.version,
                    operation.outputs[0].name if operation.outputs else "",
                    *fault,
                    constant_bytes([operation]),
                )
            )
        parameter_bytes = constant_bytes(operations[place] for place in sorted(taken))
        return Report(str(path), refusals(operations), tuple(rows), parameter_bytes)
    except DAMAGE as error:
        raise EngineError(f"{path} begins like a .tflite file but is damaged: {error}.") from error


def first_fault(operation: Operation) -> tuple[str, str, str]:
    """Return an operation's status by itself, and the first rule that it breaks, and how."""
    for rule in rules.RULES:
        if fault := rule.fault(operation):
            return rule.status, rule.name, fault
    if operation.subgraph > 0:  # a delegate of TensorFlow Lite is given the first subgraph
        return rules.NOT_MAPPED, "first subgraph", f"subgraph {operation.subgraph} of the file"
    return MAPPED, "", ""


def refusals(operations: Sequence[Operation]) -> tuple[str, ...]:
    """Return why the compiler would read nothing of a file: a line for each rule that says so."""
    lines = []
    for rule in filter(lambda rule: rule.refuses, rules.RULES):
        faults = list(dict.fromkeys(filter(None, map(rule.fault, operations))))
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        if faults:
            lines.append(f"{rule.status}: {', '.join(faults[:SHOWN])}{more}")
    return tuple(lines)


def partition(operations: Sequence[Operation], fit: Sequence[bool]) -> frozenset[int]:
    """Return the places of the operations that the Edge TPU takes.

    As TensorFlow Lite does: of the operations whose inputs are there, those that fit are gathered
    until none is left, then those that do not, and in turns. The first gathering of the former is
    the one part that is compiled, so that an operation which does not fit and comes first, as the
    quantization of a float input, ends nothing.
    """
    waiting = [place for place, operation in enumerate(operations) if operation.subgraph == 0]
    missing = {output.index for place in waiting for output in operations[place].outputs}
    reads = [
        {given.index for given in operation.inputs if given is not None} for operation in operations
    ]
    gathered: set[int] = set()
    turn: bool | None = None
    while waiting:
        ready = [place for place in waiting if not reads[place] & missing]
        ours = [place for place in ready if fit[place] == turn]
        if not ours:
            if not ready or (turn and gathered):
                break
            turn = fit[ready[0]]
            continue
        if turn:
            gathered.update(ours)
        missing -= {output.index for place in ours for output in operations[place].outputs}
        waiting = [place for place in waiting if place not in ours]
    return frozenset(gathered)


def constant_bytes(operations: Iterable[Operation]) -> int:
    """Return how many bytes of constants some operations read, each buffer once."""
    sizes = {
        given.buffer: given.constant.nbytes
        for operation in operations
        for given in operation.inputs
        if given is not None and given.constant is not None
    }
    return sum(sizes.values())


PROGRAM = "edgetpu_compiler"
SECONDS = 600  # the compiler ends itself after 180
FILE = re.compile(r"^(?=Input model: .)", re.MULTILINE)
FIELD = re.compile(r"^([A-Z][^:\n]*): (.+)$", re.MULTILINE)
SIZES = {
    "on_chip_bytes": "On-chip memory used for caching model parameters",
    "remaining_bytes": "On-chip memory remaining for caching model parameters",
    "streamed_bytes": "Off-chip memory used for streaming uncached model parameters",
}
# A line of the table: operator, count and status, two or more blanks apart.
ROW = re.compile(r"^([A-Za-z][\w-]*)\s{2,}(\d+)\s{2,}(\S.*?)\s*$", re.MULTILINE)
ERROR = re.compile(
    r"^(?:ERROR: .*|Invalid model: .*|Compilation failed.*|Internal compiler error.*|"
    r"Model could not be parsed.*)$",
    re.MULTILINE,
)
SIZE = re.compile(r"([\d.]+)(B|KiB|MiB|GiB)")
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


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

    def to_dict(self) -> dict[str, object]:
        """Return what the compiler says as JSON has it."""
        return {**dataclasses.asdict(self), "passes": self.passes}


def program() -> str | None:
    """Return where the compiler is, None where it is not on PATH."""
    return shutil.which(PROGRAM)


def compile_files(paths: Sequence[pathlib.Path], directory: pathlib.Path) -> tuple[Compiled, ...]:
    """Compile files into `NAME_edgetpu.tflite` in a directory.

    They are compiled together, and share the Edge TPU's memory for parameters.

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
    log = run.stdout + run.stderr
    compiled = parse_log(log)
    if run.returncode or not compiled:
        message = "; ".join(ERROR.findall(log)) or f"exit status {run.returncode}"
        raise EngineError(f"{PROGRAM} compiled nothing: {message}")
    return compiled


def parse_log(text: str) -> tuple[Compiled, ...]:
    """Return what the compiler printed of each file."""
    compiled = []
    for part in FILE.split(text)[1:]:
        fields = dict(FIELD.findall(part))
        sizes = {name: parse_size(fields.get(field, "")) for name, field in SIZES.items()}
        compiled.append(
            Compiled(
                file=fields["Input model"],
                output=fields.get("Output model", ""),
                subgraphs=int(fields.get("Number of Edge TPU subgraphs", 0)),
                rows=tuple(LogRow(name, int(n), status) for name, n, status in ROW.findall(part)),
                **sizes,
            )
        )
    return tuple(compiled)


def parse_size(text: str) -> int:
    """Return the bytes of a size as the compiler writes it, "1.92MiB"; 0 for none."""
    match = SIZE.fullmatch(text.strip())
    return round(float(match[1]) * UNITS[match[2]]) if match else 0
