"""Predicts how Coral's compiler maps a file, and runs the compiler if it is installed.

Operations that break no rule are partitioned as TensorFlow Lite does for a delegate: the Edge TPU
runs the first partition, and the CPU everything else. `edgetpu_compiler` is no longer developed and
runs on x86-64 Linux only. It was not available to this project's tests, so its log format is taken
from published logs.
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

SHOWN = 3  # faults per rule in a refusal; there may be hundreds
DAMAGE = (struct.error, AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError)


@dataclasses.dataclass(frozen=True)
class OperationRow:
    """An operation of a file and its status.

    `number` is its index in `subgraph`. `rule` names the first rule that it breaks, and `reason`
    says how; both are "" if it breaks none. `parameter_bytes` is the size of its constants.
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
class CompilerReport:
    """The compiler's expected result for a file.

    `refusals` say why the compiler would reject the whole file; the rows then show what would
    otherwise happen to its operations. `parameter_bytes` is the size of the constants of mapped
    operations, with each buffer counted once.
    """

    file: str
    refusals: tuple[str, ...]
    rows: tuple[OperationRow, ...]
    parameter_bytes: int

    @property
    def passes(self) -> bool:
        """Whether the Edge TPU runs the whole file."""
        return not self.refusals and bool(self.rows) and all(row.mapped for row in self.rows)

    @property
    def on_chip_bytes(self) -> int:
        """The size of the parameters that stay in the Edge TPU's memory between runs."""
        return min(self.parameter_bytes, rules.CACHE_BYTES)

    @property
    def streamed_bytes(self) -> int:
        """The size of the parameters that are sent to the Edge TPU in every run."""
        return self.parameter_bytes - self.on_chip_bytes

    def to_dict(self) -> dict[str, object]:
        """Return the report in its JSON form."""
        return {
            **dataclasses.asdict(self),
            "passes": self.passes,
            "on_chip_bytes": self.on_chip_bytes,
            "streamed_bytes": self.streamed_bytes,
        }


def check_file(path: pathlib.Path) -> CompilerReport:
    """Check a `.tflite` file against the compiler's rules.

    Raises:
        EngineError: if the file cannot be read, is not a `.tflite` file, or is damaged.
    """
    try:
        operations = model_file.read_operations(path)
        faults = [operation_status(operation) for operation in operations]
        mapped = partition(operations, [status == MAPPED for status, _, _ in faults])
        rows = []
        for index, (operation, fault) in enumerate(zip(operations, faults, strict=True)):
            if fault[0] == MAPPED and index not in mapped:
                fault = rules.AFTERWARDS, "", ""
            rows.append(
                OperationRow(
                    operation.subgraph,
                    operation.number,
                    operation.operator,
                    operation.version,
                    operation.outputs[0].name if operation.outputs else "",
                    *fault,
                    constant_bytes([operation]),
                )
            )
        parameter_bytes = constant_bytes(operations[index] for index in sorted(mapped))
        return CompilerReport(str(path), refusals(operations), tuple(rows), parameter_bytes)
    except DAMAGE as error:
        raise EngineError(f"{path} is a .tflite file but is damaged: {error}.") from error


def operation_status(operation: Operation) -> tuple[str, str, str]:
    """Return an operation's status, the first rule that it breaks and how; "" if none."""
    for rule in rules.RULES:
        if fault := rule.fault(operation):
            return rule.status, rule.name, fault
    if operation.subgraph > 0:  # a TensorFlow Lite delegate gets only the first subgraph
        return rules.NOT_MAPPED, "first subgraph", f"subgraph {operation.subgraph} of the file"
    return MAPPED, "", ""


def refusals(operations: Sequence[Operation]) -> tuple[str, ...]:
    """Return why the compiler would reject a whole file, one line per broken rule."""
    lines = []
    for rule in filter(lambda rule: rule.refuses, rules.RULES):
        faults = list(dict.fromkeys(filter(None, map(rule.fault, operations))))
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        if faults:
            lines.append(f"{rule.status}: {', '.join(faults[:SHOWN])}{more}")
    return tuple(lines)


def partition(operations: Sequence[Operation], supported: Sequence[bool]) -> frozenset[int]:
    """Return the indices of the operations that the Edge TPU runs.

    This follows TensorFlow Lite: among the operations whose inputs are available, all supported
    ones are collected until none is left, then all unsupported ones, and so on in turn. Only the
    first collection of supported operations is compiled. An unsupported operation before it, such
    as the quantization of a float input, does no harm.
    """
    waiting = [index for index, operation in enumerate(operations) if operation.subgraph == 0]
    missing = {output.index for index in waiting for output in operations[index].outputs}
    reads = [
        {operand.index for operand in operation.inputs if operand is not None}
        for operation in operations
    ]
    collected: set[int] = set()
    turn: bool | None = None
    while waiting:
        ready = [index for index in waiting if not reads[index] & missing]
        batch = [index for index in ready if supported[index] == turn]
        if not batch:
            if not ready or (turn and collected):
                break
            turn = supported[ready[0]]
            continue
        if turn:
            collected.update(batch)
        missing -= {output.index for index in batch for output in operations[index].outputs}
        waiting = [index for index in waiting if index not in batch]
    return frozenset(collected)


def constant_bytes(operations: Iterable[Operation]) -> int:
    """Return the size of the constants that operations read, with each buffer counted once."""
    sizes = {
        operand.buffer: operand.constant.nbytes
        for operation in operations
        for operand in operation.inputs
        if operand is not None and operand.constant is not None
    }
    return sum(sizes.values())


PROGRAM = "edgetpu_compiler"
SECONDS = 600  # the compiler has its own timeout of 180 seconds
FILE = re.compile(r"^(?=Input model: .)", re.MULTILINE)
FIELD = re.compile(r"^([A-Z][^:\n]*): (.+)$", re.MULTILINE)
SIZES = {
    "on_chip_bytes": "On-chip memory used for caching model parameters",
    "remaining_bytes": "On-chip memory remaining for caching model parameters",
    "streamed_bytes": "Off-chip memory used for streaming uncached model parameters",
}
# A row of the table: operator, count and status, separated by two or more spaces.
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
    """A row of the compiler's table: how many operations of an operator have a status."""

    operator: str
    count: int
    status: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's log for a file. Sizes are those of parameters, in bytes."""

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
        """Return the log in its JSON form."""
        return {**dataclasses.asdict(self), "passes": self.passes}


def compiler_path() -> str | None:
    """Return the compiler's path, or None if it is not on PATH."""
    return shutil.which(PROGRAM)


def compile_files(paths: Sequence[pathlib.Path], directory: pathlib.Path) -> tuple[Compiled, ...]:
    """Write `NAME_edgetpu.tflite` files to a directory, compiled together so as to share memory.

    Raises:
        EngineError: if the compiler is not on PATH, or fails.
    """
    compiler = compiler_path()
    if compiler is None:
        raise EngineError(
            f"{PROGRAM} is not on PATH. Coral's documentation says how to install it; it runs on "
            "x86-64 Linux only."
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
    """Parse the compiler's log."""
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
    """Return the number of bytes in a size such as "1.92MiB", or 0 if it is empty."""
    match = SIZE.fullmatch(text.strip())
    return round(float(match[1]) * UNITS[match[2]]) if match else 0
