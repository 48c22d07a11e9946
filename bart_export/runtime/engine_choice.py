"""The table of engines, and the choice of a file and an engine to open it.

A file's entry in the manifest says which runtimes run it correctly, and from which version on,
because some open a file without complaint and compute wrong results.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from bart_export import __version__, contract
from bart_export.artifact import stamps
from bart_export.artifact.artifact import Artifact, check_readable_by_all
from bart_export.artifact.manifest import TfliteEntry
from bart_export.config import BartConfig, require
from bart_export.contract import Bucket
from bart_export.edgetpu import parts
from bart_export.errors import (
    ArtifactError,
    EngineError,
    MissingExtra,
    lookup,
)
from bart_export.recipes.table import DEFAULT, LITERT, TFLITE_RUNTIME
from bart_export.runtime.compiled_model import has_compiled_model, open_compiled_model
from bart_export.runtime.edgetpu import open_edgetpu
from bart_export.runtime.engine import Expected, FileEngine, default_threads, expected_signatures
from bart_export.runtime.interpreter import open_interpreter
from bart_export.runtime.weight_cache import open_with_cache

Files = Mapping[str, TfliteEntry]


@dataclasses.dataclass(frozen=True)
class EngineKind:
    """An engine and the package that provides it.

    `extra` installs the package ("" is the base installation). `open` opens a file, and accepts a
    `weight_cache` if `caches` is set.
    """

    name: str
    package: str
    extra: str
    open: Callable[..., FileEngine]
    caches: bool = True
    target: str = "tflite"


def open_litert(
    path: pathlib.Path,
    config: BartConfig,
    buckets: Sequence[Bucket],
    *,
    num_threads: int,
    weight_cache: str = "",
) -> FileEngine:
    """Open a file on LiteRT's `CompiledModel` or, where there is none, on its `Interpreter`."""
    if not has_compiled_model():
        return open_interpreter(path, config, buckets, num_threads=num_threads, interpreter=LITERT)
    return open_compiled_model(
        path, config, buckets, num_threads=num_threads, weight_cache=weight_cache
    )


# The first installed engine is the default.
ENGINES = {
    kind.name: kind
    for kind in (
        EngineKind(LITERT, LITERT, "", open_litert),
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
    """Open a file of an artifact, such as `tflite/float32.tflite`.

    `requested` is a key of `ENGINES`, or None for the first that is installed; `num_threads` is
    for the CPU kernels; None means `default_threads`.

    Raises:
        ArtifactError: if the file is missing or altered.
        EngineError: if the engine cannot open the file; see also `engine_for`.
    """
    kind = engine_for(requested, file, files_for(artifact, requested), installed_versions())
    if num_threads is None:
        num_threads = default_threads(artifact.manifest.parameter_count)
    config, buckets = artifact.config, artifact.buckets(file)
    expected = expected_signatures(config, buckets)
    check_files(artifact, host_files(artifact) if kind.target == parts.TARGET else {file: expected})
    path = artifact.directory / file
    open_file = functools.partial(kind.open, path, config, buckets, num_threads=num_threads)
    if not kind.caches:
        return open_file()
    return open_with_cache(lambda cache: open_file(weight_cache=cache), artifact, file)


def host_files(artifact: Artifact) -> dict[str, Expected | None]:
    """Return the expected signatures of the Edge TPU target's files, for `check_files`."""
    artifact.folder(parts.DIRECTORY)
    config = artifact.config
    sizes = contract.sizes(config)
    tflite = [bucket.signature for bucket in artifact.buckets(parts.HOST)]
    host = {each.name: (each, sizes) for each in parts.host_signatures(config, tflite)}
    names = [name for name in artifact.files(parts.TARGET) if name.endswith(".tflite")]
    return {name: host if name == parts.HOST else None for name in names}


def check_files(artifact: Artifact, files: Mapping[str, Expected | None]) -> None:
    """Check the hashes and graphs of files with these signatures; see `tflite_check.check_graph`.

    As with hashes, a graph that has been checked is not checked again (`stamps`).
    """
    for name, expected in files.items():
        path = artifact.path(name)
        check_readable_by_all(path)
        checked = f"{artifact.manifest.files[name].sha256} {__version__} {expected}"
        stamp = stamps.stamp(path.stat(), hashlib.sha256(checked.encode()).hexdigest())
        if stamps.read(path, "graph") != stamp:
            from bart_export.runtime import tflite_check  # not needed when opened again

            tflite_check.check_graph(path, expected)
            stamps.write(path, stamp, "graph")


def files_for(artifact: Artifact, requested: str | None) -> dict[str, TfliteEntry]:
    """Return the files that an engine can open; None means the default engine."""
    return artifact.manifest.tflite(target_of(requested))


def target_of(requested: str | None) -> str:
    """Return the export target that an engine opens; None means the default engine."""
    return "tflite" if requested is None else engine_kind(requested, {}).target


def engine_kind(requested: str | None, installed: Mapping[str, str]) -> EngineKind:
    """Return an engine's row; None means the first of the installed packages."""
    name = next(iter(installed), LITERT) if requested is None else requested
    return lookup("An engine", name, ENGINES)


def installed_versions() -> dict[str, str]:
    """Return the versions of the installed packages in `ENGINES`, in the table's order."""
    versions = {}
    for package in dict.fromkeys(kind.package for kind in ENGINES.values()):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


BUILDS = ("dynamic", "static")  # in order of preference


def choose_file(
    artifact: Artifact, recipe: str | None, engine: str | None, shapes: str | None = None
) -> str:
    """Return the name of a recipe's `.tflite` file, or of the best file that an engine can run.

    `shapes` is one of `BUILDS`; None means the first that exists.

    Raises:
        ArtifactError: if the artifact has no such file.
        ConfigurationError: if `shapes` is invalid, or `recipe` is not a string.
    """
    accepted = shapes is None or (isinstance(shapes, str) and shapes in BUILDS)
    require(accepted, "shapes", " or ".join(BUILDS), shapes)
    require(recipe is None or isinstance(recipe, str), "recipe", "the name of a recipe", recipe)
    files = files_for(artifact, engine)
    if not files:
        for_engine = f" for {engine}" if engine else ""
        others = not engine and artifact.files(parts.TARGET)
        hint = f" It has files for --engine {parts.TARGET}." if others else ""
        raise ArtifactError(
            f"{artifact.location} has no .tflite file{for_engine}.{hint} "
            f"Export one with: bart-export --preset {artifact.manifest.preset} --target "
            f"{target_of(engine)}{artifact.output_flag}"
        )
    candidates = {
        name: entry
        for name, entry in files.items()
        if recipe in (None, entry.recipe) and shapes in (None, entry.build)
    }
    if not candidates:
        kind = f"{shapes} file" if shapes else "file"
        of = "" if recipe is None else f" of recipe {recipe!r}"
        has = ", ".join(
            entry.recipe + " (static)" * (entry.build == "static") for entry in files.values()
        )
        raise ArtifactError(f"{artifact.location} has no {kind}{of}. It has: {has}.")

    def preference(name: str) -> tuple[bool, int]:
        return candidates[name].recipe != DEFAULT, BUILDS.index(candidates[name].build)

    preferred = sorted(candidates, key=preference)
    if recipe:
        return preferred[0]
    installed = installed_versions()
    package = engine_kind(engine, installed).package
    able = (name for name in preferred if runs(files[name], package, installed.get(package, "0")))
    return next(able, preferred[0])  # opening the latter raises an error with the reason


def engine_for(
    requested: str | None, file: str, files: Files, installed: Mapping[str, str]
) -> EngineKind:
    """Return the engine that opens one of `files`.

    An entry's `runtimes` maps the packages that run it correctly to the oldest version tested;
    its `refusals` say why other packages do not. `installed` maps packages to their versions.

    Raises:
        ConfigurationError: if the engine does not exist.
        MissingExtra: if the engine's package is not installed.
        EngineError: if the package is not known to run the file correctly.
    """
    kind = engine_kind(requested, installed)
    package = kind.package
    if package not in installed:
        if package == TFLITE_RUNTIME and sys.version_info >= (3, 12):
            raise EngineError(
                f"{package} has wheels for Python 3.10 and 3.11 only; this is Python "
                f"{sys.version_info.major}.{sys.version_info.minor}. Use {LITERT}."
            )
        raise MissingExtra(f"Running {file}", package, kind.extra)
    version, entry = installed[package], files[file]
    if not runs(entry, package, version):
        tested = " or ".join(f"{name} {oldest}" for name, oldest in entry.runtimes.items())
        reason = entry.refusals.get(package)
        others = [
            name for name, other in files.items() if name != file and runs(other, package, version)
        ]
        raise EngineError(
            f"{file} needs {tested} or newer, received {package} {version}"
            + (f": {reason}. " if reason else ", which it was not tested with. ")
            + (f"{package} {version} can open {', '.join(others)}." if others else NOTHING_ELSE)
        )
    return kind


NOTHING_ELSE = (
    "It cannot open any file in this artifact: install another engine, or export another file."
)


def runs(entry: TfliteEntry, package: str, version: str) -> bool:
    """Return whether a file was tested with this version of a package, or an older one."""
    oldest = entry.runtimes.get(package)
    return oldest is not None and release(version) >= release(oldest)


def release(version: str) -> tuple[int, int, int]:
    """Return a version's first three numbers, with 0 for missing ones."""
    major, minor, patch, *_ = [*map(int, re.findall(r"\d+", version)), 0, 0, 0]
    return major, minor, patch
