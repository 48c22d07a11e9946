"""Downloads models from Kaggle and Hugging Face.

The hubs' own clients connect, cache and resume; this module selects the files. Tokens, proxies,
endpoints and cache directories are configured as the clients document.
"""

import re
from pathlib import Path

from bart_export.artifact import hub_client
from bart_export.artifact.artifact import sha256
from bart_export.checkpoints.files import CARD, CONFIG_FILE, GENERATION_FILE, read_json
from bart_export.errors import CheckpointError, PresetError, import_extra, shown

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
# Classes and HTTP statuses of the exceptions of kagglehub and requests, and their messages.
KAGGLE = (
    ((404,), "{handle} does not exist on Kaggle. Check the name and version on kaggle.com/models."),
    ((401, 403),
     "Kaggle denies access to {handle}. Sign in with a token (KAGGLE_API_TOKEN or "
     "~/.kaggle/access_token) and accept the model's terms on kaggle.com/models."),
    (("DataCorruptionError",),
     f"The download of {{handle}} is damaged (its hash does not match). {hub_client.AGAIN}"),
    (("ChunkedEncodingError", "ContentDecodingError"),
     f"The download of {{handle}} was interrupted. {hub_client.AGAIN}"),
    (("ConnectionError", "Timeout"),
     "Cannot reach Kaggle for {handle}. Check the network. Offline, name a version that is already "
     "downloaded, as in kaggle://org/model/keras/variant/3."),
    (hub_client.UNEXPECTED,
     "Kaggle sent an unexpected response for {handle} ({reason}). Check the token and the network: "
     "a proxy may have responded."),
    ((), "Cannot download {handle} from Kaggle: {reason}."),
)  # fmt: skip
ADAPTER_FILE = "adapter_config.json"
SHA256 = re.compile(r"[0-9a-f]{64}")


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
    with hub_client.quiet("kagglehub"):
        try:
            directory = Path(kagglehub.model_download(handle))
        except Exception as error:  # of the client, requests or the system
            raise PresetError(hub_client.failure(KAGGLE, f"kaggle://{handle}", error)) from error
    return directory, directory.name


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
        snapshot = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=list(files)
            )
        )
        hub_client.refuse_outside(handle, snapshot, snapshot.rglob("*"), PresetError)
        return snapshot

    with hub_client.quiet("huggingface_hub"):
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
            raise PresetError(hub_client.hugging_face_failure(handle, error)) from error
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


def refuse_damaged(handle: str, files: set[Path]) -> None:
    """Check downloaded files against the hub's SHA-256, and delete a damaged one.

    The cache names a large file by its hash, but the client compares only sizes.
    """
    for path in files:
        name = hub_client.blob_name(path)
        if SHA256.fullmatch(name) and sha256(path) != name:
            hub_client.discard(path)
            raise PresetError(
                f"The download of {handle} is damaged (the hash of {path.name} does not match). "
                f"{hub_client.AGAIN}"
            )
