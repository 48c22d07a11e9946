"""How a server is set up. Defaults are TensorFlow Serving's unless a field's text differs."""

import dataclasses
import pathlib

from bart_export.config import LARGEST_SIZE, MOST_THREADS, check_threads
from bart_export.errors import ConfigurationError, shown

# What no request gets more of, whatever the options say. The options below bound its bytes, its
# rows and its time.
MAX_AXES = 32  # of a tensor; NumPy's own limit before 2.0
MAX_FILLED_ELEMENTS = 1 << 18  # of a tensor that one value fills: it takes a few bytes as a message
MAX_BEAMS = 32  # or sequences of a generation: each has caches of its own
MAX_JSON_LISTS = 1 << 16  # and objects of a body: brackets in its texts count, too
MAX_JSON_VALUES = 1 << 20  # of an answer over REST: the encoder's states of one long text
MAX_ANSWER_BYTES = 1 << 26  # of the tensors of an answer over gRPC


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The settings of a server.

    `host` is loopback by default, where TensorFlow Serving listens everywhere. Port 0
    takes a free one. `engine` is "tensorflow", "litert" or None for the fastest that a model's
    files allow. `workers` counts calls that run side by side for a model and `num_threads` the
    threads of each; None chooses by the machine's cores, and threads by the model's size as well.
    `queue_size` calls may wait for each model beside those that run; one more is refused at once.
    Each that waits adds a whole generation to the time of the last. `max_connections` is for each
    port. `request_seconds` bounds a call that brings no deadline of its own.
    `batching_parameters_file` replaces the `batching_params.pbtxt` that a version directory may
    hold; neither is read unless `batching`. A version that takes longer than `load_seconds` to be
    loaded and to answer its warm-up requests is given up, once and for all. Load failures are tried
    again `load_retries` times, `retry_seconds` apart; with TensorFlow Serving's 5 and 60 a server
    that cannot load its model would say so after five minutes. Requests over HTTP that name another
    host than `host`, localhost or one of `allowed_hosts` are refused, and so are those of pages of
    another origin than the server's own or one of `allowed_origins`. `drain_seconds` is what
    running calls have left once the server is to end.

    A request may have `max_request_bytes`, also once it is decompressed, and `max_request_rows`
    texts, or rows of any other input.

    Raises:
        ConfigurationError: for more workers or threads than a process should have, and for numbers
            that no clock or socket takes.
    """

    host: str = "127.0.0.1"
    port: int = 8500
    rest_api_port: int = 8501
    engine: str | None = None
    workers: int | None = None
    num_threads: int | None = None
    queue_size: int = 16
    max_connections: int = 1000
    max_request_bytes: int = 2**20
    max_request_rows: int = 32
    request_seconds: float = 30.0
    batching: bool = True
    batching_parameters_file: pathlib.Path | None = None
    poll_seconds: float = 1.0
    model_config_poll_seconds: float = 0.0
    allow_labels_for_unavailable: bool = False
    allow_reload_requests: bool = False
    load_retries: int = 2
    retry_seconds: float = 1.0
    warmup: bool = True
    load_seconds: float = 600.0
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    page: bool = True
    ssl_config_file: pathlib.Path | None = None
    monitoring_config_file: pathlib.Path | None = None
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_threads("workers", self.workers)
        check_threads("num_threads", self.num_threads)
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not 0 <= value <= LARGEST_SIZE:  # NaN neither
                raise ConfigurationError(
                    f"{name} must be a number from 0 to {LARGEST_SIZE}, received {shown(value)}."
                )
        if (self.workers or 1) * (self.num_threads or 1) > MOST_THREADS:
            raise ConfigurationError(
                f"workers times num_threads must be at most {MOST_THREADS}, received "
                f"workers={self.workers} and num_threads={self.num_threads}."
            )
