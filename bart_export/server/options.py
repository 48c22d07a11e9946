"""Settings and fixed limits of a server."""

import dataclasses
import pathlib

from bart_export.config import LARGEST_SIZE, MOST_THREADS, check_threads
from bart_export.errors import ConfigurationError, shown

# Limits of every request, in addition to those of the options.
MAX_AXES = 32  # axes of a tensor; NumPy's limit before 2.0
MAX_FILLED_ELEMENTS = 1 << 18  # elements of a tensor that is filled from fewer values
MAX_BEAMS = 32  # beams or sequences of a generation, each with its own cache
MAX_JSON_LISTS = 1 << 16  # lists and objects of a body; brackets in strings count too
MAX_JSON_VALUES = 1 << 20  # values of a REST response: one long text's encoder output
MAX_ANSWER_BYTES = 1 << 26  # tensor bytes of a gRPC response


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The settings of a server; `bart-export serve --help` describes most of them.

    `engine` is "tensorflow", "litert", or None for the fastest that a model's files allow.
    `workers` are processes with litert, threads with tensorflow. If None, `workers` and
    `num_threads` (per worker) depend on the engine, the cores and the model's size.
    Without `batching`, neither `batching_parameters_file` nor a version's `batching_params.pbtxt`
    is read.

    Raises:
        ConfigurationError: for too many workers or threads, or a number out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8500
    rest_api_port: int = 8501
    engine: str | None = None
    workers: int | None = None
    num_threads: int | None = None
    queue_size: int = 16
    max_connections: int = 400  # two ports of 400 fit into the usual limit of 1024 open files
    max_request_bytes: int = 2**20
    max_request_rows: int = 32
    request_seconds: float = 30.0
    batching: bool = True
    batching_parameters_file: pathlib.Path | None = None
    poll_seconds: float = 1.0
    model_config_poll_seconds: float = 0.0
    allow_reload_requests: bool = False
    warmup: bool = True
    load_seconds: float = 600.0
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    page: bool = True
    ssl_config_file: pathlib.Path | None = None
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_threads("workers", self.workers)
        check_threads("num_threads", self.num_threads)
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not 0 <= value <= LARGEST_SIZE:  # or NaN
                raise ConfigurationError(
                    f"{name} must be a number from 0 to {LARGEST_SIZE}, received {shown(value)}."
                )
        if (self.workers or 1) * (self.num_threads or 1) > MOST_THREADS:
            raise ConfigurationError(
                f"workers times num_threads must be at most {MOST_THREADS}, received "
                f"workers={self.workers} and num_threads={self.num_threads}."
            )
