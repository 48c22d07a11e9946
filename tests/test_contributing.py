"""CONTRIBUTING.md, the hooks, the workflow and the issue templates are correct."""

import os
import shutil
import subprocess
import sysconfig

import pytest
import yaml
from support.pages import ROOT

SCRIPTS = sysconfig.get_path("scripts")
SOURCES = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")


@pytest.fixture(scope="module")
def hooks(tmp_path_factory):
    """Return a function that runs all hooks but mypy on a copy, because some change files."""
    place = tmp_path_factory.mktemp("hooks")
    listed = subprocess.run(SOURCES, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a clone")
    for name in listed.stdout.split("\0"):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=place, check=True)
    environment = {
        **os.environ,
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "SKIP": "mypy",
        "PRE_COMMIT_HOME": str(tmp_path_factory.mktemp("cache")),
    }
    return lambda *arguments: subprocess.run(
        [f"{SCRIPTS}/pre-commit", "run", *arguments],
        cwd=place, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_the_hooks_pass(hooks):
    done = hooks("--all-files")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("length", "code"), [(65, 0), (66, 1)])
def test_a_hook_bounds_the_subject_of_a_commit(hooks, tmp_path, length, code):
    (tmp_path / "message").write_text(f"{length * 'x'}\n\n{90 * 'y'}\n")
    done = hooks("--hook-stage", "commit-msg", "--commit-msg-filename", tmp_path / "message")
    assert done.returncode == code, done.stdout


def test_hooks_download_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    languages = {hook["language"] for repo in config["repos"] for hook in repo["hooks"]}
    assert languages == {"system", "pygrep"}


def test_the_workflow_runs_every_check():
    workflow = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_issue_templates_ask_something():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"):
        template = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= template.keys(), path
        assert len({part["id"] for part in template["body"]}) == len(template["body"])
