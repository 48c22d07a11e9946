"""The rules of the house, checked on the source: layers, imports, names, sizes, documents."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
from support.command import PROGRAM, python
from support.pages import blocks, commands

import bart_export
from bart_export.cli.main import main
from bart_export.recipes.table import RECIPES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bart_export"
MODULES = sorted(PACKAGE.rglob("*.py"))
# The public names and the program, which may import anything.
ABOVE = {PACKAGE / name for name in ("__init__.py", "__main__.py", "models.py")}
ROOMS = [path for path in MODULES if path not in ABOVE]

# The rooms in order: a module imports only from its own and earlier ones. Modules directly in the
# package are "words".
ORDER = ("words", "recipes", "artifact", "text", "edgetpu", "runtime", "server", "scale", "bench",
         "checkpoints", "model", "graph", "convert", "verify", "tune", "report", "export",
         "cli")  # fmt: skip
# Earlier rooms that a room must not import: makers of files do not depend on their runtimes.
RUN = {"server", "scale", "bench"}
NOT = dict.fromkeys(("checkpoints", "model", "graph", "convert"), {"runtime", *RUN})
NOT["verify"] = RUN
NOT["tune"] = NOT["report"] = RUN - {"bench"}
NOT["scale"] = {"edgetpu", "server"}
# The order of the modules inside a room.
INSIDE = {
    "server": ("options", "status", "messages", "json_tensors", "metrics", "servable", "versions",
               "models_config", "merging", "batching", "worker", "worker_pool", "litert_engine",
               "tensorflow_engine", "model_store", "predict", "open_version", "http_server",
               "rest", "grpc_server", "serve"),
    "verify": ("data", "golden", "traces", "weights", "structure", "tolerance", "compare",
               "checks", "reference", "tokenization", "saved_model"),
}  # fmt: skip
TENSOR_LIBRARIES = {"tensorflow", "keras", "keras_hub", "litert_quantizer", "torch"}
WITH_TENSOR_LIBRARIES = {"model", "graph", "convert", "verify", "tune", "export"}


def dotted(path):
    """Return the module name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(path) for path in MODULES}


def layer_of(name):
    """Return the room of a module."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "words"


def imports(path):
    """Yield (line, module) for every import of a file, including those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in NAMES:
                    yield node.lineno, submodule
                elif node.module == "bart_export":
                    yield node.lineno, bart_export.MODULES.get(alias.name, "bart_export")
                else:
                    yield node.lineno, node.module


def test_imports_point_down_the_layers():
    wrong = []
    for path in ROOMS:
        layer = layer_of(dotted(path))
        assert layer in ORDER, f"{path} belongs to no room: give it a place in ORDER"
        below = {*ORDER[: ORDER.index(layer) + 1]} - NOT.get(layer, set())
        for line, module in imports(path):
            if module.split(".")[0] != "bart_export":
                continue
            if layer_of(module) not in below:
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({layer}) imports {module}")
    assert wrong == []


@pytest.mark.parametrize("room", INSIDE)
def test_imports_point_down_inside_a_room(room):
    order = INSIDE[room]
    modules = [path for path in (PACKAGE / room).glob("*.py") if path.stem != "__init__"]
    assert sorted(path.stem for path in modules) == sorted(order)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in modules
        for line, module in imports(path)
        if module.startswith(f"bart_export.{room}.")
        and module.split(".")[2] not in order[: order.index(path.stem)]
    ]
    assert wrong == []


def test_tensor_libraries_are_met_only_where_models_are():
    # checkpoints may read a PyTorch file where torch is installed; one engine of the server runs
    # SavedModels.
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in MODULES
        for line, module in imports(path)
        if module.split(".")[0] in TENSOR_LIBRARIES
        and layer_of(dotted(path)) not in WITH_TENSOR_LIBRARIES
        and (layer_of(dotted(path)), module) != ("checkpoints", "torch")
        and dotted(path) != "bart_export.server.tensorflow_engine"
    ]
    assert wrong == []


def modules_after(code, *arguments):
    """Return the modules that a new interpreter has imported after `code`."""
    ending = "import json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    program = f"try:\n    {code}\nfinally:\n    {ending}"
    run = python(program, *arguments)
    assert run.returncode == 0, run.stderr
    return {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


@pytest.mark.parametrize("module", ["text.tokenizer", "runtime", "runtime.generator", "cli.main"])
def test_the_edge_imports_no_tensor_library(module):
    imported = modules_after(f"import bart_export.{module}")
    assert imported & TENSOR_LIBRARIES == set()


SERVING_LIBRARIES = {"starlette", "uvicorn", "prometheus_client", "grpc_health", "grpc_reflection"}


def test_what_an_export_takes_of_the_server_needs_no_library_of_servers():
    imported = modules_after("import bart_export.export.warm_up")
    assert "bart_export" in imported
    assert imported & SERVING_LIBRARIES == set()


HELP = "from bart_export.cli.main import main; main(['--help'], standalone_mode=False)"


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["presets"]])
def test_help_imports_no_heavy_library(arguments):
    heavy = TENSOR_LIBRARIES | {"numpy", "ai_edge_litert", "h5py", "kagglehub", "huggingface_hub"}
    assert modules_after(PROGRAM, *arguments) & heavy == set()


def test_generating_imports_no_tensor_library(mini_artifact):
    imported = modules_after(PROGRAM, "generate", mini_artifact.directory, "A game.")
    assert "ai_edge_litert" in imported
    assert imported & (TENSOR_LIBRARIES | {"huggingface_hub", "fsspec"}) == set()


@pytest.mark.parametrize(
    ("statement", "limit"), [("import bart_export", 20), (HELP, 130)], ids=["import", "help"]
)
def test_what_is_asked_often_imports_little(statement, limit):
    program = (
        f"import sys; before = len(sys.modules)\n{statement}\nprint(len(sys.modules) - before)"
    )
    assert 0 < int(python(program).stdout.splitlines()[-1]) < limit


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_is_one_room(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines: it wants to be two modules"
    assert path.stem not in ("utils", "util", "common", "helpers", "misc", "tools", "base")


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == bart_export.__version__


@pytest.mark.parametrize("words", commands(), ids=shlex.join)
def test_every_command_of_the_documentation_parses(words):
    words = words[1:]
    if words[0].startswith("--"):
        context = main.make_context("bart-export", words)
    else:
        context = main.commands[words[0]].make_context(words[0], words[1:])
    used = context.params.get("recipes") or [context.params.get("recipe")]
    named = {name for name in used if name and not name.endswith(".json")}
    assert named <= {*RECIPES, "all"}


def test_every_command_is_documented():
    shown = {words[1] for words in commands()}
    assert set(main.commands) - shown == set()


def test_the_tree_of_the_documentation_is_the_repository():
    (tree,) = (
        block for block in blocks("", "docs/architecture.md") if block.startswith("bart_export/")
    )
    shown = tree_paths(tree)
    missing = [path for path in shown if not (ROOT / path).exists()]
    assert missing == []
    rooms = {f"bart_export/{path.name}" for path in PACKAGE.glob("[a-z]*") if path.stem != "py"}
    assert rooms - {path.rstrip("/") for path in shown} == set()
    drawn = [path.split("/")[1] for path in shown if re.fullmatch(r"bart_export/\w+/", path)]
    assert [room for room in drawn if room in ORDER] == list(ORDER[1:])


def test_the_arrows_of_the_documentation_are_imports():
    (drawing,) = (block for block in blocks("", "docs/architecture.md") if "cli ─▶" in block)
    edges = {
        (layer_of(dotted(path)), layer_of(module)) for path in ROOMS for _, module in imports(path)
    }
    arrows = re.findall(r"(?=\b(\w+(?:, \w+)*) ─▶ (\w+(?:, \w+)*))", drawing)
    drawn = {(a, b) for left, right in arrows for a in left.split(", ") for b in right.split(", ")}
    assert len(drawn) >= 12
    assert drawn - edges == set()


def tree_paths(tree):
    """Return the paths of an indented tree; directories end in a slash."""
    parents, paths = [], []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], line.split()[0]]
        paths.append("".join(parents))
    return paths
