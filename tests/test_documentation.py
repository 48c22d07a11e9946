"""The documentation matches the code, and its commands and programs work."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import tomllib
from support.hub_processes import serving
from support.hub_server import WRITER, Hub
from support.pages import PAGES, README, ROOT, blocks, command_lines, commands

import bart_export
from bart_export import errors
from bart_export.cli.main import main
from bart_export.recipes.table import RECIPES

PROGRAM = Path(sysconfig.get_path("scripts")) / "bart-export"
ASSETS = ROOT / "bart_export" / "assets"
TEXTS = 8
# Arguments that cannot be provided: a hub's checkpoints, another runtime, a server's directory.
ELSEWHERE = {"bart_large_en_cnn", "bart_base_en", "tflite-runtime", "/models/half_plus_two"}
HERE = [command for command in commands() if not ELSEWHERE & {*command}]
# Pages on which every command and option is this package's.
OTHERS = ("serving/README.md", "android/README.md", "docs/guide/scale.md")
OURS = [page for page in PAGES if page not in OTHERS]
SCALE = "docs/guide/scale.md"
EXAMPLES = [line for line in command_lines(SCALE) if line.startswith("python examples/beam")]
# Other programs on these pages. The curl commands run in test_clients.py.
PROGRAMS = {
    "CONTRIBUTING.md": {".", "pre-commit"},
    "docs/guide/generate.md": {"eval"},
    "serving/README.md": {"curl", "docker", "grpcurl", "kubectl", "rsync", "ssh", "tar"},
}


def test_the_readme_is_short():
    assert len(README.encode()) <= 8192


def test_the_tables_of_the_documentation_are_those_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from document_tables import TABLES, filled

    for name, (page, _) in TABLES.items():
        assert filled(name, PAGES[page]) == PAGES[page], "run tools/document_tables.py"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    """Sphinx checks the links in docs/ and in the files that it includes."""
    targets = re.findall(r"\]\(([^)#]+)|src=\"([^\"]+)\"", PAGES[page])
    missing = [
        target
        for target in map("".join, targets)
        if "://" not in target and not (ROOT / target).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_are_named_exist(page):
    tops = {path.name for path in ROOT.iterdir()} - {"artifacts", "build"}
    named = re.findall(r"`([\w.-]+)(/[\w./-]*)`", PAGES[page])
    paths = {f"{top}{rest}" for top, rest in named if top in tops}
    made = {"android/app/src/main/assets/bart"}
    assert [path for path in paths - made if not (ROOT / path).exists()] == []


def test_the_hardware_of_the_readme_has_recipes():
    (rows,) = re.findall(r"^\| hardware .*\n\|---.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert len(rows.splitlines()) == 4
    for row in rows.splitlines():
        named = re.findall(r"`(\w+)`", row)
        assert named, row
        assert {*named} <= RECIPES.keys()


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_other_programs_name_what_there_is(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in command_lines(page):
        words = shlex.split(line, comments=True)
        program = next(word for word in words if "=" not in word)
        if program == "make":
            assert {*words[1:]} <= {*targets}, line
        elif program == "pip":
            extras = re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*)\]", line)))
            assert {*extras} <= project["optional-dependencies"].keys(), line
        elif program == "python":
            assert (ROOT / words[1]).is_file(), line
        elif program != "bart-export":  # test_house.py parses those
            assert program in PROGRAMS.get(page, ()), line


def options(command):
    """Return the options of a click command and its sub-commands."""
    own = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    return own.union(*map(options, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", OURS)
def test_options_in_sentences_exist(page):
    code = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", PAGES[page])
    named = {word.partition("=")[0] for span in code for word in re.findall(r"--[\w-]+\S*", span)}
    assert named <= options(main) | {"--help"}
    for command, name in re.findall(r"`bart-export (\w+)(?: (\w+))?", PAGES[page]):
        assert command in main.commands
        if command == "edgetpu":
            assert name in main.commands[command].commands


def run_program(program, artifact, place):
    """Run a program beside `artifacts/bart_mini_en` and return its output."""
    (place / "artifacts").mkdir()
    (place / "artifacts" / "bart_mini_en").symlink_to(artifact.directory)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_python_of_the_readme_runs(mini_artifact, tmp_path):
    (program,) = blocks("python", "README.md")
    (headline,) = run_program(program, mini_artifact, tmp_path)
    assert headline


def test_the_python_of_the_guide_generates_the_same_in_every_way(mini_artifact, tmp_path):
    program = "".join(blocks("python", "docs/guide/generate.md"))
    program += "print(result.text)\n"
    headline, streamed, *generated = run_program(program, mini_artifact, tmp_path)
    assert headline
    assert streamed == generated[0] * 2  # the stream does not end its line
    assert generated[0] == generated[1]


def test_the_python_of_the_hubs_page_runs(hub, mini_artifact, tmp_path):
    done = run(tmp_path, "push", str(mini_artifact.directory), "me/bart_mini_en")
    assert done.returncode == 0, done.stderr
    (program,) = blocks("python", "docs/guide/hub.md")
    (headline,) = run_program(program, mini_artifact, tmp_path)
    assert headline


@pytest.mark.slow
def test_the_beam_pipeline_of_the_guide_runs(mini_artifact, tmp_path):
    (program,) = (code for code in blocks("python", SCALE) if "beam.Pipeline" in code)
    headline, error = run_program(program, mini_artifact, tmp_path)
    assert "'id': 1" in headline and "'generated_text': '" in headline
    assert "'id': 2" in error and "must not be blank" in error


@pytest.mark.slow
@pytest.mark.parametrize("line", EXAMPLES)
def test_a_beam_example_of_the_guide_writes_a_row_for_each_text(mini_artifact, tmp_path, line):
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "bart_mini_en").symlink_to(mini_artifact.directory)
    rows = (ASSETS / "bart_mini_en" / "calibration.jsonl").read_text().splitlines()[-TEXTS:]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows) + "\n")
    _, script, *words = shlex.split(line)
    done = subprocess.run(
        [sys.executable, ROOT / script, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written = sorted(tmp_path.glob("build/headlines*.jsonl"))
    assert sum(len(path.read_text().splitlines()) for path in written) == TEXTS


def test_the_demo_of_the_readme_is_what_it_prints(mini_artifact):
    (text,) = re.findall(r"^> (.*)$", README, re.MULTILINE)
    (headline,) = re.findall(r"<!-- headline -->\n    (.*)\n", README)
    done = subprocess.run(
        [PROGRAM, "generate", mini_artifact.directory, text], capture_output=True, text=True
    )
    assert done.stdout == f"{headline}\n", done.stderr


def test_every_public_name_is_in_the_reference():
    page = PAGES["docs/reference/python.md"]
    public = {f"bart_export.{name}" for name in bart_export.__all__}
    public |= {f"bart_export.runtime.{name}" for name in bart_export.runtime.__all__}
    named = {*re.findall(r"auto\w+:: ([\w.]+)", page), *re.findall(r"`(bart_export[\w.]+)`", page)}
    same = {"bart_export.runtime.Generator": "bart_export.Generator"}
    assert {same.get(name, name) for name in public} <= named
    (listed,) = re.findall(r"bart_export.errors\n   :members: (.*)", page)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    family = {kind.__name__ for kind in kinds if issubclass(kind, errors.BartExportError)}
    assert {*listed.split(", ")} == family


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Let `hf://` be a loopback hub, with an account that may write."""
    with serving(Hub(files={})) as address, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path_factory.mktemp("hf")),
            "HF_TOKEN": WRITER,
            "HF_HUB_DISABLE_XET": "1",
        }.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, hub):
    """Return a directory with the files named by the commands."""
    place = tmp_path_factory.mktemp("documentation")
    shutil.copytree(ASSETS / "bart_mini_en", place / "my_bart")
    (place / "android/app/src/main").mkdir(parents=True)
    (place / "android/settings.gradle.kts").touch()
    lines = (ASSETS / "bart_mini_en" / "calibration.jsonl").read_text().splitlines()[-TEXTS:]
    (place / "texts.jsonl").write_text("\n".join(lines) + "\n")
    texts = [" ".join(json.loads(line)["text"].split()) for line in lines]
    (place / "texts.txt").write_text("\n".join(texts) + "\n")
    (place / "models.config").write_text(
        'model_config_list { config { name: "headlines" base_path: "'
        f'{place / "artifacts/bart_mini_en"}" model_platform: "tensorflow" }} }}\n'
    )
    return place


def run(place, *words):
    return subprocess.run(
        [PROGRAM, *words], cwd=place, capture_output=True, text=True, timeout=1200, input=""
    )


def serves(place, *words):
    """Start a server, stop it once it has a model, and return its exit code and output."""
    with subprocess.Popen(
        [PROGRAM, *words], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Model "):
                process.send_signal(signal.SIGTERM)
        return process.wait(60), "".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("command", HERE, ids=shlex.join)
def test_a_command_of_the_documentation_does_what_it_says(place, command):
    words = command[1:]
    if "earlier.json" in words:
        earlier = run(place, "bench", "artifacts/bart_mini_en", "--json")
        assert earlier.returncode == 0, earlier.stderr
        (place / "earlier.json").write_text(earlier.stdout)
    if words[0] == "serve":
        code, said = serves(place, *words)
        assert code == 0, said
        assert "Model " in said
        return
    done = run(place, *words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_recipe_of_the_guide_is_within_its_own_tolerance(tmp_path):
    (recipe,) = blocks("json", "docs/guide/quality.md")
    (tmp_path / "recipe.json").write_text(recipe)
    done = run(
        tmp_path, "--preset", "bart_mini_en", "--target", "tflite", "--recipe", "recipe.json",
        "--output", "artifact",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "artifact" / "manifest.json").read_text())
    (row,) = manifest["verification"]
    assert row["top1"] >= json.loads(recipe)["tolerance"]["top1"]


def test_few_commands_of_the_documentation_cannot_be_run_here():
    left_out = len(commands()) - len(HERE)
    assert left_out <= 5
    assert len(HERE) >= 25
