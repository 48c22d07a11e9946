"""`bart-export serve`: checks the options of a server, and runs it."""

import logging
import pathlib

import click

from bart_export import cli
from bart_export.cli import COUNT, PATH, THREADS, SecondsRange, Value
from bart_export.errors import printable, printable_lines
from bart_export.locations import Location
from bart_export.server.options import ServeOptions

SERVE_PACKAGES = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "google.protobuf": "protobuf",
}
DEFAULTS = ServeOptions()
PORT = click.IntRange(0, 65535)

# Fields of ServeOptions with their flag, type (None for a switch that is off by default) and help.
OPTIONS: tuple[tuple[str, str, Value, str], ...] = (
    ("engine", "--engine", cli.EngineName("litert", "tensorflow"),
     "Engine to serve with. Default: the fastest for the model's files."),
    ("host", "--host", str, "Address to listen on."),
    ("port", "--port", PORT, "Port for gRPC; 0 for any free port."),
    ("rest_api_port", "--rest-api-port", PORT, "Port for REST; 0 for any free port."),
    ("workers", "--workers", THREADS,
     "Processes (litert) or threads (tensorflow) that run a model. Default: one process, or a "
     "thread per core."),
    ("num_threads", "--threads", THREADS,
     "Threads per worker. Default: depends on the model's size and the machine's cores."),
    ("queue_size", "--queue-size", click.IntRange(min=0),
     "Calls that may wait while others run; further calls are refused."),
    ("max_connections", "--max-connections", COUNT,
     "Maximum connections per port; REST closes an idle connection to accept another."),
    ("max_request_bytes", "--max-request-bytes", COUNT,
     "Maximum bytes of a request, before and after decompression."),
    ("max_request_rows", "--max-request-rows", COUNT,
     "Maximum texts, or rows of another input, per request."),
    ("request_seconds", "--request-seconds", SecondsRange(min_open=True),
     "Time limit of a call without a deadline."),
    ("batching_parameters_file", "--batching-parameters-file", PATH,
     "BatchingParameters as a text proto, instead of those in version directories."),
    ("poll_seconds", "--poll-seconds", SecondsRange(),
     "Interval between checks for new versions; 0 for a single check."),
    ("model_config_poll_seconds", "--model-config-file-poll-seconds", SecondsRange(),
     "Interval between reads of --model-config-file; 0 for a single read."),
    ("allow_reload_requests", "--allow-reload-requests", None,
     "Allow gRPC clients to change the served directories (HandleReloadConfigRequest)."),
    ("ssl_config_file", "--ssl-config-file", PATH, "SSLConfig as a text proto: TLS for gRPC."),
    ("allowed_hosts", "--allowed-host", str,
     "Hosts that requests may name in addition to localhost and --host; '*' for any."),
    ("allowed_origins", "--allowed-origin", str,
     "Origins whose pages may use the REST service; '*' for any."),
    ("load_seconds", "--load-seconds", SecondsRange(min_open=True),
     "Time limit for a worker to open a model (litert), or for warm-up requests (tensorflow)."),
    ("drain_seconds", "--drain-seconds", SecondsRange(),
     "Time for running calls to finish when the server shuts down."),
)  # fmt: skip
# Switches that turn off a field of ServeOptions.
SWITCHES = (
    ("batching", "--no-batching", "Run each text (litert) or call (tensorflow) separately."),
    ("page", "--no-page", "Do not serve the page at /."),
    ("warmup", "--no-warmup", "Skip the warm-up requests in version directories."),
)


def server_option(name: str, flag: str, kind: Value, text: str) -> cli.Decorator:
    """Return the option of a row of `OPTIONS`."""
    default = getattr(DEFAULTS, name)
    if isinstance(default, tuple):
        return cli.list_option(flag, name, metavar="TEXT,...", help=text)
    if kind is None:
        return click.option(flag, name, is_flag=True, default=default, help=text)
    shown = default is not None
    return click.option(flag, name, type=kind, default=default, show_default=shown, help=text)


def switch_off(name: str, flag: str, text: str) -> cli.Decorator:
    """Return the option of a row of `SWITCHES`."""
    return click.option(flag, name, is_flag=True, default=True, flag_value=False, help=text)


@click.command()
@click.argument("artifacts", nargs=-1, type=cli.ARTIFACT, metavar="[ARTIFACT]...")
@click.option(
    "--model-config-file",
    type=PATH,
    help="Models as a ModelServerConfig text proto, as in TensorFlow Serving.",
)
@click.option("--model-name", help="Name of the model in --model-base-path.")
@click.option(
    "--model-base-path",
    type=PATH,
    help="Directory of version directories, each a SavedModel, to serve as --model-name.",
)
@cli.combined(*(server_option(*row) for row in OPTIONS), *(switch_off(*row) for row in SWITCHES))
def serve(
    artifacts: tuple[Location, ...],
    model_config_file: pathlib.Path | None,
    model_name: str | None,
    model_base_path: pathlib.Path | None,
    **given: Value,
) -> None:
    """Serve artifacts, or any SavedModel, with TensorFlow Serving's REST and gRPC APIs.

    The name of an ARTIFACT is that of its directory, or the last part of its URL.

    \b
      bart-export serve artifacts/bart_mini_en
      bart-export serve --model-config-file models.config --model-config-file-poll-seconds 10
      bart-export serve --model-name half_plus_two --model-base-path /models/half_plus_two
    """
    named = model_name is not None or model_base_path is not None
    if bool(artifacts) + (model_config_file is not None) + named != 1:
        received = "several of them" if artifacts or named else "none of them"
        raise click.UsageError(
            "Expected one of ARTIFACT..., --model-config-file FILE, and --model-name NAME with "
            f"--model-base-path DIR, received {received}. An ARTIFACT is a directory that "
            "bart-export wrote, such as artifacts/bart_mini_en."
        )
    if named and (model_name is None or model_base_path is None):
        raise click.UsageError("--model-name and --model-base-path must be given together.")
    with cli.errors_in_flags("workers"):
        options = ServeOptions(**given)
    if model_config_file and options.engine:
        raise click.UsageError(
            "--engine applies to artifacts; in a --model-config-file, set model_platform instead."
        )
    if options.model_config_poll_seconds and not model_config_file:
        raise click.UsageError("--model-config-file-poll-seconds needs a --model-config-file.")
    if options.batching_parameters_file and not options.batching:
        raise click.UsageError(
            "--batching-parameters-file and --no-batching contradict each other."
        )
    cli.require_packages("Serving", SERVE_PACKAGES, "serve")
    handler = logging.StreamHandler()
    handler.setFormatter(Lines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)

    from bart_export.server import models_config
    from bart_export.server.serve import serve as run

    if model_config_file:
        models = models_config.read_config(model_config_file)
    elif model_name and model_base_path:
        models = [models_config.served_model(model_name, model_base_path, options.engine)]
    else:
        models = models_config.served_models(artifacts, options.engine)
    if any(model.engine == "tensorflow" for model in models):
        cli.require_packages("The engine tensorflow", {"tensorflow": "tensorflow"}, "export")
    run(models, options, lambda line: click.echo(printable(line)), model_config_file)


class Lines(logging.Formatter):
    """Formats a message as one line, and escapes control characters in it and in tracebacks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line of a record."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Value) -> str:  # noqa: N802
        """Return the traceback of an error."""
        return printable_lines(super().formatException(ei))
