"""Adapters of the runtime for engines that run on many machines."""

from collections.abc import Iterable, Mapping
from typing import Any

from bart_export.config import NEW_TOKENS, GenerationConfig, checked_fields, require
from bart_export.errors import BartExportError, InputError
from bart_export.runtime.generator import Generator
from bart_export.runtime.results import Result

# Bytes; 3 sources of 256 tokens in bart_base's shape, which keep a worker's one thread nine tenths
# as busy as 9 sources, in a third of the memory.
MEMORY_BUDGET = 40 << 20
FLAGS = ("truncate", "allow_empty", "special_tokens")  # of `Generator.generate`, besides settings


def check_parameters(parameters: Any) -> None:
    """Raise ConfigurationError unless these are parameters of `Generator.generate`, by name."""
    accepted = isinstance(parameters, Mapping) and all(isinstance(name, str) for name in parameters)
    require(accepted, "The parameters", "a mapping of names to values", parameters)
    others = {*FLAGS, *NEW_TOKENS}
    settings = {name: value for name, value in parameters.items() if name not in others}
    checked_fields(GenerationConfig, settings)


def results_or_refusals(
    generator: Generator, texts: Iterable[Any], parameters: Mapping[str, Any]
) -> list[Result | InputError]:
    """Return the result of each text, or the error that refused it, in order.

    Every other error is raised: it is not about a text, and another attempt may succeed.

    Raises:
        ConfigurationError: if a parameter is unknown or out of range.
        EngineError: if the engine fails.
    """
    check_parameters(parameters)
    answers: list[Result | InputError] = []
    for answer in list(generator.generate_iter(texts, return_exceptions=True, **parameters)):
        if isinstance(answer, BartExportError) and not isinstance(answer, InputError):
            raise answer
        answers.append(answer)
    return answers
