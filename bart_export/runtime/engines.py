"""Which engine opens a file: the table of engines, and the choice among those installed.

In go an artifact, the name of one of its files and perhaps the name of an engine; out comes the
engine with the file open. A file's entry in the manifest says which runtimes compute it rightly and
since which version, for some open a file without a word and compute it wrongly. Nothing here knows
how an engine works.
"""

import dataclasses
import importlib.metadata
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.manifest import TfliteEntry
from bart_export.edgetpu import parts
from bart_export.errors import EngineError, MissingExtra, lookup
from bart_export.recipes.table import LITERT, TFLITE_RUNTIME
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.edgetpu import open_edgetpu
from bart_export.runtime.engine import FileEngine, default_threads
from bart_export.runtime.graph_rules import checked_path, expected_signatures
from bart_export.runtime.interpreter import open_interpreter
from bart_export.runtime.weight_cache import open_with_cache

Files = Mapping[str, TfliteEntry]


@dataclasses.dataclass(frozen=True)
class EngineKind:
    """One row of the table: the package that runs files, and the engine over it.

    `package` is the distribution's name; `extra` installs it, "" where the base installation does.
    `open` takes an artifact, the name of a file, and `num_threads`. `target` is the one of an
    export whose files the engine opens.
    """

    name: str
    package: str
    extra: str
    open: Callable[..., FileEngine]
    target: str = "tflite"


def on_litert(artifact: Artifact, file: str, *, num_threads: int | None) -> FileEngine:
    """Open a file, of either build, on LiteRT, with a weight cache of its own."""
    config, buckets = artifact.config, artifact.buckets(file)
    path = checked_path(artifact, file, expected_signatures(config, buckets))
    return open_with_cache(
        lambda cache: open_compiled_model(
            path, config, buckets, num_threads=num_threads, weight_cache=cache
        ),
        artifact,
        file,
    )


def on_tflite_runtime(artifact: Artifact, file: str, *, num_threads: int | None) -> FileEngine:
    """Open a file, of either build, on tflite-runtime."""
    config, buckets = artifact.config, artifact.buckets(file)
    path = checked_path(artifact, file, expected_signatures(config, buckets))
    return open_interpreter(path, config, buckets, num_threads=num_threads)


def on_edgetpu(artifact: Artifact, host: str, *, num_threads: int | None) -> FileEngine:
    """Open an export for the Edge TPU; `host` is the name of the host's file."""
    artifact.folder(parts.DIRECTORY)
    sizes = contract.sizes(artifact.config)
    expected = {one.name: (one, sizes) for one in parts.host_signatures(artifact.config)}
    for file in artifact.files(parts.TARGET):
        if file.endswith(".tflite"):
            checked_path(artifact, file, expected if file == host else None)
    return open_with_cache(
        lambda cache: open_edgetpu(
            artifact.directory, artifact.config, num_threads=num_threads, weight_cache=cache
        ),
        artifact,
        host,
    )


# The first that is installed is the default.
ENGINES = {
    kind.name: kind
    for kind in (
        EngineKind(LITERT, LITERT, "", on_litert),
        EngineKind(TFLITE_RUNTIME, TFLITE_RUNTIME, "legacy-runtime", on_tflite_runtime),
        EngineKind(parts.TARGET, LITERT, "", on_edgetpu, parts.TARGET),
    )
}


def open_engine(
    artifact: Artifact,
    file: str,
    requested: str | None = None,
    *,
    num_threads: int | None = None,
) -> FileEngine:
    """Open a file of an artifact with an engine that computes it rightly.

    Args:
        artifact: where the file is.
        file: its name in the manifest, `tflite/float32.tflite`.
        requested: a key of `ENGINES`; None takes the first that is installed.
        num_threads: threads for the CPU kernels; None chooses by the model's size (see
            `default_threads`).

    Raises:
        ArtifactError: if the file is missing or altered.
        ConfigurationError, MissingExtra, EngineError: see `choose`; EngineError also for a file
            that the engine cannot open.
    """
    kind = choose(requested, file, files_for(artifact, requested), installed_versions())
    if num_threads is None:
        num_threads = default_threads(artifact.manifest.parameter_count)
    return kind.open(artifact, file, num_threads=num_threads)


def files_for(artifact: Artifact, requested: str | None) -> dict[str, TfliteEntry]:
    """Return the files of an artifact that an engine, None for the default, may be given."""
    return artifact.manifest.tflite(target_of(requested))


def target_of(requested: str | None) -> str:
    """Return the target of an export that an engine, None for the default, opens.

    Raises:
        ConfigurationError: for an engine that does not exist.
    """
    return "tflite" if requested is None else named(requested).target


def named(name: str) -> EngineKind:
    """Return the row of an engine.

    Raises:
        ConfigurationError: if there is none, with the nearest and all others.
    """
    return lookup("An engine", name, ENGINES)


def installed_versions() -> dict[str, str]:
    """Return the versions of the installed packages of `ENGINES`, in the table's order.

    The first package is the name of the default engine.
    """
    versions = {}
    for package in dict.fromkeys(kind.package for kind in ENGINES.values()):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def runnable(names: Sequence[str], files: Files, requested: str | None) -> str:
    """Return the first of some files that the engine computes rightly, or the very first.

    Opening the latter then says why it is refused. Arguments are those of `choose`.
    """
    installed = installed_versions()
    package = named(next(iter(installed), LITERT) if requested is None else requested).package
    able = (name for name in names if runs(files[name], package, installed.get(package, "0")))
    return next(able, names[0])


def choose(
    requested: str | None, file: str, files: Files, installed: Mapping[str, str]
) -> EngineKind:
    """Return the engine to open a file with.

    Args:
        requested: a key of `ENGINES`; None takes the first of `installed`.
        file: the file's name, a key of `files`.
        files: the artifact's `.tflite` files. An entry's `runtimes` maps packages that compute the
            file rightly to the oldest version it was tried with; its `refusals` say why another
            package does not.
        installed: packages and their versions.

    Raises:
        ConfigurationError: for an engine that does not exist.
        MissingExtra: if the engine's package, or any, is not installed.
        EngineError: if the package is known to compute the file wrongly, was not tried with it, or
            is older than what was.
    """
    kind = named(next(iter(installed), LITERT) if requested is None else requested)
    package = kind.package
    if package not in installed:
        if package == TFLITE_RUNTIME and sys.version_info >= (3, 12):
            raise EngineError(
                f"{package} has wheels for Python 3.10 and 3.11 only, this is Python "
                f"{sys.version_info.major}.{sys.version_info.minor}. Use {LITERT}."
            )
        raise MissingExtra(f"Running {file}", package, kind.extra)
    version, entry = installed[package], files[file]
    if not runs(entry, package, version):
        tried = " or ".join(f"{name} {oldest}" for name, oldest in entry.runtimes.items())
        reason = entry.refusals.get(package)
        others = [
            name for name, other in files.items() if name != file and runs(other, package, version)
        ]
        raise EngineError(
            f"{file} needs {tried} or newer, received {package} {version}"
            + (f": {reason}. " if reason else ", which it was not tried with. ")
            + (f"{package} {version} can open {', '.join(others)}." if others else NOTHING_ELSE)
        )
    return kind


NOTHING_ELSE = "It can open no file of this artifact: install what is needed, or export another."


def runs(entry: TfliteEntry, package: str, version: str) -> bool:
    """Return whether a file was tried with a package of this version or an older one."""
    oldest = entry.runtimes.get(package)
    return oldest is not None and release(version) >= release(oldest)


def release(version: str) -> tuple[int, int, int]:
    """Return the first three numbers of a version, to compare; what is not given is 0."""
    major, minor, patch, *_ = [*map(int, re.findall(r"\d+", version)), 0, 0, 0]
    return major, minor, patch
