"""The checker: a `.tflite` file goes in, what Coral's compiler would make of it comes out.

Every operation gets a status in the compiler's own words. Those that break no rule are then parted
as TensorFlow Lite parts a graph for a delegate: the Edge TPU takes one part, the first, and all
that depends on an operation outside runs on the CPU. A report is only as good as the published
rules: the compiler itself knows more of them (see `edgetpu.rules`).
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from bart_export.edgetpu.model_file import Operand, Operation, read
from bart_export.edgetpu.rules import AFTERWARDS, CACHE_BYTES, MAPPED, NOT_MAPPED, RULES, Rule
from bart_export.errors import EngineError

SHOWN = 3  # of the faults that make the compiler refuse a file; there may be hundreds


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
        return min(self.parameter_bytes, CACHE_BYTES)

    @property
    def streamed_bytes(self) -> int:
        """Parameters that have to be sent to the Edge TPU at every run."""
        return self.parameter_bytes - self.on_chip_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return {
            **dataclasses.asdict(self),
            "passes": self.passes,
            "on_chip_bytes": self.on_chip_bytes,
            "streamed_bytes": self.streamed_bytes,
        }


def check(path: pathlib.Path) -> Report:
    """Check a `.tflite` file against the compiler's rules.

    Raises:
        EngineError: for a file that cannot be read, is no `.tflite` file, or is damaged.
    """
    operations = read(path)
    try:
        broken = [first_broken(operation) for operation in operations]
        return report(path, operations, broken)
    except (AttributeError, IndexError, ValueError, ZeroDivisionError) as error:
        raise EngineError(f"{path} begins like a .tflite file but is damaged: {error}.") from error


def first_broken(operation: Operation) -> tuple[Rule, str] | None:
    """Return the first rule that an operation breaks, and how, or None."""
    for rule in RULES:
        if reason := rule.fault(operation):
            return rule, reason
    return None


def refusals(operations: Iterable[Operation]) -> tuple[str, ...]:
    """Return why the compiler would read nothing of a file: a line for each rule that says so."""
    lines = []
    for rule in RULES:
        if rule.refuses:
            faults = (rule.fault(operation) for operation in operations)
            different = [fault for fault in dict.fromkeys(faults) if fault]
            more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
            if different:
                lines.append(f"{rule.status}: {', '.join(different[:SHOWN])}{more}")
    return tuple(lines)


def report(
    path: pathlib.Path,
    operations: Sequence[Operation],
    broken: Sequence[tuple[Rule, str] | None],
) -> Report:
    """Put a report together of what each operation breaks."""
    taken = partition(operations, [one is None for one in broken])
    rows = []
    for place, (operation, fault) in enumerate(zip(operations, broken, strict=True)):
        status, rule, reason = MAPPED, "", ""
        if fault is not None:
            status, rule, reason = fault[0].status, fault[0].name, fault[1]
        elif operation.subgraph > 0:
            # A delegate of TensorFlow Lite is given the first subgraph.
            status, rule = NOT_MAPPED, "first subgraph"
            reason = f"subgraph {operation.subgraph} of the file"
        elif place not in taken:
            status = AFTERWARDS
        output = operation.outputs[0].name if operation.outputs else ""
        rows.append(
            Row(
                operation.subgraph,
                operation.number,
                operation.operator,
                operation.version,
                output,
                status,
                rule,
                reason,
                constant_bytes([operation]),
            )
        )
    mapped = [operations[place] for place in sorted(taken)]
    return Report(str(path), refusals(operations), tuple(rows), constant_bytes(mapped))


def partition(operations: Sequence[Operation], fit: Sequence[bool]) -> frozenset[int]:
    """Return the places of the operations that the Edge TPU takes.

    As TensorFlow Lite does: of the operations whose inputs are there, those that fit are gathered
    until none is left, then those that do not, and in turns. The first gathering of the former is
    the one part that is compiled, so that an operation which does not fit and comes first, as the
    quantization of a float input, ends nothing.
    """
    waiting = [place for place, one in enumerate(operations) if one.subgraph == 0]
    missing = {output.index for place in waiting for output in operations[place].outputs}
    gathered: set[int] = set()
    turn: bool | None = None
    while waiting:
        ready = [place for place in waiting if not needs(operations[place]) & missing]
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


def needs(operation: Operation) -> set[int]:
    """Return the tensors that an operation reads."""
    return {given.index for given in operation.inputs if given is not None}


def constant_bytes(operations: Iterable[Operation]) -> int:
    """Return how many bytes of constants some operations read, each buffer once."""
    buffers: dict[int, Operand] = {
        given.buffer: given
        for operation in operations
        for given in operation.inputs
        if given is not None and given.constant is not None
    }
    return sum(one.constant.nbytes for one in buffers.values() if one.constant is not None)
