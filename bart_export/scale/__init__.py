"""Adapters of the runtime for engines that run on many machines."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bart_export.config import LARGEST_SIZE, TEXT_OPTIONS, GenerationConfig, check_flag, require
from bart_export.errors import BartExportError, ConfigurationError, InputError, printable
from bart_export.locations import is_remote, normalized, redacted_url
from bart_export.runtime.generator import Generator
from bart_export.runtime.results import Result

# Bytes; 3 sources of 256 tokens in bart_base's shape, which keep a worker's one thread nine tenths
# as busy as 9 sources, in a third of the memory.
MEMORY_BUDGET = 40 << 20
LONGEST_REASON = 1000  # characters
# The last line of a traceback. Ray's own errors are about the error of a worker before them.
REASON = re.compile(r"^(?!ray\.)(?:(?:\w+\.)*[A-Z]\w*: )+(.+)", re.MULTILINE)


def place_of(location: str) -> str:
    """Return a location such that the names of one place are equal: an absolute path or a URL."""
    path = normalized(location)
    return redacted_url(path).rstrip("/") if is_remote(path) else os.path.realpath(path)


def reason_of(error: Exception) -> str:
    """Return why a job failed, as one line: a worker's error has a traceback as its message."""
    reasons = REASON.findall(str(error))
    line = reasons[-1] if reasons else " ".join(str(error).split())
    return printable(line, LONGEST_REASON) or type(error).__name__


def check_parameters(parameters: Any) -> None:
    """Check parameters of `Generator.generate`, as far as an artifact is not needed.

    Raises:
        ConfigurationError: if one is unknown, or has a value that no artifact accepts.
    """
    accepted = isinstance(parameters, Mapping) and all(isinstance(name, str) for name in parameters)
    require(accepted, "The parameters", "a mapping of names to values", parameters)
    for name, value in parameters.items():
        if name in TEXT_OPTIONS:
            check_flag(name, value)
            continue
        # The others' values are the artifact's, so each is checked with those that limit it least.
        limits = GenerationConfig(max_length=LARGEST_SIZE, do_sample=name != "num_beams")
        limits.replace(**{name: value})


def checked_settings(generator: Generator, parameters: Mapping[str, Any]) -> GenerationConfig:
    """Return the settings of a call, of which any text could have a result.

    Raises:
        ConfigurationError: if a parameter is unknown or out of range, or if the model or a static
            build does not have its size.
    """
    check_parameters(parameters)
    given = {name: value for name, value in parameters.items() if name not in TEXT_OPTIONS}
    sizing = generator.engine.sizing
    try:
        settings = generator.settings(**given)
        rows = max(settings.num_beams, settings.num_return_sequences)
        sizing.decode(1, 1, rows, sizing.first_capacity(settings.max_length))
    except InputError as error:  # not about a text: it would refuse all of them
        raise ConfigurationError(str(error)) from None
    return settings


def results_or_refusals(
    generator: Generator, texts: Iterable[Any], parameters: Mapping[str, Any]
) -> list[Result | InputError]:
    """Return the result of each text, or the error that refused it, in order.

    Every other error is raised: it is not about a text, and another attempt may succeed.

    Raises:
        ConfigurationError: see `checked_settings`.
        EngineError: if the engine fails.
    """
    checked_settings(generator, parameters)
    answers: list[Result | InputError] = []
    for answer in list(generator.generate_iter(texts, return_exceptions=True, **parameters)):
        if isinstance(answer, BartExportError) and not isinstance(answer, InputError):
            raise answer
        answers.append(answer)
    return answers
