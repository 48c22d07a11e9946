"""The example clients, run as a reader would run them, against both engines of our server."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from support.command import python
from support.paths import ROOT
from support.rest_server import running

from bart_export.runtime import Generator
from bart_export.server import messages, models_config
from bart_export.server.options import ServeOptions

SERVING = ROOT / "serving"
CLIENTS = SERVING / "clients"
TEXT = "A library that reads and writes spreadsheets, row by row."
OTHER = "Games for a rainy day, 文字 and all."


ENGINES = [
    pytest.param("saved_model", id="tensorflow", marks=pytest.mark.slow),
    pytest.param("symmetric", id="litert"),
]


@pytest.fixture(scope="module", params=ENGINES)
def served(request):
    """Return (an artifact, a server with its model)."""
    artifact = request.getfixturevalue(f"{request.param}_artifact")
    models = [models_config.served_model("bart", artifact.directory)]
    with running(models, ServeOptions(port=0, rest_api_port=0, warmup=False)) as server:
        yield artifact, server


@pytest.fixture(params=["rest", "grpc"])
def ask(request, served):
    """Return a way to run a client with arguments against the server."""
    _, server = served
    place = {
        "rest": ("--url", f"127.0.0.1:{server.rest_api_port}"),
        "grpc": ("--address", f"127.0.0.1:{server.port}"),
    }
    return lambda *arguments: run(request.param, *place[request.param], *arguments)


def run(client, *arguments):
    command = [sys.executable, CLIENTS / f"{client}_client.py", "--model", "bart", *arguments]
    return subprocess.run(map(str, command), capture_output=True, text=True, timeout=300)


def test_texts_are_answered_as_by_the_library(ask, served, symmetric_artifact):
    # The SavedModel and the .tflite file of these two artifacts hold the same float32 weights.
    generator = Generator.from_artifact(symmetric_artifact.directory)
    texts = [TEXT] * 8 + [OTHER]  # more than a batch has
    done = ask(*texts)
    assert done.returncode == 0, done.stderr
    expected = [result.text for result in generator.generate(texts)]
    assert done.stdout == "".join(f"{text}\n" for text in expected)


def test_settings_are_those_of_the_request(ask, symmetric_artifact):
    generator = Generator.from_artifact(symmetric_artifact.directory)
    done = ask("--max-length", 7, "--min-length", 3, "--length-penalty", 0.5,
               "--repetition-penalty", 1.2, "--early-stopping", "never", TEXT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = generator.generate(
        TEXT, max_length=7, min_length=3, length_penalty=0.5, repetition_penalty=1.2,
        early_stopping="never",
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == result.text


def test_a_check_replays_what_the_export_recorded(ask, served):
    artifact, _ = served
    done = ask("--check", artifact.directory)
    assert done.returncode == 0, done.stderr + done.stdout
    cases = json.loads((artifact.directory / "golden.json").read_bytes())["cases"]
    file = next(name for name, entry in artifact.manifest.files.items() if entry.target)
    count = int(done.stdout.split()[0])
    assert 0 < count <= len(cases)
    assert done.stdout.startswith(f"{count} of {count} answers")
    assert file.partition("/")[0] in done.stdout


def test_a_check_finds_an_answer_that_differs(ask, served, tmp_path):
    artifact, _ = served
    copied = tmp_path / "copied"
    copied.mkdir()
    shutil.copy(artifact.directory / "manifest.json", copied)
    golden = json.loads((artifact.directory / "golden.json").read_bytes())
    settings = artifact.generation.to_dict()
    case = next(
        case for case in golden["cases"]
        if case["files"] and case["generation"]["num_beams"] == settings["num_beams"]
        and case["generation"]["no_repeat_ngram_size"] == settings["no_repeat_ngram_size"]
    )  # fmt: skip
    for answer in case["files"].values():
        answer["token_ids"][1] += 1
    (copied / "golden.json").write_text(json.dumps(golden))
    done = ask("--check", copied)
    assert done.returncode == 1, done.stderr
    assert "Different answer for setting" in done.stdout


def test_an_error_of_the_server_is_told(ask):
    done = ask("--early-stopping", "perhaps", TEXT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "early_stopping" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there_or_full_is_asked_again_and_told_in_one_line(http_answers):
    """Each client waits for seconds between its attempts, so all run at the same time."""
    with http_answers("503 Service Unavailable") as (port, received), ThreadPoolExecutor() as pool:
        rest = pool.submit(run, "rest", "--url", "http://127.0.0.1:9", TEXT)
        grpc = pool.submit(run, "grpc", "--address", "127.0.0.1:9", TEXT)
        full = pool.submit(run, "rest", "--url", f"http://127.0.0.1:{port}", TEXT)
        rows = [(rest, "bart-export serve"), (grpc, "bart-export serve"), (full, "503")]
        for ending, words in rows:
            done = ending.result()
            assert (done.returncode, done.stdout) == (2, "")
            (line,) = done.stderr.splitlines()
            assert words in line
    assert len(received) == 5


def test_the_grpc_client_is_small_and_knows_the_servers_messages():
    program = (
        f"import sys; sys.path.insert(0, {str(CLIENTS)!r}); import grpc_client; "
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    run = python(program)
    assert "grpc" in run.stdout, run.stderr
    for heavy in ("tensorflow", "numpy", "bart_export"):
        assert f"'{heavy}'" not in run.stdout
    assert (CLIENTS / "serving.binpb").read_bytes() == messages.DESCRIPTORS.read_bytes()


@pytest.mark.parametrize(
    "arguments", [(), ("--check", "x", TEXT), ("--version", "1", "--label", "stable", TEXT)]
)
def test_contradictions_are_refused(arguments):
    done = run("rest", *arguments)
    assert done.returncode == 2
    assert "give texts or --check" in done.stderr


EXAMPLE = re.compile(r"^curl (?:-d '([^']*)' \\\n +)?localhost:8501(/\S+)$", re.MULTILINE)


def test_the_requests_of_the_readme_are_answered(served):
    artifact, server = served
    examples = EXAMPLE.findall((SERVING / "README.md").read_text(encoding="utf-8"))
    assert len(examples) == 6
    has_score = bool(artifact.files("saved_model"))
    for body, path in examples:
        url = f"http://127.0.0.1:{server.rest_api_port}{path.replace('bart_mini_en', 'bart')}"
        answer = requests.post(url, body.encode()) if body else requests.get(url)
        signature = json.loads(body or "{}").get("signature_name")
        assert answer.ok == (signature != "score" or has_score), (signature, answer.text)


STREAMING = (SERVING / "README.md").read_text("utf-8").partition("### Streaming tokens")[2]
SOURCE = "A library that reads and writes spreadsheets."


def example(language, server):
    """Return the first example of streaming in a language, for a server's port."""
    (code, *_) = re.findall(rf"^```{language}\n(.*?)^```$", STREAMING, re.MULTILINE | re.DOTALL)
    assert SOURCE in code
    return code.replace("localhost:8501", f"127.0.0.1:{server.rest_api_port}").replace(
        "bart_mini_en", "bart"
    )


@pytest.mark.parametrize("language", ["sh", "python", "js"])
def test_the_examples_of_streaming_print_the_text(served, symmetric_artifact, language):
    artifact, server = served
    if artifact.files("saved_model"):
        pytest.skip("only LiteRT streams")
    command = {
        "sh": ["bash", "-ec"],
        "python": [sys.executable, "-c"],
        "js": ["node", "--input-type=module", "--eval"],
    }[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [*command, example(language, server)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    generator = Generator.from_artifact(symmetric_artifact.directory)
    result = generator.generate(SOURCE, num_beams=1)
    if language == "sh":
        names = re.findall(r"^event: (.*)$", done.stdout, re.MULTILINE)
        assert names == ["token"] * (len(names) - 1) + ["done"]
        assert json.loads(done.stdout.rpartition("data: ")[2])["generated_text"] == [result.text]
    else:
        assert done.stdout.startswith(result.text)


def test_the_readme_names_the_parameters_and_fields_of_streaming(served):
    """Each parameter that stands in the table is one, and of what comes nothing is left out."""
    artifact, server = served
    if artifact.files("saved_model"):
        pytest.skip("only LiteRT streams")
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/bart:generate"
    fields, events = STREAMING.split("| event | data |")
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", fields, re.MULTILINE)))
    assert {"text", "num_beams", "seed"} <= set(named)
    for name in set(named) - {"text"}:
        answer = requests.post(url, json={"text": SOURCE, name: [[]]})
        assert "unknown" not in answer.json()["error"].lower(), (name, answer.text)
        assert name in answer.json()["error"], (name, answer.text)
    unknown = requests.post(url, json={"text": SOURCE, "beams": [[]]}).json()["error"]
    assert "nknown" in unknown
    answer = requests.post(url, json={"text": SOURCE, "num_beams": 1}).text
    for data in re.findall(r"^data: (.*)$", answer, re.MULTILINE):
        for name in json.loads(data):
            assert f"`{name}`" in events
