"""Downloads models from Kaggle and Hugging Face.

The hubs' own clients connect, cache and resume. This module selects the files, hides the clients'
output unless there is a terminal, and turns their exceptions into one-line errors. Tokens, proxies,
endpoints and cache directories are configured as the clients document.
"""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bart_export.artifact.artifact import sha256
from bart_export.checkpoints.files import (
    CARD,
    CONFIG_FILE,
    GENERATION_FILE,
    import_extra,
    one_line,
    read_json,
)
from bart_export.errors import CheckpointError, PresetError, shown

# The files that readers need besides the weights, in either format.
SMALL_FILES = (
    CARD,
    "LICENSE",
    CONFIG_FILE,
    "adapter_config.json",
    GENERATION_FILE,
    "preprocessor.json",
    "assets/tokenizer/vocabulary.json",
    "assets/tokenizer/merges.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
# The key in config.json that identifies the format, and the patterns of its weight files. The first
# patterns with matching files are downloaded, so pickles are the last resort.
WEIGHT_FILES = {
    "registered_name": (
        ("model.weights.h5",),
        ("model.weights.json", "model_*.weights.h5"),
    ),
    "model_type": (
        ("model.safetensors",),
        ("model.safetensors.index.json", "model-*.safetensors"),
        ("pytorch_model.bin",),
        ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
    ),
}
ADAPTER_FILE = "adapter_config.json"
SHA256 = re.compile(r"[0-9a-f]{64}")
# Exceptions that the clients raise when they parse an unexpected response.
UNEXPECTED = (TypeError, ValueError, LookupError, AttributeError, AssertionError, RecursionError)
AGAIN = "Run the same command again; finished files are kept."


def fetch_kaggle(model: str, version: str | None) -> tuple[Path, str]:
    """Download "org/model/keras/variant", by default in its newest version.

    Returns:
        The local directory and the version.

    Raises:
        PresetError: if the download fails or is incomplete.
        MissingExtra: if kagglehub is not installed.
    """
    kagglehub = import_extra("kagglehub", "Fetching a preset from Kaggle")
    handle = model if version is None else f"{model}/{version}"
    with quiet("kagglehub"):
        try:
            directory = Path(kagglehub.model_download(handle))
        except Exception as error:  # of the client, requests or the system
            raise PresetError(kaggle_failure(f"kaggle://{handle}", error)) from error
    return directory, directory.name


def kaggle_failure(handle: str, error: Exception) -> str:
    """Return a one-line message for an exception of kagglehub."""
    from kagglehub.exceptions import DataCorruptionError
    from requests import exceptions as requests_errors

    status = http_status(error)
    if status == 404:
        return (
            f"{handle} does not exist on Kaggle. Check the name and version on kaggle.com/models."
        )
    if status in (401, 403):
        return (
            f"Kaggle denies access to {handle}. Sign in with a token (KAGGLE_API_TOKEN or "
            "~/.kaggle/access_token) and accept the model's terms on kaggle.com/models."
        )
    if isinstance(error, DataCorruptionError):
        return f"The download of {handle} is damaged (its hash does not match). {AGAIN}"
    if isinstance(
        error, (requests_errors.ChunkedEncodingError, requests_errors.ContentDecodingError)
    ):
        return f"The download of {handle} was interrupted. {AGAIN}"
    if isinstance(error, (requests_errors.ConnectionError, requests_errors.Timeout)):
        return (
            f"Cannot reach Kaggle for {handle}. Check the network. A version that is already "
            "downloaded works offline if you name it, as in kaggle://org/model/keras/variant/3."
        )
    if isinstance(error, UNEXPECTED):
        return unexpected_response("Kaggle", handle, "the network: a proxy may have responded.")
    return f"Cannot download {handle} from Kaggle: {one_line(error)}"


def fetch_hugging_face(repository: str, revision: str | None) -> tuple[Path, str]:
    """Download "org/model" at a branch, tag or commit, by default the main branch.

    Returns:
        The local directory and the commit.

    Raises:
        PresetError: if the download fails or is incomplete.
        MissingExtra: if huggingface_hub is not installed.
    """
    huggingface_hub = import_extra("huggingface_hub", "Fetching a preset from Hugging Face")
    handle = f"hf://{repository}" + (f"@{revision}" if revision else "")

    def fetch(files: tuple[str, ...], revision: str | None) -> Path:
        snapshot = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(files)
        )
        refuse_outside(handle, Path(snapshot))
        return Path(snapshot)

    with quiet("huggingface_hub"):
        try:
            directory = fetch(SMALL_FILES, revision)
            refuse_adapter(handle, directory)
            commit = directory.name
            for files in weight_files(handle, directory):
                before = matching_files(directory, files)
                fetch(files, commit)
                fetched = matching_files(directory, files)
                refuse_damaged(handle, fetched - before)
                if fetched:
                    return directory, commit
        except PresetError:
            raise
        except Exception as error:  # of the client, httpx or the system
            raise PresetError(hugging_face_failure(handle, error)) from error
    raise PresetError(
        f"{handle} has no supported weights. Expected model.weights.h5, model.safetensors or "
        "pytorch_model.bin, in one file or in shards."
    )


def weight_files(handle: str, directory: Path) -> tuple[tuple[str, ...], ...]:
    """Return the weight file patterns for the format that config.json names; see WEIGHT_FILES."""
    try:
        config = read_json(directory / CONFIG_FILE)
    except CheckpointError as error:
        raise PresetError(
            f"{handle} has no readable config.json, so it is neither a Keras preset nor a Hugging "
            "Face checkpoint."
        ) from error
    for key, patterns in WEIGHT_FILES.items():
        if key in config:
            return patterns
    raise PresetError(
        f"The config.json of {handle} has neither registered_name, as Keras presets do, nor "
        "model_type, as Hugging Face checkpoints do."
    )


def refuse_adapter(place: str, directory: Path) -> None:
    """Raise PresetError for a directory with a LoRA adapter, which is not a complete model.

    As in transformers, `adapter_config.json` decides, whatever else the directory contains. `place`
    is the user's name for it.
    """
    path = directory / ADAPTER_FILE
    if not path.exists():
        return
    try:
        base = read_json(path).get("base_model_name_or_path")
    except CheckpointError:
        base = None
    raise PresetError(
        f"{place} has an {ADAPTER_FILE}: it is a LoRA adapter for {shown(base)}, not a full model. "
        "Merge it with peft and export the result: PeftModel.from_pretrained(base_model, adapter)"
        ".merge_and_unload().save_pretrained(directory), then tokenizer.save_pretrained(directory)."
    )


def matching_files(directory: Path, patterns: tuple[str, ...]) -> set[Path]:
    """Return the matching files in a snapshot, to which the client adds only complete ones."""
    return {path for pattern in patterns for path in directory.glob(pattern)}


def refuse_outside(handle: str, directory: Path) -> None:
    """Raise PresetError if a file of a snapshot is outside the repository's cache.

    The client stores a file under the name that the hub sends for its content, without checking it.
    """
    cache = directory.parents[1]
    inside = (cache.resolve(), (cache / "blobs").resolve())
    for path in directory.rglob("*"):
        if not any(path.resolve().is_relative_to(place) for place in inside):
            raise PresetError(
                f"The hub of {handle} caused {path.name} to be stored outside the cache, at "
                f"{path.resolve()}, so do not trust it. Check HF_ENDPOINT, and delete the file."
            )


def refuse_damaged(handle: str, files: set[Path]) -> None:
    """Check downloaded files against the hub's SHA-256, and delete a damaged one.

    The cache names a large file by its hash, but the client compares only sizes.
    """
    for path in files:
        blob = path.resolve()
        if SHA256.fullmatch(blob.name) and sha256(blob) != blob.name:
            path.unlink()
            blob.unlink(missing_ok=True)
            raise PresetError(
                f"The download of {handle} is damaged (the hash of {path.name} does not match). "
                f"{AGAIN}"
            )


def hugging_face_failure(handle: str, error: Exception) -> str:
    """Return a one-line message for an exception of huggingface_hub."""
    from huggingface_hub import errors

    status = http_status(error) or http_status(error.__cause__)
    sign_in = "sign in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"Hugging Face denies access to {handle}. Accept the model's terms on its page and "
            f"{sign_in}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{handle} does not exist on Hugging Face, or is private. Check the name; if it is "
            f"private, {sign_in}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{handle} names an unknown revision. Expected a branch, a tag or a commit."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"Cannot reach Hugging Face for {handle}, and the cache has no complete copy. Check "
            "the network and HF_HUB_OFFLINE."
        )
    if "Consistency check failed" in str(error) or status is not None:
        return f"The download of {handle} was interrupted ({one_line(error)}). {AGAIN}"
    if isinstance(error, UNEXPECTED) and not isinstance(error, errors.HFValidationError):
        return unexpected_response("Hugging Face", handle, "HF_ENDPOINT and the network.")
    return f"Cannot download {handle} from Hugging Face: {one_line(error)}"


def unexpected_response(hub: str, handle: str, check: str) -> str:
    """Return the message for a response that a client could not parse."""
    return f"{hub} sent an unexpected response for {handle}. Check {check}"


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status of a client's exception, or None if it has no response."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """Redirect a client's output to stderr, or discard it if stderr is not a terminal."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    terminal = sys.stderr is not None and sys.stderr.isatty()
    with open(os.devnull, "w", encoding="utf-8") as null:
        sink = sys.stderr if terminal else null
        try:
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield
        finally:
            logger.setLevel(level)
