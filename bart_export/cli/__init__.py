"""The command line, a module per command; this one has the options that commands share."""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import click
from click.shell_completion import CompletionItem

from bart_export.config import MOST_THREADS
from bart_export.errors import BartExportError, MissingExtra, did_you_mean, printable_lines
from bart_export.locations import Location, is_remote, normalized, redacted_url
from bart_export.presets import PRESETS
from bart_export.progress import Stage
from bart_export.quiet import native_stderr_silenced
from bart_export.recipes import metrics
from bart_export.recipes.table import LITERT, RECIPES

Value: TypeAlias = Any  # of a click parameter
Values = Mapping[str, Value]
Decorator = Callable[[Callable[..., Value]], Callable[..., Value]]
if TYPE_CHECKING:  # these are not generic in all releases of click
    ParamType = click.ParamType[Value]
    Choice = click.Choice[str]
else:
    ParamType, Choice = click.ParamType, click.Choice

COUNT = click.IntRange(min=1)
THREADS = click.IntRange(1, MOST_THREADS)

EXPORT_PACKAGES = {
    "tensorflow": "tensorflow",
    "keras": "keras",
    "litert_quantizer": "litert-quantizer",
    "h5py": "h5py",
    "safetensors": "safetensors",
}


class LocalPath(click.Path):
    """A path; a URL is refused, since it would become a directory such as hf:, and so is "".

    An empty argument, as of an unset variable, would become the current directory.
    """

    def __init__(self) -> None:
        super().__init__(path_type=pathlib.Path)

    def convert(self, value: Value, param: Value, ctx: Value) -> pathlib.Path:
        """Return the path."""
        if not os.fspath(value):
            self.fail("Expected a file or directory, received an empty path.", param, ctx)
        if is_remote(value):
            url = redacted_url(value)
            self.fail(f"Expected a local file or directory, received {url}.", param, ctx)
        return cast(pathlib.Path, super().convert(normalized(value), param, ctx))


class ArtifactLocation(LocalPath):
    """An artifact that a command only reads: a directory, or the URL of a remote one."""

    name = "artifact"

    def convert(self, value: Value, param: Value, ctx: Value) -> Location:  # type: ignore[override]
        """Return a path, or a URL as it is."""
        return value if is_remote(value) else super().convert(value, param, ctx)


PATH, ARTIFACT = LocalPath(), ArtifactLocation()


class SecondsRange(click.FloatRange):
    """A time of at most thirty years, which every platform's clock can represent."""

    def __init__(self, *, min_open: bool = False) -> None:
        super().__init__(0, 1_000_000_000, min_open=min_open)

    def convert(self, value: Value, param: Value, ctx: Value) -> float:
        """Return the number, or refuse NaN, which ranges accept."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return number


class EngineName(Choice):
    """The name of an engine; LiteRT's package name is an alias of litert."""

    name = "engine"

    def __init__(self, *engines: str) -> None:
        super().__init__(engines)

    def convert(self, value: Value, param: Value, ctx: Value) -> str:
        """Return the engine's name."""
        name = "litert" if value == LITERT else str(value)
        if name not in self.choices:
            self.fail(
                f"An engine must be one of {', '.join(self.choices)}, received {name!r}."
                f"{did_you_mean(name, self.choices)}",
                param,
                ctx,
            )
        return name


class Known(ParamType):
    """A string for which a shell completes known words, and paths unless `paths` is False."""

    def __init__(self, name: str, words: Iterable[str], paths: bool = True) -> None:
        self.name, self.words, self.paths = name, tuple(words), paths

    def shell_complete(self, ctx: Value, param: Value, incomplete: str) -> list[CompletionItem]:
        """Return the known words; bash completes a path if there are none."""
        words = [CompletionItem(word) for word in self.words if word.startswith(incomplete)]
        return [*([CompletionItem(incomplete, "file")] if self.paths else ()), *words]


PRESET = Known("preset", PRESETS)
RECIPE = Known("recipe", RECIPES, paths=False)


def combined(*options: Decorator) -> Decorator:
    """Return one decorator for several options, in the order of `--help`."""

    def decorate(command: Callable[..., Value]) -> Callable[..., Value]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def list_option(*names: str, kind: ParamType = click.STRING, **settings: Value) -> Decorator:
    """Return a repeatable option with comma-separated values, a tuple that is empty by default."""

    def split(context: click.Context, option: click.Parameter, lists: tuple[str, ...]) -> Value:
        words = (word for text in lists for word in text.split(","))
        return tuple(kind.convert(word, option, context) for word in words)

    def complete(context: click.Context, option: click.Parameter, given: str) -> Value:
        before, comma, word = given.rpartition(",")
        found = kind.shell_complete(context, option, word)
        for item in found:
            item.value = f"{before}{comma}{item.value}"
        return found

    settings |= {"multiple": True, "callback": split, "shell_complete": complete}
    return click.option(*names, **settings)


def texts_option(flag: str, use: str, default: str, references: bool = True) -> Decorator:
    """Return an option for a file of texts."""
    optional = ' and optionally a "reference"' if references else ""
    return click.option(
        flag,
        type=PATH,
        metavar="FILE.jsonl",
        help=f'Texts to {use}: JSON objects with a "text"{optional}. {default}',
    )


def bounds_option(flag: str, use: str, **settings: Value) -> Decorator:
    """Return an option for bounds on metrics."""
    names = f"NAME is one of {', '.join(metrics.METRICS)}."
    return list_option(flag, metavar="NAME=VALUE,...", help=f"{use} {names}", **settings)


TOLERANCE = bounds_option("--tolerance", "Bounds to use instead of the recipe's.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def given_options(values: Values) -> dict[str, Value]:
    """Return the options that were given, by parameter name."""
    return {name: value for name, value in values.items() if value not in (None, ())}


def flag(name: str) -> str:
    """Return the flag of a parameter of the running command."""
    parameters = click.get_current_context().command.params
    return next(each.opts[0] for each in parameters if each.name == name)


def in_flags(message: str, *words: str) -> str:
    """Return a message with the running command's flags instead of its parameters' names.

    A name without "_" may also be an English word: it is replaced if it is among `words`.
    """
    options = {
        str(option.name): [*option.opts, *option.secondary_opts]
        for option in click.get_current_context().command.params
        if isinstance(option, click.Option) and ("_" in str(option.name) or option.name in words)
    }

    def spelled(found: re.Match[str]) -> str:
        flags, value = options[found[1]], found[2]
        if value is None or value.lower() == "true":
            return flags[0]
        return flags[1] if value.lower() == "false" else f"{flags[0]} {value}"

    names = "|".join(options)
    # Not a part of a path.
    return re.sub(
        rf"(?<![\w/.-])({names})(?![\w/-]|\.\w)(?:=([\w+-]+(?:\.\w+)*))?", spelled, message
    )


@contextlib.contextmanager
def errors_in_flags(*words: str) -> Iterator[None]:
    """Apply `in_flags` to the error that a block raises."""
    try:
        yield
    except BartExportError as error:
        error.args = (in_flags(str(error), *words),)
        raise


def print_json(content: object) -> None:
    """Print JSON with control characters escaped."""
    click.echo(printable_lines(json.dumps(content, ensure_ascii=False, indent=1)))


def require_packages(what: str, packages: Mapping[str, str], extra: str) -> None:
    """Raise MissingExtra if a module cannot be found; `packages` maps modules to packages."""
    for module, package in packages.items():
        try:
            found = importlib.util.find_spec(module) is not None
        except (ModuleNotFoundError, ValueError):  # its parent package is missing
            found = False
        if not found:
            raise MissingExtra(what, package, extra)


@contextlib.contextmanager
def loading_tensorflow(stage: Stage) -> Iterator[None]:
    """Silence TensorFlow and Keras while a block imports them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    stage("load TensorFlow")
    with native_stderr_silenced():
        yield
