"""The strict check: a checkpoint holds exactly the weights its configuration asks for.

Flows in: the tensors that weight files announce in their headers (`Entry`) and the rows of
`checkpoints.names`. Flows out: `StoredWeights`, a mapping that reads one tensor at a time, or a
`CheckpointError` that lists everything missing, surplus and misshapen in one line. It knows no file
format; an entry's `read` does.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export.checkpoints.names import Shape, Weight
from bart_export.errors import CheckpointError

Array = npt.NDArray[Any]

FLOATING = ("float16", "bfloat16", "float32", "float64")
LISTED = 12  # tensors named in an error line; the rest is counted


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor as a weight file announces it; `dtype` is NumPy's word, `read()` loads it."""

    file: Path
    shape: Shape
    dtype: str
    read: Callable[[], Array]


class StoredWeights(Mapping[str, Array]):
    """Canonical name → array of the row's shape in the stored dtype, read at each lookup.

    Raises:
        CheckpointError: from a lookup, when the file cannot be read any more or when the tensor
            holds a value that is no finite number of float32.
    """

    def __init__(
        self,
        rows: tuple[Weight, ...],
        entries: Mapping[str, Entry],
        arrange: Callable[[Weight, Array], Array],
    ) -> None:
        self._rows = {row.name: row for row in rows}
        self._entries = entries
        self._arrange = arrange

    def __getitem__(self, name: str) -> Array:
        row, entry = self._rows[name], self._entries[name]
        values = entry.read()
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32, copy=False)).all()
        if not finite:
            raise CheckpointError(
                f"{entry.file} holds infinite or undefined numbers in the tensor {name}, or some "
                "that float32 cannot hold; training diverged or the file is damaged. Use another "
                "copy of the checkpoint."
            )
        return self._arrange(row, values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def check(
    place: Path,
    expected: Mapping[str, tuple[Shape, ...]],
    entries: Mapping[str, Entry],
    explanations: Mapping[str, str] | None = None,
) -> None:
    """Check that `entries` are exactly the `expected` tensors, both under the names of the file.

    `expected` gives the accepted shapes of each tensor. `explanations` tells, by the beginning of a
    name, what a surplus tensor is.

    Raises:
        CheckpointError: naming all that is missing, surplus, misshapen or not a floating number.
    """
    missing = [name for name in expected if name not in entries]
    surplus = [name for name in entries if name not in expected]
    both = [name for name in expected if name in entries]
    misshapen = [
        f"{name} of shape {show(entries[name].shape)} instead of {show(expected[name][0])}"
        for name in both
        if entries[name].shape not in expected[name]
    ]
    other = [
        f"{name} of dtype {entries[name].dtype}"
        for name in both
        if entries[name].dtype not in FLOATING
    ]
    findings = [
        f"{word} {listing(names)}"
        for word, names in (
            ("missing", missing),
            ("surplus", surplus),
            ("misshapen", misshapen),
            ("not floating point (quantized checkpoints cannot be read)", other),
        )
        if names
    ]
    if not findings:
        return
    reasons = {
        reason
        for beginning, reason in (explanations or {}).items()
        if any(name.startswith(beginning) for name in surplus)
    }
    raise CheckpointError(
        " ".join(
            [
                f"The weights in {place} are not those its configuration describes: "
                f"{'; '.join(findings)}.",
                *sorted(reasons),
            ]
        )
    )


def listing(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown


def show(shape: Shape) -> str:
    """Return a shape as a reader expects it: [2, 3]."""
    return str(list(shape))
