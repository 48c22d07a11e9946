"""Tuning finds a file within the budget, and export reproduces it."""

import json

import pytest
from support.command import PROGRAM, python, run
from support.golden_cases import preset_of

from bart_export.checkpoints.resolve import ResolvedPreset
from bart_export.cli.tune import recipe_name
from bart_export.errors import ConfigurationError
from bart_export.export.options import TfliteOptions
from bart_export.export.pipeline import export
from bart_export.recipes import table
from bart_export.recipes.metrics import parse_bounds
from bart_export.tune.budget_search import BudgetSearch, FileFigures, export_tolerance
from bart_export.tune.precision_steps import PrecisionStep, apply_steps
from bart_export.tune.tune import STORAGE_OPTIONS, tune
from bart_export.verify.data import read_texts
from bart_export.verify.golden import TEXTS

BUDGET = 0.5  # nats: int8 keeps it and int4 does not


@pytest.fixture(scope="module")
def tiny(symmetric_artifact):
    return preset_of(symmetric_artifact)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text[:60]}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def tuned(tiny, texts):
    stages = []
    resolved, given = ResolvedPreset(tiny), read_texts(texts)
    return tune(resolved, "tuned", {"kl": BUDGET}, given, stages.append), stages


def test_the_file_is_smaller_and_keeps_the_budget(tuned):
    found, stages = tuned
    assert found.found.size < found.widest.size
    assert found.widest.figures["kl"] < found.found.figures["kl"] <= BUDGET
    assert set(found.storages.values()) <= set(STORAGE_OPTIONS)
    assert len(set(found.storages.values())) > 1
    assert sum(stage.startswith("measure file") for stage in stages) == found.files
    assert "measure every layer's sensitivity" in stages


def test_export_makes_the_file_that_was_measured(tuned, tiny, tmp_path):
    found, _ = tuned
    path = tmp_path / "tuned.json"
    table.write_recipe(path, found.recipe)
    recipe = table.read_recipe(path)
    assert recipe == found.recipe
    # A checkpoint with random weights has very different figures on other texts.
    options = TfliteOptions((recipe,), tolerance={"top1": 0.1, "relative": 1.0, "kl": 10.0})
    artifact = export(tiny, options, tmp_path / "artifact")
    entry = artifact.manifest.files["tflite/tuned.tflite"]
    assert (entry.sha256, entry.bytes) == (found.found.sha256, found.found.size)
    assert recipe.tolerance["kl"] == 3 * BUDGET


def test_a_budget_that_int8_misses_fails_in_one_line_and_writes_nothing(tiny, texts, tmp_path):
    output = tmp_path / "never.json"
    budget = ("--budget", "kl=1e-9", "--data", texts, "--output", output)
    # In a subprocess, because native libraries write to standard error.
    result = python(PROGRAM, "tune", tiny, *budget)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "must be at most 1e-09, received " in result.stderr
    assert "dynamic_wi8_afp32" in result.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "rouge_l=0.5", "--data", "TEXTS"], "needs texts with references"),
        (["--budget", "top1=0.9"], "give some with --data"),
        (["--budget", "weights=0.5", "--data", "TEXTS"], "A budget must bound one of logits"),
        (["--budget", "speed=2"], "A metric must be one of"),
        (["--budget", "top1=98"], "received 98. Did you mean 0.98?"),
        (["--budget", "top1=0.9", "--output", "dynamic_wi8_afp32.json"], "name must consist of"),
        (["--budget", "top1=0.9", "--data", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_a_budget_that_cannot_be_measured_is_refused(tiny, texts, arguments, words):
    given = [str(texts) if word == "TEXTS" else word for word in arguments]
    result = run("tune", tiny, *given)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


def test_a_recipe_overwrites_no_file_by_mistake(tiny, texts, tmp_path):
    there, link, loose = tmp_path / "there.json", tmp_path / "link.json", tmp_path / "loose.json"
    there.write_text("precious")
    link.symlink_to(there)
    loose.symlink_to(tmp_path / "nowhere" / "file.json")
    data = tmp_path / "data.json"
    data.symlink_to(texts)
    device = tmp_path / "device.json"
    device.symlink_to("/dev/full")
    budget = ("--budget", "top1=0.9")
    for path, words, *options in (
        (there, "exists and is not empty"),
        (link, "exists and is not empty"),
        (data, "is also the input", "--data", texts, "--overwrite"),
        (device, "A recipe file must be a regular file"),
        (loose, "in an existing directory"),
        ("/proc/recipe.json", "Cannot write /proc/recipe.json"),
    ):
        result = run("tune", tiny, *budget, "--output", path, *options)
        assert result.exit_code == 2
        assert words in result.stderr.splitlines()[-1]
        assert there.read_text() == "precious"


def test_a_recipe_is_named_after_the_preset_and_the_budget():
    budget = parse_bounds(["top1=0.98", "rouge_l=0.5"])
    name = recipe_name("hf://facebook/bart-base", budget)
    assert name == "bart-base_top1_0_98_rouge_l_0_5"
    assert table.require_name(name) == name


def test_the_tolerance_of_a_share_allows_for_an_exports_few_steps():
    measured = FileFigures(1, "", 1000, {"relative": 0.05, "kl": 0.0015, "top1": 0.99})
    tolerance = export_tolerance({"top1": 0.98, "kl": 0.002, "tokens": 0.8}, measured)
    # 0.98 - 4 sqrt(0.98 * 0.02 / 60)
    assert tolerance == {"relative": 0.15, "kl": 0.006, "top1": 0.9077}
    assert export_tolerance({"top1": 0.001}, measured)["top1"] == 0.0


STEPS = [PrecisionStep(f"layer_{number}", "int8", 100 - number, 0.1) for number in range(16)]
START = {step.layer: "int4" for step in STEPS}


def searched(budget, figures_of):
    """Search among fake files; `figures_of` maps the widened layers to figures."""
    search = BudgetSearch(None, None, START, "it", budget, lambda name: None)

    def measure(storages):
        wide = {layer for layer, storage in storages.items() if storage == "int8"}
        size = 1000 + sum(step.size for step in STEPS if step.layer in wide)
        layers = ((".*", "int4"), *((layer, "int8") for layer in sorted(wide)))
        return search.tried.setdefault(layers, FileFigures(size, "", 1000, figures_of(wide)))

    search.measure = measure
    search.measure(apply_steps(START, STEPS))
    recipe, _ = search.run(START, STEPS)
    return search, {layer for layer in START if recipe.storage(layer).name == "int8"}


LAYERS = [step.layer for step in STEPS]


@pytest.mark.parametrize(
    "needed",
    [*(LAYERS[:count] for count in range(17)), [*LAYERS[:5], *LAYERS[6:8]]],  # one is not needed
    ids=len,
)
def test_no_more_layers_are_widened_than_must_be(needed):
    def figures(wide):
        return {"kl": 0.1 if wide.issuperset(needed) else 0.5, "top1": 0.9, "relative": 0.1}

    search, found = searched({"kl": 0.2}, figures)
    assert found == set(needed)
    assert len(search.tried) <= 1 + 5 + 4  # all wide, the bisection, and dropped steps


def test_a_lucky_count_of_steps_does_not_pass():
    def figures(wide):
        kl = 0.0001 * (17 - len(wide)) ** 2
        share = 1 - 0.5 * kl**0.5
        return {"kl": kl, "relative": 0.1, "top1": 0.99 if len(wide) == 8 else share}

    # By the count 8 wide layers would do; by divergence, 1 - 0.5 * 0.01 * (17 - 13) is 0.98.
    _, found = searched({"top1": 0.9799}, figures)
    assert len(found) in (12, 13)


@pytest.mark.slow
def test_the_mini_model_gets_smaller_within_a_budget(tmp_path):
    output = tmp_path / "mini.json"
    result = run("tune", "bart_mini_en", "--budget", "top1=0.97", "--output", output)
    assert result.exit_code == 0, result.stderr
    assert table.read_recipe(output).name == "mini"
    assert "top1 is between 0.9" in " ".join(result.stdout.split())
    assert f"--target tflite --recipe {output}" in " ".join(result.stdout.split())


def test_an_empty_budget_is_refused():
    with pytest.raises(ConfigurationError, match="needs a budget"):
        tune(ResolvedPreset("bart_mini_en"), "it", {})
