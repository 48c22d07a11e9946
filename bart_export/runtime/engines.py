"""The table of engines, and the choice of a file and of the engine that opens it.

A file's entry in the manifest says which runtimes compute it rightly and since which version, for
some open a file without a word and compute it wrongly.
"""

import dataclasses
import functools
import importlib.metadata
import re
import sys
from collections.abc import Callable, Mapping

from bart_export import contract
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.manifest import TfliteEntry
from bart_export.edgetpu import parts
from bart_export.errors import (
    ArtifactError,
    ConfigurationError,
    EngineError,
    MissingExtra,
    lookup,
)
from bart_export.recipes.table import DEFAULT, LITERT, TFLITE_RUNTIME
from bart_export.runtime.compiled_model import open_compiled_model
from bart_export.runtime.edgetpu import open_edgetpu
from bart_export.runtime.engine import FileEngine, default_threads
from bart_export.runtime.graph_rules import checked_path, expected_signatures
from bart_export.runtime.interpreter import open_interpreter
from bart_export.runtime.weight_cache import open_with_cache

Files = Mapping[str, TfliteEntry]


@dataclasses.dataclass(frozen=True)
class EngineKind:
    """One row of the table: the package that runs files, and how it opens one.

    `package` is the distribution's name; `extra` installs it, "" where the base installation does.
    `open` takes a path, the configuration, buckets and `num_threads`, and a `weight_cache` where
    it `caches`. `target` is the one of an export whose files the engine opens.
    """

    name: str
    package: str
    extra: str
    open: Callable[..., FileEngine]
    caches: bool = True
    target: str = "tflite"


# The first that is installed is the default.
ENGINES = {
    kind.name: kind
    for kind in (
        EngineKind(LITERT, LITERT, "", open_compiled_model),
        EngineKind(TFLITE_RUNTIME, TFLITE_RUNTIME, "legacy-runtime", open_interpreter, False),
        EngineKind(parts.TARGET, LITERT, "", open_edgetpu, target=parts.TARGET),
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
    config, buckets = artifact.config, artifact.buckets(file)
    if kind.target == parts.TARGET:
        check_edgetpu(artifact)
    else:
        checked_path(artifact, file, expected_signatures(config, buckets))
    path = artifact.directory / file
    open_file = functools.partial(kind.open, path, config, buckets, num_threads=num_threads)
    if not kind.caches:
        return open_file()
    return open_with_cache(lambda cache: open_file(weight_cache=cache), artifact, file)


def check_edgetpu(artifact: Artifact) -> None:
    """Check every file of an export for the Edge TPU; see `checked_path`."""
    artifact.folder(parts.DIRECTORY)
    sizes = contract.sizes(artifact.config)
    host = {
        signature.name: (signature, sizes) for signature in parts.host_signatures(artifact.config)
    }
    for file in artifact.files(parts.TARGET):
        if file.endswith(".tflite"):
            checked_path(artifact, file, host if file == parts.HOST else None)


def files_for(artifact: Artifact, requested: str | None) -> dict[str, TfliteEntry]:
    """Return the files of an artifact that an engine, None for the default, may be given."""
    return artifact.manifest.tflite(target_of(requested))


def target_of(requested: str | None) -> str:
    """Return the target of an export that an engine, None for the default, opens."""
    return "tflite" if requested is None else engine_kind(requested, {}).target


def engine_kind(requested: str | None, installed: Mapping[str, str]) -> EngineKind:
    """Return the row of an engine, None for the first of the installed packages."""
    name = next(iter(installed), LITERT) if requested is None else requested
    return lookup("An engine", name, ENGINES)


def installed_versions() -> dict[str, str]:
    """Return the versions of the installed packages of `ENGINES`, in the table's order."""
    versions = {}
    for package in dict.fromkeys(kind.package for kind in ENGINES.values()):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


BUILDS = ("dynamic", "static")  # a recipe's files, the one to prefer first


def choose_file(
    artifact: Artifact, recipe: str | None, engine: str | None, shapes: str | None = None
) -> str:
    """Return the name of the `.tflite` file of a recipe, or of the best that an engine can run.

    `shapes` is one of `BUILDS`; None takes the first that there is.

    Raises:
        ArtifactError: if the artifact has no such file, with those that it has.
        ConfigurationError: for `shapes` that are none.
    """
    if shapes not in (None, *BUILDS):
        raise ConfigurationError(f"shapes must be {' or '.join(BUILDS)}, received {shapes!r}.")
    files = files_for(artifact, engine)
    if not files:
        wanted_engine = f" for {engine}" if engine else ""
        others = not engine and artifact.files(parts.TARGET)
        hint = f" It has files for --engine {parts.TARGET}." if others else ""
        raise ArtifactError(
            f"{artifact.directory} has no .tflite file{wanted_engine}.{hint} "
            f"Export one with: bart-export --preset {artifact.manifest.preset} --target "
            f"{target_of(engine)} --output {artifact.directory}"
        )
    wanted = {
        name: entry
        for name, entry in files.items()
        if recipe in (None, entry.recipe) and shapes in (None, entry.build)
    }
    if not wanted:
        kind = f"{shapes} file" if shapes else "file"
        of = f" of recipe {recipe!r}" if recipe else ""
        has = ", ".join(
            entry.recipe + " (static)" * (entry.build == "static") for entry in files.values()
        )
        raise ArtifactError(f"{artifact.directory} has no {kind}{of}. It has: {has}.")

    def preference(name: str) -> tuple[bool, int]:
        return wanted[name].recipe != DEFAULT, BUILDS.index(wanted[name].build)

    preferred = sorted(wanted, key=preference)
    if recipe:
        return preferred[0]
    installed = installed_versions()
    package = engine_kind(engine, installed).package
    able = (name for name in preferred if runs(files[name], package, installed.get(package, "0")))
    return next(able, preferred[0])  # opening the latter says why it is refused


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
    kind = engine_kind(requested, installed)
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
