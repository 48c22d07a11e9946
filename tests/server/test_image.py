"""serving/Dockerfile, which is not built here: its text, and the commands that it would run."""

import json
import os
import re
import subprocess
import sysconfig

import pytest
import tomllib
from support.pages import ROOT
from support.serving_process import ServingProcess

SCRIPTS = sysconfig.get_path("scripts")
DOCKERFILE = ROOT / "serving/Dockerfile"


def instructions(wanted):
    """Return the arguments of each instruction with a name; continued lines are joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "").splitlines()
    return [rest for name, _, rest in (line.partition(" ") for line in joined) if name == wanted]


def test_hadolint_has_no_objection():
    done = subprocess.run([f"{SCRIPTS}/hadolint", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_copies_what_exists_and_is_not_ignored():
    kept = (ROOT / "serving/Dockerfile.dockerignore").read_text().splitlines()
    assert kept[0] == "*"
    copied = [words.split()[:-1] for words in instructions("COPY") if "--from" not in words]
    names = [name for words in copied for name in words]
    assert "bart_export" in names
    for name in names:
        assert (ROOT / name).exists()
        assert f"!{name}" in kept


def test_it_installs_an_extra_that_exists_on_a_pinned_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (install,) = instructions("RUN")
    (extra,) = re.findall(r"'\.\[(\w+)\]'", install)
    assert extra in project["optional-dependencies"]
    for image in instructions("FROM"):
        assert re.match(r"python:3\.\d+\.\d+-slim-\w+( AS build)?$", image)


def test_it_does_not_run_as_root():
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


@pytest.fixture
def environment(symmetric_artifact, tmp_path):
    """Return the variables of the image, with an artifact's place."""
    (assigned,) = instructions("ENV")
    names = dict(word.split("=", 1) for word in assigned.split())
    assert names.keys() == {"PATH", "XDG_CACHE_HOME", "MODEL_BASE_PATH", "MODEL_NAME"}
    directory = symmetric_artifact.directory
    return os.environ | {
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path),
        "MODEL_BASE_PATH": str(directory.parent),
        "MODEL_NAME": directory.name,
    }


def test_its_commands_serve_the_artifact_and_tell_whether_it_answers(environment):
    (entry,), (check,) = instructions("ENTRYPOINT"), instructions("HEALTHCHECK")
    *command, name = json.loads(entry)
    assert name == "serve"  # as the shell's $0; the process below gives it, too
    probe = json.loads(check[check.index("[") :])
    server = ServingProcess("--host", "127.0.0.1", command=command, env=environment)
    try:
        server.wait_until_ready()
        words = [word.replace(":8501", f":{server.rest_api_port}") for word in probe]

        def code(**changed):
            environ = environment | changed
            return subprocess.run(words, env=environ, capture_output=True, timeout=60).returncode

        assert code() == 0
        assert code(MODEL_NAME="other") != 0
    finally:
        assert server.stop()[0] == 0
    assert code() != 0
