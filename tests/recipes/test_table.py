"""Recipe files: what is written is read again, and what is wrong is said in one line."""

import json
import os
import re
import sys

import pytest
from support.mounts import run_on_mount

from bart_export.checkpoints.weight_names import layer_names
from bart_export.config import BartConfig
from bart_export.errors import ConfigurationError
from bart_export.recipes import metrics, table

GOOD = {
    "name": "mixed",
    "mode": "dynamic",
    "layers": [[".*", "int4"], [".*/feedforward_output", "int8"]],
    "tolerance": {"top1": 0.95},
}
CONFIG = BartConfig(vocabulary_size=8, num_layers=12, num_heads=1, hidden_dim=4, intermediate_dim=4)
LAYERS = layer_names(CONFIG)

# What takes for ever to match, or to compile, or means nothing.
HARMFUL = (
    r"(a*)*b", r"(.*)*x", r"(a|a)*b", r"(\w+\s?)+x", r".*.*.*.*x", r"a?a?a?a?a",
    r"((a{9999}){9999})", r"(?=.*)a", r"(.)\1", r"a**", r"[z-a]", "(", "", "a" * 201, "é", 7, None,
)  # fmt: skip


def changed(**fields):
    return table.parse_recipe({**GOOD, **fields})


def stored(layers, mode="dynamic"):
    """Return a recipe that stores every layer in each of some storages; the last one counts."""
    return changed(mode=mode, layers=[[".*", storage] for storage in layers])


def test_the_expressions_that_backtrack_most_are_matched():
    longest = max(LAYERS, key=len)
    for expression in (".*.*.*x", r"[\w/]*[\w/]*[\w/]*x", r"\w+/\w+/\w+x"):
        recipe = changed(layers=20 * [[expression, "int8"]])
        assert recipe.storage(longest).name == "float32"


@pytest.mark.parametrize(
    ("layers", "layer", "storage"),
    [
        # The last expression that matches counts, and what none matches keeps float32.
        (GOOD["layers"], "decoder/layer_0/feedforward_output", "int8"),
        (GOOD["layers"], "decoder/layer_0/feedforward_intermediate", "int4"),
        ([["decoder/.*", "int8"]], "encoder/layer_0/feedforward_output", "float32"),
        # The whole name must match, not a part of it.
        ([["feedforward_output", "int8"]], "decoder/layer_0/feedforward_output", "float32"),
    ],
)
def test_the_storage_of_a_layer(layers, layer, storage):
    assert changed(layers=layers).storage(layer).name == storage


def test_a_recipe_is_written_in_one_rename_and_a_link_stays(tmp_path):
    there, link = tmp_path / "there.json", tmp_path / "link.json"
    there.write_text("before")
    link.symlink_to(there)
    with there.open() as reader:
        table.write_recipe(link, changed())
        assert reader.read() == "before"
    assert link.is_symlink()
    assert table.read_recipe(there) == changed()
    assert sorted(tmp_path.iterdir()) == [link, there]


def on_a_full_disk(tmp_path, program):
    program = f"import pathlib, sys; from bart_export import documents\n{program}"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program, tmp_path]
    return run_on_mount(tmp_path, "size=64k", command, env=environment).stdout


def test_a_full_disk_leaves_the_recipe_that_was_there(tmp_path):
    said = on_a_full_disk(
        tmp_path,
        "path = pathlib.Path(sys.argv[1], 'it.json'); path.write_text('before')\n"
        "try: documents.replace(path, bytes(1 << 20))\n"
        "except OSError as error: print(error.strerror)\n"
        "print(path.read_text(), len(list(path.parent.iterdir())))",
    )
    assert said == "No space left on device\nbefore 1\n"


def test_a_full_disk_under_temporary_files_is_named(tmp_path):
    said = on_a_full_disk(
        tmp_path,
        "try:\n"
        " with documents.scratch_directory() as place: (place / 'it').write_bytes(bytes(1 << 20))\n"
        "except OSError as error: print(error.filename, error.strerror)",
    )
    assert said.startswith(str(tmp_path))
    assert said.endswith(" No space left on device\n")


@pytest.mark.parametrize(
    ("mode", "storages", "like"),
    [
        ("dynamic", ["int8_tensorwise", "float16"], "dynamic_wi8_afp32_tensorwise"),
        ("dynamic", ["int8_tensorwise", "int8"], "dynamic_wi8_afp32"),
        ("dynamic", ["int4", "int8_tensorwise"], "dynamic_wi4_afp32"),
        ("weight_only", ["int8", "float16"], "weight_only_wi8_afp32"),
        ("static_ai16", ["int8_tensorwise"], "static_wi8_ai16"),
        ("static_ai8", ["int8_tensorwise"], "static_wi8_ai8"),
    ],
)
def test_which_runtimes_compute_it_follows_from_mode_and_storages(mode, storages, like):
    recipe, row = stored(storages, mode), table.RECIPES[like]
    assert (recipe.runtimes, recipe.refusals) == (row.runtimes, row.refusals)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "float32"}, "that of a built-in recipe"),
        ({"name": "../float"}, "letters, digits"),
        ({"mode": "float"}, "mode must be one of"),
        ({"mode": ["dynamic"]}, "mode must be one of"),
        ({"layers": []}, "list of 1 to 512 pairs"),
        ({"layers": [[".*"]]}, r'pairs such as \[".\*", "int8"\]'),
        ({"layers": 513 * [[".*", "int8"]]}, "1 to 512 pairs, received a list of 513"),
        *(
            ({"layers": [[expression, "int8"]]}, "layers must be regular expressions of at most")
            for expression in HARMFUL
        ),
        ({"layers": [[".*", "int5"]]}, "storage must be one of"),
        ({"mode": "weight_only"}, "'int4' has one per block"),
        ({"tolerance": {"top2": 1}}, "metric must be one of"),
        ({"tolerance": {"top1": "high"}}, "must be a number"),
        ({"tolerance": {"tokens": 95}}, r"received 95\. Did you mean 0\.95\?"),
        ({"tolerance": 1}, "must map metrics"),
        ({"color": 1}, "has 'color'"),
    ],
)
def test_what_no_recipe_can_be_is_said_with_the_file(tmp_path, change, words):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**GOOD, **change}))
    line = f"{re.escape(str(path))} cannot be used: .*{words}"
    with pytest.raises(ConfigurationError, match=line):
        table.read_recipe(path)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere.json: No such file"):
        table.read_recipe(tmp_path / "nowhere.json")
    (tmp_path / "it.json").write_text("{")
    with pytest.raises(ConfigurationError, match="it.json is not valid JSON"):
        table.read_recipe(tmp_path / "it.json")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            changed(layers=[["decoder/layer_12/.*", "int8"]]),
            r"layer_12/\.\*', which matches no layer",
        ),
        *(
            (stored(storages, mode), "mixed stores every layer in float32")
            for mode in ("dynamic", "weight_only")
            for storages in (["float32"], ["int8", "float32"])
        ),
    ],
)
def test_a_recipe_that_names_no_layer_or_changes_none_is_refused(recipe, words):
    table.require_layers(changed(), LAYERS)
    with pytest.raises(ConfigurationError, match=words):
        table.require_layers(recipe, LAYERS)


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        ("top1", "NAME=VALUE"),
        ("top9=1", r"metric must be one of .*received \"top9\"\. Did you mean top1\?"),
        ("kl=x", "must be a number"),
        ("kl=nan", "must be a number"),
        ("top1=inf", "must be a number"),
        ("top1=98", r"of top1 must be from 0 to 1, received 98\. Did you mean 0\.98\?$"),
        ("top1=2", r"from 0 to 1, received 2\. Did you mean 0\.98\?$"),
        ("tokens=99.5", r"received 99\.5\. Did you mean 0\.995\?$"),
        ("top1=980", r"from 0 to 1, received 980\.$"),
        ("top1=-0.5", r"from 0 to 1, received -0\.5\.$"),
        ("kl=-1", r"of kl must be at least 0, received -1\.$"),
        ("rouge_l=101", r"of rouge_l must be from -100 to 100, received 101\.$"),
    ],
)
def test_bounds_are_parsed_and_refused(bound, words):
    accepted = ["top1=1", "tokens=0", "rouge_l=-0.5", "relative=2"]
    assert metrics.parse_bounds(accepted) == {
        "top1": 1,
        "tokens": 0,
        "rouge_l": -0.5,
        "relative": 2,
    }
    with pytest.raises(ConfigurationError, match=words):
        metrics.parse_bounds([bound])
