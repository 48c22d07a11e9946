"""Lazy weights, checks of their names and shapes, and readers of safetensors and PyTorch files.

Each reader returns an `Entry` per tensor from a file's header; values are read when they are looked
up. The reader of HDF5 files is in `keras_weights`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bart_export.checkpoints.files import indexed_files, require_file
from bart_export.checkpoints.weight_names import Shape, Weight
from bart_export.errors import CheckpointError, import_extra, one_line

Array = npt.NDArray[Any]

FLOATING = ("float16", "bfloat16", "float32", "float64")
LISTED = 12  # names in an error message; the others are counted
# safetensors' dtypes → NumPy's.
SAFETENSORS_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "U8": "uint8",
}
HEADER_LIMIT = 16_000_000  # bytes; a thousand layers need a quarter of it
SAFE_PYTORCH = (2, 6)  # CVE-2025-32434


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor in a weight file's header; `dtype` is NumPy's name; `read()` loads the values."""

    file: Path
    shape: Shape
    dtype: str
    read: Callable[[], Array]


class LazyWeights(Mapping[str, Array]):
    """A mapping from names to arrays; every lookup reads the array again."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Array]) -> None:
        self._names = dict.fromkeys(names)
        self._read = read

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stored_weights(
    rows: tuple[Weight, ...],
    entries: Mapping[str, Entry],
    arrange: Callable[[Weight, Array], Array] = lambda row, values: values,
) -> LazyWeights:
    """Return arrays by canonical name, with the rows' shapes and the stored dtypes.

    A lookup raises CheckpointError if the file cannot be read or a value is not finite in float32.
    """
    named = {row.name: row for row in rows}

    def read(name: str) -> Array:
        entry = entries[name]
        values = entry.read()
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32, copy=False)).all()
        if not finite:
            raise CheckpointError(
                f"{entry.file} has infinities, NaNs or values beyond float32 in the tensor {name}; "
                "training diverged or the file is damaged. Use another copy of the checkpoint."
            )
        return arrange(named[name], values)

    return LazyWeights(named, read)


def read_entries(
    directory: Path,
    formats: Mapping[str, Callable[[Path], Mapping[str, Entry]]],
    normalize: Callable[[str], str],
) -> tuple[Path, tuple[Path, ...], dict[str, Entry]]:
    """Return a directory's weight file or index, all its weight files, and their tensors.

    `formats` maps file names to readers in order of precedence; a .json file is an index of shards.
    `normalize` maps the stored name of a tensor to the name of its entry.

    Raises:
        CheckpointError: if a file is missing or damaged, or a tensor is stored twice.
        MissingExtra: if a package that reads the files is not installed.
    """
    for name, reader in formats.items():
        place = directory / name
        if not place.is_file():
            continue
        files = indexed_files(place) if name.endswith(".json") else (place,)
        entries: dict[str, Entry] = {}
        for file in files:
            require_file(file)
            for tensor, entry in reader(file).items():
                name = normalize(tensor)
                if name in entries:
                    raise CheckpointError(f"{place} stores the tensor {name} twice.")
                entries[name] = entry
        return place, files, entries
    raise CheckpointError(f"{directory} has no weights. Expected one of {', '.join(formats)}.")


def require_exactly(
    place: Path,
    expected: Mapping[str, tuple[Shape, ...]],
    entries: Mapping[str, Entry],
    explanations: Mapping[str, str] | None = None,
) -> None:
    """Require that `entries` are exactly the `expected` tensors, by stored names.

    `expected` maps names to accepted shapes; `explanations` maps prefixes of unexpected names to
    sentences for the error message.

    Raises:
        CheckpointError: listing missing and unexpected tensors, wrong shapes and wrong dtypes.
    """
    surplus = [name for name in entries if name not in expected]
    both = {name: entries[name] for name in expected if name in entries}
    findings = {
        "missing": [name for name in expected if name not in entries],
        "unexpected": surplus,
        "wrong shape:": [
            f"{name} has {list(entry.shape)} instead of {list(expected[name][0])}"
            for name, entry in both.items()
            if entry.shape not in expected[name]
        ],
        "not floating point (quantized checkpoints are not supported)": [
            f"{name} of dtype {entry.dtype}"
            for name, entry in both.items()
            if entry.dtype not in FLOATING
        ],
    }
    found = [f"{word} {listing(names)}" for word, names in findings.items() if names]
    if not found:
        return
    reasons = {
        reason
        for beginning, reason in (explanations or {}).items()
        if any(name.startswith(beginning) for name in surplus)
    }
    line = f"The weights in {place} do not match its configuration: {'; '.join(found)}."
    raise CheckpointError(" ".join([line, *sorted(reasons)]))


def require_names(expected: Iterable[str], weights: Mapping[str, object]) -> None:
    """Raise CheckpointError, with the names, if any are missing or unexpected."""
    names = set(expected)
    missing, surplus = sorted(names - weights.keys()), sorted(weights.keys() - names)
    found = [f"missing {', '.join(missing)}"] if missing else []
    found += [f"unexpected {', '.join(surplus)}"] if surplus else []
    if found:
        raise CheckpointError(
            f"The weights do not match the model's configuration: {'; '.join(found)}."
        )


def listing(names: list[str]) -> str:
    """Return the first names and the number of the others."""
    shown = ", ".join(names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype, with ml_dtypes for bfloat16."""
    if name != "bfloat16":
        return np.dtype(name)
    dtype: np.dtype[Any] = np.dtype(import_extra("ml_dtypes", "Reading bfloat16 weights").bfloat16)
    return dtype


def read_safetensors(path: Path) -> dict[str, Entry]:
    """Return the tensors of a safetensors file from its header, which the library validates.

    Format: https://huggingface.co/docs/safetensors

    Raises:
        CheckpointError: if the file is truncated or invalid.
        MissingExtra: if safetensors is not installed.
    """
    with open_safetensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, no mapping
        return {
            name: Entry(
                path,
                tuple(each.get_shape()),
                SAFETENSORS_DTYPES.get(each.get_dtype(), each.get_dtype()),
                partial(read_safetensor, path, name),
            )
            for name, each in slices.items()
        }


def read_safetensor(path: Path, name: str) -> Array:
    """Read one tensor of a safetensors file."""
    with open_safetensors(path) as file:
        values: Array = file.get_tensor(name)
    return values


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file and validate its header."""
    safetensors = import_extra("safetensors", "Reading .safetensors files")
    try:
        with path.open("rb") as file:
            if (length := int.from_bytes(file.read(8), "little")) > HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes")
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({one_line(error)}); it is damaged or "
            "incomplete. Download it again."
        ) from error


def read_pytorch(path: Path) -> dict[str, Entry]:
    """Return the tensors of a PyTorch weight file.

    The file is a pickle, loaded with `torch.load(weights_only=True)`, which builds only tensors.

    Raises:
        CheckpointError: if PyTorch is not installed or too old to be safe, or cannot load the file.
    """
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{path} is a pickle, which can only be read with PyTorch, and PyTorch is not "
            "installed. Install torch, or use a copy with model.safetensors "
            "(model.save_pretrained(directory) writes one)."
        ) from error
    version = str(torch.__version__)
    if tuple(int(number) for number in version.split(".")[:2]) < SAFE_PYTORCH:
        raise CheckpointError(
            f"{path} is a pickle, and the restricted loader of PyTorch before 2.6 can be made to "
            f"run code; PyTorch {version} is installed. Update torch, or use a copy with "
            "model.safetensors."
        )

    def read(tensor: Any) -> Array:
        if tensor.dtype == torch.bfloat16:  # which NumPy does not have
            bits: Array = tensor.contiguous().view(torch.int16).numpy()
            return bits.view(numpy_dtype("bfloat16"))
        values: Array = tensor.contiguous().numpy()
        return values

    try:
        # Files from before PyTorch 1.6 cannot be memory-mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {
            name: Entry(
                path,
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                partial(read, tensor),
            )
            for name, tensor in tensors.items()
        }
    except Exception as error:
        # RuntimeError, UnpicklingError, EOFError and others. Their messages have many lines and
        # advise loading the file without the restriction.
        raise CheckpointError(
            f"{path} cannot be loaded as plain tensors: it is damaged or incomplete, or contains "
            "other objects."
        ) from error
