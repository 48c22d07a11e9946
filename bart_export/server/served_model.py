"""A model to be served: its name, where its versions lie, and which of them are wanted.

What the command line, a `models.config` or a reload request asks for becomes these records, and
nothing of where they came from is left. Nothing here looks at a file.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping

TENSORFLOW = "tensorflow"
LITERT = "litert"


@dataclasses.dataclass(frozen=True)
class Latest:
    """The highest `number` versions."""

    number: int = 1

    def choose(self, found: Collection[int]) -> frozenset[int]:
        """Return those versions of `found` that are wanted."""
        return frozenset(sorted(found, reverse=True)[: self.number])


@dataclasses.dataclass(frozen=True)
class All:
    """Every version."""

    def choose(self, found: Collection[int]) -> frozenset[int]:
        """Return those versions of `found` that are wanted."""
        return frozenset(found)


@dataclasses.dataclass(frozen=True)
class Specific:
    """The versions named, as far as they are there."""

    versions: frozenset[int]

    def choose(self, found: Collection[int]) -> frozenset[int]:
        """Return those versions of `found` that are wanted."""
        return self.versions & frozenset(found)


VersionPolicy = Latest | All | Specific


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model to be served.

    For the engine "tensorflow", `base_path` holds a SavedModel in a numbered directory for each
    version; for "litert" it is an artifact. `labels` maps a label to a version.
    """

    name: str
    base_path: pathlib.Path
    engine: str
    policy: VersionPolicy = Latest()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
