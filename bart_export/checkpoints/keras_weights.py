"""Reads and writes the HDF5 weight files of Keras presets, in one file or in shards.

Datasets are read lazily, and paths of earlier Keras versions are mapped to those in
`checkpoints.weight_names`. Links and external data are not followed, and only numbers are read.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bart_export.checkpoints import weights as weight_files
from bart_export.checkpoints.weight_names import Weight
from bart_export.checkpoints.weights import Array, Entry, numpy_dtype
from bart_export.errors import CheckpointError, import_extra, one_line

WEIGHT_FILE = "model.weights.h5"
INDEX_FILE = "model.weights.json"
SHARD_FILE = "model_{:05}.weights.h5"
GIGABYTE = 1024**3  # bytes, as Keras counts them

# Group names of earlier Keras versions → current names.
EARLIER_NAMES = {
    "_layer_checkpoint_dependencies": "layers",
    "_query_dense": "query_dense",
    "_key_dense": "key_dense",
    "_value_dense": "value_dense",
    "_output_dense": "output_dense",
}
MAX_ITEMS, MAX_DEPTH = 1 << 17, 32  # many times more than the largest BART has
SEED = "seed_generator"  # dropout's random state, which inference does not use


def import_h5py() -> Any:
    """Return h5py, which is not part of the base installation."""
    return import_extra("h5py", "Reading and writing Keras presets")


def read_entries(directory: Path) -> tuple[Path, tuple[Path, ...], dict[str, Entry]]:
    """Return the datasets of a preset under current paths; see `weights.read_entries`."""

    def current_name(name: str) -> str:
        return "/".join(EARLIER_NAMES.get(word, word) for word in name.split("/"))

    formats = {WEIGHT_FILE: read_datasets, INDEX_FILE: read_datasets}
    return weight_files.read_entries(directory, formats, current_name)


def read_datasets(path: Path) -> dict[str, Entry]:
    """Return the datasets of one file, reading only their headers."""
    h5py = import_h5py()
    try:
        with h5py.File(path, "r") as file:
            return {
                name: dataset_entry(path, name, dataset)
                for name, dataset in walk_datasets(h5py, path, file)
                if SEED not in name.split("/")
            }
    except CheckpointError:
        raise
    except Exception as error:  # h5py raises OSError, RuntimeError, KeyError, ValueError and others
        raise damaged_error(path, error) from error


def walk_datasets(h5py: Any, path: Path, file: Any) -> Iterator[tuple[str, Any]]:
    """Yield the datasets of an open file with their paths.

    Unlike h5py's `visititems`, this is bounded, and not quadratic in the depth.
    """
    waiting: list[tuple[str, Any]] = [("", file)]
    found = 0
    while waiting:
        place, group = waiting.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            found += 1
            inside, item = f"{place}{name}", group[name]
            if isinstance(item, h5py.Dataset):
                yield inside, item
            elif isinstance(item, h5py.Group):
                waiting.append((f"{inside}/", item))
            if found > MAX_ITEMS or inside.count("/") >= MAX_DEPTH:
                raise CheckpointError(
                    f"{path} must have at most {MAX_ITEMS} groups and datasets, nested at most "
                    f"{MAX_DEPTH} deep, received more. It is not a Keras preset."
                )


def dataset_entry(path: Path, name: str, dataset: Any) -> Entry:
    """Return the entry of a dataset whose values are all in this file."""
    stored, expected = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
    outside = dataset.is_virtual or dataset.external
    if outside or (stored != expected if dataset.chunks is None else not stored):
        raise CheckpointError(
            f"{path} does not contain the values of {name}; it is damaged or refers to other "
            "files. Download it again."
        )
    # NumPy has no bfloat16, so Keras stores its bits with an attribute.
    bfloat16 = dataset.attrs.get("dtype") == "bfloat16" and dataset.dtype.itemsize == 2
    dtype = "bfloat16" if bfloat16 else str(dataset.dtype.newbyteorder("="))
    return Entry(path, dataset.shape, dtype, partial(read_values, path, name, dtype))


def read_values(path: Path, name: str, dtype: str) -> Array:
    """Read one dataset."""
    h5py = import_h5py()
    try:
        with h5py.File(path, "r") as file:
            values: Array = file[name][()]
    except Exception as error:
        raise damaged_error(path, error) from error
    stored = numpy_dtype(dtype)
    return values.view(stored) if dtype == "bfloat16" else values.astype(stored, copy=False)


def damaged_error(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that is not a complete HDF5 file."""
    return CheckpointError(
        f"{path} cannot be read as HDF5 ({one_line(error)}); it is damaged or incomplete. "
        "Download it again."
    )


def write(
    directory: Path,
    rows: tuple[Weight, ...],
    weights: Mapping[str, Array],
    dtype: np.dtype[Any] | None,
    max_shard_size: float,
) -> None:
    """Write weights as Keras does, in shards of at most `max_shard_size` gigabytes.

    `weights` maps canonical names to arrays; each is looked up once. They are cast to `dtype`,
    unless it is None.

    Raises:
        CheckpointError: if a weight has the wrong shape or is larger than a shard.
        MissingExtra: if h5py is not installed.
    """
    h5py = import_h5py()
    limit = max_shard_size * GIGABYTE
    shards: list[str] = []
    weight_map: dict[str, list[str]] = {}
    total = filled = 0
    for row in rows:
        values = weights[row.name] if dtype is None else weights[row.name].astype(dtype)
        if values.shape != row.shape:
            raise CheckpointError(
                f"{row.name} must have shape {row.shape}, received {values.shape}."
            )
        if values.nbytes > limit:
            raise CheckpointError(
                f"max_shard_size must be at least the size of {row.name}, "
                f"{values.nbytes / GIGABYTE:.3g} GB, received {max_shard_size:.3g}."
            )
        if not shards or filled + values.nbytes > limit:
            shards.append(SHARD_FILE.format(len(shards)))
            filled = 0
        filled += values.nbytes
        total += values.nbytes
        with h5py.File(directory / shards[-1], "a") as file:
            write_dataset(file, row.h5, values)
        files = weight_map.setdefault(f"/{row.h5.rpartition('/')[0]}", [])
        files += shards[-1:] if shards[-1] not in files else []
    if len(shards) == 1:
        (directory / shards[0]).rename(directory / WEIGHT_FILE)
    else:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=4), encoding="utf-8")


def write_dataset(file: Any, path: str, values: Array) -> None:
    """Write one dataset; bfloat16 is stored as its bits with Keras' attribute."""
    if values.dtype.name != "bfloat16":
        file.create_dataset(path, data=values)
        return
    dataset = file.create_dataset(path, data=values.view(np.dtype("V2")))
    dataset.attrs["dtype"] = "bfloat16"
