"""The command line: a module for each command, and here what several of them share."""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from bart_export.config import MOST_THREADS
from bart_export.errors import MissingExtra, did_you_mean, printable_lines
from bart_export.progress import Stage
from bart_export.recipes import metrics
from bart_export.recipes.table import LITERT

Value: TypeAlias = Any  # of a parameter, as click has it
Values = Mapping[str, Value]
Decorator = Callable[[Callable[..., Value]], Callable[..., Value]]
if TYPE_CHECKING:  # not all releases of click have a generic class
    ParamType = click.ParamType[Value]
else:
    ParamType = click.ParamType

PATH = click.Path(path_type=pathlib.Path)
COUNT = click.IntRange(min=1)
THREADS = click.IntRange(1, MOST_THREADS)

EXPORT_PACKAGES = {
    "tensorflow": "tensorflow",
    "keras": "keras",
    "ai_edge_quantizer": "ai-edge-quantizer",
    "h5py": "h5py",
    "safetensors": "safetensors",
}


class Seconds(click.FloatRange):
    """A time of at most thirty years: the clocks of the platform do not reach much farther."""

    def __init__(self, *, min_open: bool = False) -> None:
        super().__init__(0, 1_000_000_000, min_open=min_open)

    def convert(self, value: Value, param: Value, ctx: Value) -> float:
        """Return the number; NaN, which no range refuses, is none."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return number


class Engine(ParamType):
    """One of the engines that a command can use; litert may be called by its package's name."""

    name = "engine"

    def __init__(self, *engines: str) -> None:
        self.engines = engines

    def get_metavar(self, param: Value, ctx: Value = None) -> str:
        """Return the engines, as a choice has them."""
        return f"[{'|'.join(self.engines)}]"

    def convert(self, value: Value, param: Value, ctx: Value) -> str:
        """Return the engine's name."""
        name = "litert" if value == LITERT else str(value)
        if name not in self.engines:
            self.fail(
                f"An engine must be one of {', '.join(self.engines)}, received {name!r}."
                f"{did_you_mean(name, self.engines)}",
                param,
                ctx,
            )
        return name


def stacked(*options: Decorator) -> Decorator:
    """Return several options as one decorator; `--help` has them in their order."""

    def decorate(command: Callable[..., Value]) -> Callable[..., Value]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def values(*names: str, kind: ParamType = click.STRING, **settings: Value) -> Decorator:
    """Return an option that takes several values, with commas between them.

    The option may also be repeated. The command receives a tuple, () where it is not given.
    """

    def split(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> Value:
        words = (word for text in given for word in text.split(","))
        return tuple(kind.convert(word, option, context) for word in words)

    return click.option(*names, multiple=True, callback=split, **settings)


def texts(flag: str, use: str, default: str, references: bool = True) -> Decorator:
    """Return an option that names a file of texts."""
    optional = ' and optionally a "reference"' if references else ""
    return click.option(
        flag,
        type=PATH,
        metavar="FILE.jsonl",
        help=f'Texts to {use}: objects with a "text"{optional}. {default}',
    )


def bounds(flag: str, use: str, **settings: Value) -> Decorator:
    """Return an option that takes bounds on metrics."""
    names = f"NAME is one of {', '.join(metrics.METRICS)}."
    return values(flag, metavar="NAME=VALUE,...", help=f"{use} {names}", **settings)


TOLERANCE = bounds("--tolerance", "Bounds to use instead of the recipe's.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(content: object) -> None:
    """Print JSON, of which nothing steers a terminal."""
    click.echo(printable_lines(json.dumps(content, ensure_ascii=False, indent=1)))


def require(what: str, packages: Mapping[str, str], extra: str) -> None:
    """Raise MissingExtra for the first module that cannot be found; none is imported.

    `packages` has the package of each module, `extra` is what installs them.
    """
    for module, package in packages.items():
        try:
            found = importlib.util.find_spec(module) is not None
        except (ModuleNotFoundError, ValueError):  # of the package that would hold it
            found = False
        if not found:
            raise MissingExtra(what, package, extra)


@contextlib.contextmanager
def loading_tensorflow(stage: Stage) -> Iterator[None]:
    """Import what imports TensorFlow and Keras in a block, without their messages."""
    from bart_export.quiet import native_stderr_silenced

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    stage("load TensorFlow")
    with native_stderr_silenced():
        yield
