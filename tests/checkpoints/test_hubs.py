"""The hubs' real clients against a loopback server: complete downloads or one-line errors."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from support.hub_processes import outcomes_of, resolve_preset, serving
from support.hub_server import COMMIT, Hub
from support.made_up_artifacts import contents
from support.paths import SYMMETRIC

from bart_export.artifact import hub_client
from bart_export.checkpoints import hubs, keras_preset, resolve
from bart_export.checkpoints.files import LARGEST_TEXT
from bart_export.errors import MissingExtra, PresetError

NEEDED = {
    name: (SYMMETRIC / name).read_bytes()
    for name in ("config.json", "generation_config.json", "vocab.json", "merges.txt")
} | {
    "tokenizer_config.json": b'{"add_prefix_space": true}',
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b'{"<mask>": 4}',
}
WEIGHTS = (SYMMETRIC / "model.safetensors").read_bytes()
WHOLE = NEEDED | {"model.safetensors": WEIGHTS}


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory):
    """A Keras preset's files."""
    place = tmp_path_factory.mktemp("keras") / "preset"
    read = resolve.read(SYMMETRIC)
    keras_preset.write(
        place, read.config, read.weights, vocabulary=read.vocabulary, merges=read.merges
    )
    return contents(place)


@pytest.fixture(scope="module")
def sharded_files(tmp_path_factory):
    place = tmp_path_factory.mktemp("shards")
    tensors = load_file(SYMMETRIC / "model.safetensors")
    weight_map = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        kept = list(tensors)[number - 1 :: 2]
        save_file({tensor: tensors[tensor] for tensor in kept}, place / name)
        weight_map |= dict.fromkeys(kept, name)
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return NEEDED | contents(place)


def resolved(names, home, **settings):
    """Resolve presets in one process; return the outcomes."""
    return outcomes_of(resolve_preset, [[name] for name in names], home, **settings)


def resolved_by_name(names, home, **settings):
    """Return the outcomes of each preset in order."""
    found = {name: [] for name in names}
    for name, outcome in zip(names, resolved(names, home, **settings), strict=True):
        found[name].append(outcome)
    return found


@pytest.fixture(scope="module")
def hugging_face(keras_files, sharded_files, tmp_path_factory):
    """The outcome of every repository, with two for `breaks` and `damaged`, and their home."""
    faults = ("breaks", "damaged", "down", "strange", "outside")
    hub = Hub(
        files={
            "org/plain": WHOLE
            | {"pytorch_model.bin": b"pickle", "flax_model.msgpack": b"flax", "README.md": b"#"},
            "org/keras": keras_files | {"README.md": b"#", "pytorch_model.bin": b"pickle"},
            "org/shards": sharded_files,
            "org/pickle": NEEDED | {"pytorch_model.bin": b"pickle"},
            "org/weightless": NEEDED,
            "org/adapter": {
                "adapter_config.json": b'{"base_model_name_or_path": "org/plain"}',
                "adapter_model.safetensors": b"lora",
            },
            "org/other": {"README.md": b"# a model of another kind"},
            **{f"org/{fault}": WHOLE for fault in faults},
        },
        faults={f"org/{fault}": fault for fault in faults},
    )
    home = tmp_path_factory.mktemp("home")
    others = ("org/plain@v1", "org/plain@v9", "org/nothing", "org/breaks", "org/damaged")
    names = [f"hf://{repository}" for repository in (*hub.files, *others)]
    with serving(hub) as address:
        found = resolved_by_name(names, home, HF_ENDPOINT=address)
    return {"outcomes": found, "home": home, "fetched": hub.fetched}


def test_only_the_needed_files_of_each_format_are_downloaded(hugging_face):
    fetched, read = {}, {}
    for name in ("plain", "keras", "shards", "pickle"):
        (outcome,) = hugging_face["outcomes"][f"hf://org/{name}"]
        assert (outcome["handle"], outcome["revision"]) == (f"hf://org/{name}", COMMIT)
        fetched[name] = {file for place, file in hugging_face["fetched"] if place == f"org/{name}"}
        if name != "pickle":
            read[name] = resolve.read(Path(outcome["directory"]))
    # The licence is in the model card.
    assert fetched["plain"] == NEEDED.keys() | {"model.safetensors", "README.md"}
    assert read["plain"].weights.keys() == resolve.read(SYMMETRIC).weights.keys()
    assert read["plain"].add_prefix_space
    assert read["keras"].format == "keras" and "pytorch_model.bin" not in fetched["keras"]
    assert len(read["shards"].weight_files) == 2
    assert "pytorch_model.bin" in fetched["pickle"]  # there is nothing else
    (outcome,) = hugging_face["outcomes"]["hf://org/plain@v1"]
    assert (outcome["handle"], outcome["revision"]) == ("hf://org/plain", COMMIT)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("breaks", "The download of hf://org/breaks was interrupted"),
        ("damaged", "the hash of model.safetensors does not match"),
    ],
)
def test_incomplete_downloads_are_discarded(hugging_face, fault, said):
    first, second = hugging_face["outcomes"][f"hf://org/{fault}"]
    assert said in first["line"]
    assert (Path(second["directory"]) / "model.safetensors").read_bytes() == WEIGHTS


def test_downloaded_repositories_work_offline(hugging_face, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(hugging_face["home"], home, symlinks=True)
    names = ["hf://org/plain", "hf://org/shards", "hf://org/unknown"]
    for settings in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        plain, shards, unknown = resolved(names, home, **settings)
        assert plain["revision"] == shards["revision"] == COMMIT
        assert "Cannot reach Hugging Face for hf://org/unknown" in unknown["line"]


def test_partial_downloads_are_not_used_offline(hugging_face, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(hugging_face["home"], home, symlinks=True)
    snapshot = home / "hf/hub/models--org--shards/snapshots" / COMMIT
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    (outcome,) = resolved(["hf://org/shards"], home, HF_HUB_OFFLINE="1")
    assert "the cache has no complete copy" in outcome["line"]


@pytest.mark.parametrize(
    ("package", "preset"),
    [
        ("huggingface_hub", "hf://org/plain"),
        ("kagglehub", "bart_base_en"),
        ("h5py", "bart_mini_en"),
        ("safetensors", str(SYMMETRIC)),
    ],
)
def test_missing_packages_are_reported(package, preset, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"{package}.*pip install .*\[export\]"):
        resolve.ResolvedPreset(preset)


def test_files_in_the_store_that_repositories_share_are_accepted(tmp_path):
    """For files in Xet storage, a link leads to a blob and a second link to the shared store."""
    repository, content = tmp_path / "models--org--x", b"weights"
    snapshot = repository / "snapshots" / COMMIT
    stored = tmp_path / "blobs/ab" / ("ab" * 32)  # named by another hash
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    for path in (snapshot, stored.parent, blob.parent):
        path.mkdir(parents=True)
    stored.write_bytes(content)
    blob.symlink_to(f"../../blobs/ab/{stored.name}")
    path = snapshot / "model.safetensors"
    path.symlink_to(f"../../blobs/{blob.name}")
    hub_client.refuse_outside("hf://org/x", snapshot, [path], PresetError)
    hubs.refuse_damaged("hf://org/x", {path})
    stored.write_bytes(content[::-1])
    with pytest.raises(PresetError, match=r"the hash of model\.safetensors does not match"):
        hubs.refuse_damaged("hf://org/x", {path})
    assert not any(map(os.path.lexists, (path, blob, stored)))


def test_oversized_downloaded_json_is_rejected(tmp_path):
    for name, read in (
        ("config.json", hubs.weight_files),
        ("adapter_config.json", hubs.refuse_adapter),
    ):
        content = b'{"model_type": "bart", "base_model_name_or_path": "org/plain"}'
        (tmp_path / name).write_bytes(content.ljust(LARGEST_TEXT + 1))
        with pytest.raises(PresetError, match=r"no readable config\.json|adapter for null"):
            read("hf://org/x", tmp_path)


KAGGLE = "org/bart/keras"


@pytest.fixture(scope="module")
def kaggle(keras_files, tmp_path_factory):
    """The outcome of every model, with two for `breaks` and `damaged`, and their home."""
    faults = ("breaks", "damaged", "forbidden", "down", "strange")
    hub = Hub(
        files={f"{KAGGLE}/{name}": keras_files for name in ("plain", *faults)}
        | {"keras/bart/keras/bart_large_en_cnn": keras_files},
        faults={f"{KAGGLE}/{fault}": fault for fault in faults},
    )
    home = tmp_path_factory.mktemp("home")
    variants = [
        "plain/1", "plain", "breaks/1", "breaks/1", "damaged/1", "damaged/1", "forbidden/1",
        "down/1", "strange", "nothing/1", "plain/7",
    ]  # fmt: skip
    known = ["bart_large_en_cnn", "kaggle://keras/bart/keras/bart_large_en_cnn/2"]
    names = [*(f"kaggle://{KAGGLE}/{variant}" for variant in variants), *known]
    with serving(hub) as address:
        found = resolved_by_name(names, home, **kaggle_through(address))
    by_variant = {name.removeprefix(f"kaggle://{KAGGLE}/"): found[name] for name in found}
    return {"outcomes": by_variant, "home": home}


def kaggle_through(address):
    return {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "http_proxy": address, "no_proxy": ""}


def assert_whole(outcome, files):
    for name, data in files.items():
        assert (Path(outcome["directory"]) / name).read_bytes() == data


def test_versions_are_downloaded_from_kaggle(kaggle, keras_files):
    (outcome,) = kaggle["outcomes"]["plain/1"]
    assert (outcome["handle"], outcome["revision"]) == (f"kaggle://{KAGGLE}/plain", "1")
    assert_whole(outcome, keras_files)
    assert resolve.read(Path(outcome["directory"])).format == "keras"
    (newest,) = kaggle["outcomes"]["plain"]
    assert newest["revision"] == "2"


def test_named_presets_come_from_kaggle_with_registry_settings(kaggle):
    (named,) = kaggle["outcomes"]["bart_large_en_cnn"]
    (spelled,) = kaggle["outcomes"]["kaggle://keras/bart/keras/bart_large_en_cnn/2"]
    assert (named["revision"], spelled["revision"]) == ("3", "2")
    assert named["handle"] == spelled["handle"] == "kaggle://keras/bart/keras/bart_large_en_cnn"
    assert named["generation"] == spelled["generation"]
    assert (named["generation"]["min_length"], named["generation"]["max_length"]) == (56, 142)
    (other,) = kaggle["outcomes"]["plain"]
    assert other["generation"] is None


@pytest.mark.parametrize(
    ("hub", "preset", "said"),
    [
        ("hugging_face", "hf://org/nothing", "org/nothing does not exist on Hugging Face, or is"),
        ("hugging_face", "hf://org/plain@v9", "names an unknown revision"),
        ("hugging_face", "hf://org/weightless", "has no supported weights"),
        ("hugging_face", "hf://org/other", "has no readable config.json"),
        ("hugging_face", "hf://org/adapter", 'a LoRA adapter for "org/plain", not a full model'),
        ("hugging_face", "hf://org/down", "Cannot reach Hugging Face for hf://org/down"),
        ("hugging_face", "hf://org/strange", "Hugging Face sent an unexpected response for"),
        ("hugging_face", "hf://org/outside", " outside the cache, at "),
        ("kaggle", "nothing/1", f"kaggle://{KAGGLE}/nothing/1 does not exist on Kaggle"),
        ("kaggle", "plain/7", f"kaggle://{KAGGLE}/plain/7 does not exist on Kaggle"),
        ("kaggle", "forbidden/1", "Kaggle denies access"),
        ("kaggle", "down/1", f"Cannot download kaggle://{KAGGLE}/down/1 from Kaggle: "),
        ("kaggle", "strange", "Kaggle sent an unexpected response for"),
    ],
)
def test_a_failed_download_is_explained_in_one_line(request, hub, preset, said):
    (outcome,) = request.getfixturevalue(hub)["outcomes"][preset]
    assert outcome["error"] == "PresetError"
    assert said in outcome["line"]


@pytest.mark.parametrize(
    ("variant", "said"), [("breaks/1", "was interrupted"), ("damaged/1", "its hash does not match")]
)
def test_incomplete_kaggle_downloads_are_repeated(kaggle, keras_files, variant, said):
    first, second = kaggle["outcomes"][variant]
    assert said in first["line"]
    assert_whole(second, keras_files)


def test_downloaded_kaggle_versions_work_offline(kaggle, keras_files):
    names = [f"kaggle://{KAGGLE}/plain/1", f"kaggle://{KAGGLE}/plain"]
    nowhere = kaggle_through("http://127.0.0.1:9")
    version, newest = resolved(names, kaggle["home"], **nowhere)
    assert_whole(version, keras_files)
    assert "Cannot reach Kaggle" in newest["line"]
