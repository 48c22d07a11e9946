"""PyTorch's own weight files, read only through PyTorch's restricted loader.

Flows in: a `pytorch_model.bin`. Flows out: its tensors as entries. These files are pickles; nothing
here unpickles them: `torch.load(weights_only=True)` does, which builds tensors and nothing else.
"""

from functools import partial
from pathlib import Path
from typing import Any

from bart_export.checkpoints.safetensors_file import numpy_dtype
from bart_export.checkpoints.weights_check import Array, Entry
from bart_export.errors import CheckpointError

SAFE_VERSION = (2, 6)  # CVE-2025-32434


def read(path: Path) -> dict[str, Entry]:
    """Return the tensors of a file.

    Raises:
        CheckpointError: when PyTorch is not installed, is too old to be safe, or cannot load the
            file as plain tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{path} is a pickle, which is read only through PyTorch, and PyTorch is not "
            "installed. Install torch, or use a copy with model.safetensors "
            "(model.save_pretrained(directory) writes one)."
        ) from error
    version = str(torch.__version__)
    if tuple(int(number) for number in version.split(".")[:2]) < SAFE_VERSION:
        raise CheckpointError(
            f"{path} is a pickle, whose restricted loader can be escaped from before PyTorch 2.6; "
            f"received PyTorch {version}. Update torch, or use a copy with model.safetensors."
        )
    try:
        # Not memory-mapped: files of before PyTorch 1.6 cannot be.
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {
            name: Entry(
                path,
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                partial(to_numpy, torch, tensor),
            )
            for name, tensor in tensors.items()
        }
    except Exception as error:
        # RuntimeError, UnpicklingError, EOFError and others. Their text is left out: it runs over
        # many lines and advises to load the file without the restriction.
        raise CheckpointError(
            f"{path} cannot be loaded as a file of plain tensors; it is damaged, was not "
            "downloaded whole, or holds other objects."
        ) from error


def to_numpy(torch: Any, tensor: Any) -> Array:
    """Return a tensor's values; NumPy has no bfloat16 of its own, so its bits are passed."""
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy()
        return bits.view(numpy_dtype("bfloat16"))
    values: Array = tensor.numpy()
    return values
