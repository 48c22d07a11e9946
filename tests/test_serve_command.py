"""`bart-export serve`: what arguments become, what is refused, and what is not loaded for it."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import click.testing
import pytest

from bart_export.cli import main
from bart_export.errors import pip_install
from bart_export.serve_command import OPTIONS, SERVE_PACKAGES, SWITCHES
from bart_export.server import serve
from bart_export.server.options import ServeOptions

HEAVY = {"grpc", "uvicorn", "starlette", "google", "numpy", "tensorflow", "ai_edge_litert"}
# Nobody asked to choose these on the command line.
FIXED = {"load_retries", "retry_seconds"}


def run(*arguments):
    """Run the command in this process; return its exit code and what it wrote."""
    outcome = click.testing.CliRunner().invoke(main, ["serve", *map(str, arguments)])
    return outcome.exit_code, outcome.output


@pytest.fixture
def asked(monkeypatch):
    """Keep what the server would be started with, instead of starting it."""
    calls = []
    monkeypatch.setattr(serve, "serve", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture
def base_path(tmp_path):
    path = tmp_path / "half_plus_two"
    path.mkdir()
    return path


def test_every_option_of_a_server_has_a_flag():
    fields = {field.name for field in dataclasses.fields(ServeOptions)}
    assert {row[0] for row in (*OPTIONS, *SWITCHES)} == fields - FIXED


GIVEN = [
    ("--engine", "tensorflow", "engine", "tensorflow"),
    ("--host", "::1", "host", "::1"),
    ("--port", "1", "port", 1),
    ("--rest-api-port", "2", "rest_api_port", 2),
    ("--workers", "3", "workers", 3),
    ("--threads", "4", "num_threads", 4),
    ("--queue-size", "0", "queue_size", 0),
    ("--max-connections", "7", "max_connections", 7),
    ("--max-request-bytes", "6", "max_request_bytes", 6),
    ("--request-seconds", "0.7", "request_seconds", 0.7),
    ("--batching-parameters-file", "b", "batching_parameters_file", pathlib.Path("b")),
    ("--poll-seconds", "0", "poll_seconds", 0.0),
    ("--allow-version-labels-for-unavailable-models", None, "allow_labels_for_unavailable", True),
    ("--ssl-config-file", "s", "ssl_config_file", pathlib.Path("s")),
    ("--monitoring-config-file", "m", "monitoring_config_file", pathlib.Path("m")),
    ("--allowed-host", "a", "allowed_hosts", ("a",)),
    ("--allowed-origin", "http://a", "allowed_origins", ("http://a",)),
    ("--drain-seconds", "0", "drain_seconds", 0.0),
    ("--no-batching", None, "batching", False),
    ("--no-page", None, "page", False),
    ("--no-warmup", None, "warmup", False),
]


@pytest.mark.parametrize(("flag", "text", "field", "value"), GIVEN)
def test_a_flag_sets_its_field_and_no_other(asked, base_path, flag, text, field, value):
    arguments = [flag] if text is None else [flag, text]
    assert run(base_path, *arguments) == (0, "")
    ((_, options, _, _),) = asked
    assert options == dataclasses.replace(ServeOptions(), **{field: value})


def test_a_directory_is_served_under_its_name(asked, base_path):
    assert run(base_path) == (0, "")
    (((model,), _, _, config_file),) = asked
    assert (model.name, model.base_path) == ("half_plus_two", base_path)
    assert config_file is None


def test_a_base_path_is_served_under_the_name_given(asked, base_path):
    assert run("--model-name", "m", "--model-base-path", base_path) == (0, "")
    (((model,), _, _, _),) = asked
    assert (model.name, model.base_path) == ("m", base_path)


def test_a_configuration_says_what_is_served(asked, tmp_path, base_path):
    config = tmp_path / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "m" base_path: "{base_path}" '
        'model_platform: "tensorflow" } }'
    )
    polling = "--model-config-file-poll-seconds", "5"
    assert run("--model-config-file", config, *polling) == (0, "")
    (((model,), options, _, config_file),) = asked
    assert (model.name, options.model_config_poll_seconds, config_file) == ("m", 5.0, config)


FREE = ("--port", "0", "--rest-api-port", "0")
REFUSED = [
    ((), "Say in one way what to serve"),
    (("{m}", "--model-config-file", "f"), "Say in one way what to serve"),
    (("{m}", "--model-name", "m"), "Say in one way what to serve"),
    (("--model-name", "m"), "--model-name and --model-base-path belong together"),
    (("--model-base-path", "{m}"), "--model-name and --model-base-path belong together"),
    (("--model-config-file", "f", "--engine", "litert"), "says model_platform"),
    (("{m}", "--model-config-file-poll-seconds", "1"), "needs a --model-config-file"),
    (("{m}", "--batching-parameters-file", "f", "--no-batching"), "contradict"),
    (("{m}", "--engine", "onnx"), "'onnx' is not one of 'tensorflow', 'litert'"),
    (("{m}", "--port", "65536"), "65536 is not in the range"),
    (("{m}", "--request-seconds", "0"), "0.0 is not in the range"),
    (("{m}", "--workers", "0"), "0 is not in the range"),
    (("{m}/none",), "none is not a directory"),
    (("{m}", "--engine", "litert"), "has no manifest.json"),
    (("{m}", "{m}/../half_plus_two"), "both named half_plus_two"),
    (("--model-config-file", "{m}/none"), "cannot be read"),
    (("{m}", "--allowed-host", "a:80", *FREE), "a name or an address without a port"),
    (("{m}", "--allowed-origin", "https://a/b", *FREE), "a scheme, a host and perhaps a port"),
    (("{m}", "--port", "8500", "--rest-api-port", "8500"), "need a port each"),
    (("{m}", "--ssl-config-file", "{m}/none", *FREE), "Cannot read"),
    (("{m}", "--monitoring-config-file", "{m}/none", *FREE), "should hold a MonitoringConfig"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "told"), REFUSED)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(base_path, arguments, told):
    code, output = run(*(text.format(m=base_path) for text in arguments))
    assert code == 2
    assert told in output
    assert len([line for line in output.splitlines() if line.startswith("Error: ")]) == 1
    assert "Traceback" not in output


@pytest.mark.parametrize("module", sorted({*SERVE_PACKAGES, "tensorflow"}))
def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    asked, monkeypatch, base_path, module
):
    monkeypatch.setitem(sys.modules, module, None)
    extra = "export" if module == "tensorflow" else "serve"
    code, output = run(base_path)
    assert code == 2
    assert output.endswith(f"Install it with: {pip_install(extra)}\n")
    assert asked == []


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["serve"]])
def test_help_and_refusals_load_nothing_heavy(arguments):
    program = (
        "import json, sys\n"
        "from bart_export.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    imported = {name.split(".")[0] for name in json.loads(output.splitlines()[-1])}
    assert imported & HEAVY == set()
