"""`bart-export serve`: its options, errors and imports."""

import dataclasses
import json
import logging
import pathlib
import sys

import pytest
from support.command import printed, python, refusal
from support.paths import CASES

from bart_export.cli.serve import OPTIONS, SERVE_PACKAGES, SWITCHES, Lines
from bart_export.errors import pip_install
from bart_export.server import serve
from bart_export.server.options import ServeOptions

HEAVY = {"grpc", "uvicorn", "starlette", "google", "numpy", "tensorflow", "ai_edge_litert"}


@pytest.fixture
def asked(monkeypatch):
    """Return a function that returns the arguments of a server without starting it."""
    calls = []
    monkeypatch.setattr(serve, "serve", lambda *arguments: calls.append(arguments))

    def serve_with(*arguments):
        """Return the models, the options, the print function and the configuration file."""
        assert printed("serve", *arguments) == ""
        (call,) = calls
        return call

    return serve_with


@pytest.fixture
def base_path(tmp_path):
    path = tmp_path / "half_plus_two"
    (path / "1").mkdir(parents=True)
    return path


def test_every_option_of_a_server_has_a_flag():
    fields = {field.name for field in dataclasses.fields(ServeOptions)}
    assert {row[0] for row in (*OPTIONS, *SWITCHES)} == fields


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
    ("--allow-reload-requests", None, "allow_reload_requests", True),
    ("--ssl-config-file", "s", "ssl_config_file", pathlib.Path("s")),
    ("--allowed-host", "a,b", "allowed_hosts", ("a", "b")),
    ("--allowed-origin", "http://a", "allowed_origins", ("http://a",)),
    ("--load-seconds", "9", "load_seconds", 9.0),
    ("--drain-seconds", "0", "drain_seconds", 0.0),
    ("--no-batching", None, "batching", False),
    ("--no-page", None, "page", False),
    ("--no-warmup", None, "warmup", False),
]


@pytest.mark.parametrize(("flag", "text", "field", "value"), GIVEN)
def test_a_flag_sets_its_field_and_no_other(asked, base_path, flag, text, field, value):
    _, options, _, _ = asked(base_path, *([flag] if text is None else [flag, text]))
    assert options == dataclasses.replace(ServeOptions(), **{field: value})


def test_a_directory_is_served_under_its_name(asked, base_path):
    (model,), _, _, config_file = asked(base_path)
    assert (model.name, model.base_path, config_file) == ("half_plus_two", base_path, None)


def test_a_base_path_is_served_under_the_name_given_which_steers_no_terminal(
    asked, base_path, capsys
):
    (model,), _, say, _ = asked("--model-name", "m", "--model-base-path", base_path)
    assert (model.name, model.base_path) == ("m", base_path)
    say("Model \x1b[2J\nm: version 1")
    assert capsys.readouterr().out == "Model \\u001b[2J\\nm: version 1\n"


def test_a_configuration_says_what_is_served(asked, tmp_path, base_path):
    config = tmp_path / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "m" base_path: "{base_path}" '
        'model_platform: "tensorflow" } }'
    )
    polling = "--model-config-file-poll-seconds", "5"
    (model,), options, _, config_file = asked("--model-config-file", config, *polling)
    assert (model.name, options.model_config_poll_seconds, config_file) == ("m", 5.0, config)


CHECKPOINT = CASES / "task-specific-params"
FREE = ("--port", "0", "--rest-api-port", "0")
REFUSED = [
    ((), "Expected one of ARTIFACT..."),
    (("{m}", "--model-config-file", "f"), "Expected one of ARTIFACT..."),
    (("{m}", "--model-name", "m"), "Expected one of ARTIFACT..."),
    (("--model-name", "m"), "--model-name and --model-base-path must be given together"),
    (("--model-base-path", "{m}"), "--model-name and --model-base-path must be given together"),
    (("--model-config-file", "f", "--engine", "litert"), "set model_platform"),
    (("{m}", "--model-config-file-poll-seconds", "1"), "needs a --model-config-file"),
    (("{m}", "--batching-parameters-file", "f", "--no-batching"), "contradict"),
    (("{m}", "--engine", "onnx"), "An engine must be one of litert, tensorflow, received 'onnx'"),
    (("{m}", "--port", "65536"), "65536 is not in the range"),
    (("{m}", "--request-seconds", "0"), "0.0 is not in the range"),
    *(
        (("{m}", flag, value), f"{float(value)} is not in the range")
        for value in ("1e300", "inf")
        for flag in ("--request-seconds", "--poll-seconds", "--load-seconds", "--drain-seconds")
    ),
    (("{m}", "--workers", "0"), "0 is not in the range"),
    (("{m}", "--drain-seconds", "nan"), "'nan' is not a number of seconds"),
    (("{m}", "--max-request-bytes", "9" * 30), "--max-request-bytes must be a number from 0 to"),
    (("--engine", "litert"), "received none of them. An ARTIFACT is a directory"),
    (("{m}", "--model-config-file", "f"), "received several of them"),
    (("{m}/none",), "There is no directory {m}/none. Expected an artifact"),
    (("bart_large_en",), "bart_large_en is a preset. Export it to an artifact with: bart-export "),
    (("{m}/1",), "is neither."),
    ((__file__,), "An artifact is a directory with a manifest.json, but "),
    ((CHECKPOINT,), "is a checkpoint. Export it to an artifact with: bart-export --preset "),
    ((CHECKPOINT, "--engine", "litert"), "is a checkpoint. Export it to an artifact with: "),
    (("{m}", "--engine", "litert"), "has no manifest.json"),
    (("{m}", "{m}/../half_plus_two"), "both named half_plus_two"),
    (("--model-config-file", "{m}/none"), "cannot be read"),
    (("{m}", "--allowed-host", "a:80", *FREE), "--allowed-host must have the form"),
    (("{m}", "--allowed-origin", "https://a/b", *FREE), "--allowed-origin must have the form"),
    (("{m}", "--port", "8500", "--rest-api-port", "8500"), "need different ports"),
    (("{m}", "--ssl-config-file", "{m}/none", *FREE), "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "told"), REFUSED)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(base_path, arguments, told):
    line = refusal("serve", *(str(text).format(m=base_path) for text in arguments))
    assert told.format(m=base_path) in line


@pytest.mark.parametrize("module", sorted({*SERVE_PACKAGES, "tensorflow"}))
def test_a_missing_package_is_one_line_that_says_how_to_install_it(monkeypatch, base_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    extra = "export" if module == "tensorflow" else "serve"
    line = refusal("serve", base_path)
    assert line.endswith(f"Install it with: {pip_install(extra)}")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["serve"]])
def test_help_and_refusals_load_nothing_heavy(arguments):
    program = (
        "import json, sys\n"
        "from bart_export.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    output = python(program, *arguments).stdout
    imported = {name.split(".")[0] for name in json.loads(output.splitlines()[-1])}
    assert imported & HEAVY == set()


def test_a_log_has_a_line_for_a_message_and_steers_no_terminal():
    lines = Lines("%(levelname)s %(message)s")
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        told = lines.format(logging.LogRecord(
            "bart_export", logging.ERROR, "file", 1, "a\n%s", ("\x9b2J",), sys.exc_info()
        ))  # fmt: skip
    first, *trace = told.split("\n")
    assert first == r"ERROR a\n\u009b2J"
    assert trace[0].startswith("Traceback") and trace[-1] == r"ValueError: \u001b[2J"


def test_a_directory_of_artifacts_is_told_what_it_holds(base_path):
    parent = base_path.parent
    for name, words in (
        ("one", f"Did you mean {parent / 'one'}?"),
        ("other", "It contains artifacts: one, other."),
    ):
        (parent / name).mkdir()
        (parent / name / "manifest.json").write_text('{"manifest_sha256": 1}')
        assert words in refusal("serve", parent)
    misspelt = parent / "othr"
    assert f"{misspelt} does not exist. Did you mean {parent / 'other'}?" in refusal(
        "serve", misspelt
    )
