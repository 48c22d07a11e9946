"""Kaggle and Hugging Face: fetch a model and return its local directory.

The hubs' own clients do the talking, caching and resuming; this module chooses the files, keeps
the clients' chatter from users who are not at a terminal, and turns whatever they raise into one
line that says what to do. Tokens, proxies, endpoints and cache directories are the clients' own
settings.
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

# What a reader needs beside the weights, in either format.
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
# The key of config.json that tells the format, and the ways its weights are kept: the first that
# the repository has is fetched, so pickles only where nothing else is.
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
# What a client raises itself when an answer has not the form that it takes for granted.
BROKEN_RULES = (TypeError, ValueError, LookupError, AttributeError, AssertionError, RecursionError)
AGAIN = "Run the same command again; what is already here is kept."


def fetch_kaggle(model: str, version: str | None) -> tuple[Path, str]:
    """Return the directory of "org/model/keras/variant", newest version unless one is named.

    Raises:
        PresetError: when it cannot be fetched whole.
        MissingExtra: when kagglehub is not installed.
    """
    kagglehub = import_extra("kagglehub", "Fetching a preset from Kaggle")
    handle = model if version is None else f"{model}/{version}"
    with quiet("kagglehub"):
        try:
            directory = Path(kagglehub.model_download(handle))
        except Exception as error:  # the client raises its own, requests' and the system's errors
            raise PresetError(kaggle_failure(f"kaggle://{handle}", error)) from error
    return directory, directory.name


def kaggle_failure(handle: str, error: Exception) -> str:
    """Return the line for what kagglehub raised."""
    from kagglehub.exceptions import DataCorruptionError
    from requests import exceptions as requests_errors

    status = http_status(error)
    if status == 404:
        return (
            f"{handle} does not exist on Kaggle. Check its name and version on kaggle.com/models."
        )
    if status in (401, 403):
        return (
            f"Kaggle does not give access to {handle}. Sign in with a token (KAGGLE_API_TOKEN or "
            "~/.kaggle/access_token) and accept the model's terms on kaggle.com/models."
        )
    if isinstance(error, DataCorruptionError):
        return f"The download of {handle} arrived damaged (its hash does not match). {AGAIN}"
    if isinstance(
        error, (requests_errors.ChunkedEncodingError, requests_errors.ContentDecodingError)
    ):
        return f"The download of {handle} broke off. {AGAIN}"
    if isinstance(error, (requests_errors.ConnectionError, requests_errors.Timeout)):
        return (
            f"Kaggle cannot be reached for {handle}. Check the network; a version that was fetched "
            "before works offline when it is named, as in kaggle://org/model/keras/variant/3."
        )
    if isinstance(error, BROKEN_RULES):
        return strange_answer("Kaggle", handle, "the network: a proxy may answer in its place.")
    return f"Kaggle could not deliver {handle}: {one_line(error)}"


def fetch_hugging_face(repository: str, revision: str | None) -> tuple[Path, str]:
    """Return the directory of "org/model" at a branch, tag or commit, and the commit.

    Raises:
        PresetError: when it cannot be fetched whole.
        MissingExtra: when huggingface_hub is not installed.
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
                before = whole_files(directory, files)
                fetch(files, commit)
                fetched = whole_files(directory, files)
                refuse_damaged(handle, fetched - before)
                if fetched:
                    return directory, commit
        except PresetError:
            raise
        except Exception as error:  # the client raises its own, httpx' and the system's errors
            raise PresetError(hugging_face_failure(handle, error)) from error
    raise PresetError(
        f"{handle} has no weights this package reads: expected model.weights.h5, model.safetensors "
        "or pytorch_model.bin, whole or in shards."
    )


def weight_files(handle: str, directory: Path) -> tuple[tuple[str, ...], ...]:
    """Return the ways in which the format of config.json keeps weights."""
    try:
        config = read_json(directory / CONFIG_FILE)
    except CheckpointError as error:
        raise PresetError(
            f"{handle} has no readable config.json, so it is no Keras preset and no Hugging Face "
            "checkpoint."
        ) from error
    for key, ways in WEIGHT_FILES.items():
        if key in config:
            return ways
    raise PresetError(
        f"The config.json of {handle} has neither registered_name, as Keras presets do, nor "
        "model_type, as Hugging Face checkpoints do."
    )


def refuse_adapter(place: str, directory: Path) -> None:
    """Raise PresetError for a directory with a LoRA adapter, which is no whole model.

    As transformers does, a directory with `adapter_config.json` is taken for one whatever else it
    holds. `place` is how the user named it.
    """
    path = directory / ADAPTER_FILE
    if not path.exists():
        return
    try:
        base = read_json(path).get("base_model_name_or_path")
    except CheckpointError:
        base = None
    raise PresetError(
        f"{place} has an {ADAPTER_FILE}: it is a LoRA adapter of {shown(base)}, not a whole model. "
        "Merge it with peft and export the result: PeftModel.from_pretrained(base_model, adapter)"
        ".merge_and_unload().save_pretrained(directory), then tokenizer.save_pretrained(directory)."
    )


def whole_files(directory: Path, patterns: tuple[str, ...]) -> set[Path]:
    """Return the files in a snapshot that match; the client puts only whole ones there."""
    return {path for pattern in patterns for path in directory.glob(pattern)}


def refuse_outside(handle: str, directory: Path) -> None:
    """Raise PresetError for a snapshot with a file that is not in the repository's cache.

    The client keeps a file under the name that the hub gives its content, whatever that name is.
    """
    cache = directory.parents[1]
    inside = (cache.resolve(), (cache / "blobs").resolve())
    for path in directory.rglob("*"):
        if not any(path.resolve().is_relative_to(place) for place in inside):
            raise PresetError(
                f"The hub of {handle} had {path.name} stored outside the cache, at "
                f"{path.resolve()}, which no honest hub does. Check HF_ENDPOINT, and delete it."
            )


def refuse_damaged(handle: str, files: set[Path]) -> None:
    """Hold downloaded files to the SHA-256 that the hub announced, and drop damaged ones.

    The cache keeps a large file under the name of its hash; the client compares sizes only.
    """
    for path in files:
        blob = path.resolve()
        if SHA256.fullmatch(blob.name) and sha256(blob) != blob.name:
            path.unlink()
            blob.unlink(missing_ok=True)
            raise PresetError(
                f"The download of {handle} arrived damaged (the hash of {path.name} does not "
                f"match). {AGAIN}"
            )


def hugging_face_failure(handle: str, error: Exception) -> str:
    """Return the line for what huggingface_hub raised."""
    from huggingface_hub import errors

    status = http_status(error) or http_status(error.__cause__)
    sign_in = "sign in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"Hugging Face does not give access to {handle}. Accept the model's terms on its page "
            f"and {sign_in}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{handle} does not exist on Hugging Face, or is private. Check its name; for a "
            f"private one {sign_in}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{handle} names a revision that does not exist. Name a branch, a tag or a commit."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"Hugging Face cannot be reached for {handle}, and no whole copy of it is in the "
            "cache. Check the network and HF_HUB_OFFLINE."
        )
    if "Consistency check failed" in str(error) or status is not None:
        return f"The download of {handle} broke off ({one_line(error)}). {AGAIN}"
    if isinstance(error, BROKEN_RULES) and not isinstance(error, errors.HFValidationError):
        return strange_answer("Hugging Face", handle, "HF_ENDPOINT and the network.")
    return f"Hugging Face could not deliver {handle}: {one_line(error)}"


def strange_answer(hub: str, handle: str, check: str) -> str:
    """Return the line for an answer that a client could not make sense of."""
    return f"{hub} answered something else than expected when asked for {handle}. Check {check}"


def http_status(error: BaseException | None) -> int | None:
    """Return the status of the response that a client's error carries, if it carries one."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep a client's talk from standard output, and its progress bars too without a terminal."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    watched = sys.stderr is not None and sys.stderr.isatty()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sink = sys.stderr if watched else nowhere
        try:
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield
        finally:
            logger.setLevel(level)
