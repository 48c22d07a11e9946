"""The small files of a checkpoint, read with care.

Flows in: paths. Flows out: text, parsed JSON objects, and the files that an index names. A file
that is missing, is no JSON or is no JSON object becomes one line that names it.
"""

import json
from pathlib import Path
from typing import Any

from bart_export.errors import BartExportError, CheckpointError

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"


def read_text(path: Path, error: type[BartExportError] = CheckpointError) -> str:
    """Return the UTF-8 text of a file; a missing or unreadable one raises `error` by name."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path.parent} holds no {path.name}, which the checkpoint needs.") from None
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"Cannot read {path} as UTF-8 text: {reason}.") from reason


def read_json(path: Path, error: type[BartExportError] = CheckpointError) -> dict[str, Any]:
    """Return the JSON object in a file; anything else raises `error` and says where."""
    text = read_text(path, error)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as reason:
        fault = "it is empty" if not text.strip() else str(reason)
        raise error(
            f"{path} is not valid JSON ({fault}); it is damaged or was not downloaded whole. "
            "Fetch it again."
        ) from reason
    if not isinstance(value, dict):
        raise error(f"{path} must hold a JSON object, received {type(value).__name__}.")
    return value


def member(directory: Path, index: Path, name: object) -> Path:
    """Return the file that an index names, which must be a plain name in the same directory.

    Raises:
        CheckpointError: for a name that leads elsewhere, or a file that is not there.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise CheckpointError(f"{index} must name files beside it, received {name!r}.")
    path = directory / name
    if not path.is_file():
        raise CheckpointError(
            f"{index} names the weight file {name}, which is not there. Fetch the whole checkpoint."
        )
    return path
