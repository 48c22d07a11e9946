"""Try random inputs in processes that may crash, and count the outcomes.

    python tools/fuzz.py flatbuffer --count 10000

The kinds of input are the rows of `KINDS`. A seed always gives the same input. An input must run or
be refused with the expected error. Everything else (a crash, another exception or answer, a
timeout) is a fault: faults are listed by seed, and the exit code is then 1.
"""

import argparse
import collections
import concurrent.futures
import copy
import dataclasses
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import server_requests
import tokenizer_inputs

REFUSED, RAN = "refused", "ran"
FAULTS = ("crashed", "raised", "hung")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of input.

    `prepare` makes the data that all inputs share, in a separate directory. `attempt` makes the
    input of a seed in its process's directory and tries it. It returns `REFUSED`, `RAN` or another
    outcome to count; an exception is a fault. A seed may make a `batch` of inputs.
    """

    name: str
    prepare: Callable[[pathlib.Path], Any]
    attempt: Callable[[Any, pathlib.Path, random.Random], str]
    batch: int = 1
    seconds: float = 20.0  # time limit of a seed


# Seed, outcome, and the message of a fault.
Outcome = tuple[int, str, str]


def run(kind: Kind, seeds: range, workers: int) -> Iterator[Outcome]:
    """Try the inputs of the seeds and yield their outcomes in any order."""
    with tempfile.TemporaryDirectory(prefix="fuzz.") as temporary:
        scratch = pathlib.Path(temporary)
        (scratch / "prepared").mkdir()
        prepared = in_a_process(kind.prepare, scratch / "prepared")
        waiting = list(reversed(seeds))
        running = [Worker(kind, prepared, scratch / str(number)) for number in range(workers)]
        while waiting or any(worker.seed is not None for worker in running):
            for worker in running:
                if worker.seed is None and waiting:
                    worker.begin(waiting.pop())
            pipes = [worker.pipe for worker in running if worker.seed is not None]
            multiprocessing.connection.wait(pipes, timeout=0.5)
            for worker in running:
                outcome = worker.outcome()
                if outcome is not None:
                    yield outcome
        for worker in running:
            worker.end()


def in_a_process(prepare: Callable[[pathlib.Path], Any], directory: pathlib.Path) -> Any:
    """Prepare in a separate process, so that its imports and threads end with it."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(prepare, directory).result()


class Worker:
    """A process that tries one input after another, and is restarted if it crashes."""

    def __init__(self, kind: Kind, prepared: Any, scratch: pathlib.Path) -> None:
        self.kind, self.prepared, self.scratch = kind, prepared, scratch
        self.seed: int | None = None
        self.began = 0.0
        self.start()

    def start(self) -> None:
        """Start a process with an empty directory."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        self.pipe, other = multiprocessing.Pipe()
        arguments = (self.kind, self.prepared, self.scratch, other)
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=work, args=arguments)  # not daemonic: it serves
        self.process.start()
        other.close()

    def begin(self, seed: int) -> None:
        """Start trying the input of a seed."""
        self.seed, self.began = seed, time.monotonic()
        self.pipe.send(seed)

    def outcome(self) -> Outcome | None:
        """Return the outcome of the current input, or None while it runs."""
        if self.seed is None:
            return None
        try:
            if self.pipe.poll():
                word, said = self.pipe.recv()
            elif time.monotonic() - self.began > self.kind.seconds:
                word, said = "hung", f"after {self.kind.seconds:g} s"
            else:
                return None
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            word, said = "crashed", signal.Signals(-code).name if code < 0 else f"exit {code}"
        seed, self.seed = self.seed, None
        if word in ("crashed", "hung"):
            self.end()
            self.start()
        return seed, word, said

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def work(kind: Kind, prepared: Any, scratch: pathlib.Path, pipe: Any) -> None:
    """Try the inputs of the seeds received, and send their outcomes."""
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # crashes write long messages
    while True:
        seed = pipe.recv()
        try:
            pipe.send((kind.attempt(prepared, scratch, random.Random(seed)), ""))
        except Exception as error:  # this is what the fuzzer looks for
            pipe.send(("raised", f"{type(error).__name__}: {error}"[:300]))


# --- flatbuffer: an altered .tflite file of an artifact, with matching hashes ---------------------

FILES = tuple(
    f"tflite/{recipe}.tflite" for recipe in ("float32", "dynamic_wi8_afp32", "dynamic_wi4_afp32")
)
TEXT = "A library that reads archives."
WORDS = (0, 1, 2, 3, 4, 8, 127, 128, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclasses.dataclass(frozen=True)
class Sample:
    """An artifact, and the bytes of its files with the ranges that are not weights."""

    directory: pathlib.Path
    files: dict[str, tuple[bytes, list[range]]]


def prepare_flatbuffer(directory: pathlib.Path) -> Sample:
    """Export a tiny random checkpoint, and find the ranges that are not weights."""
    from bart_export.export.options import TfliteOptions
    from bart_export.export.pipeline import export
    from bart_export.recipes.table import RECIPES

    preset = pathlib.Path(__file__).parents[1] / "tests" / "data" / "golden" / "bart_tiny_symmetric"
    loose = {"relative": 9.0, "top1": 0.0}  # because weights are random
    recipes = (
        dataclasses.replace(RECIPES[pathlib.Path(name).stem], tolerance=loose) for name in FILES
    )
    made = export(str(preset), TfliteOptions(tuple(recipes)), directory / "made")
    contents = {name: made.path(name).read_bytes() for name in FILES}
    return Sample(made.directory, {name: (one, structure(one)) for name, one in contents.items()})


def structure(content: bytes) -> list[range]:
    """Return the ranges of a `.tflite` file that are not weights."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    weights = []
    for number in range(model.BuffersLength()):
        buffer = model.Buffers(number)
        if buffer.Offset():
            weights.append(range(buffer.Offset(), buffer.Offset() + buffer.Size()))
        elif buffer.DataLength() > 256:
            begin = buffer._tab.Vector(buffer._tab.Offset(4))
            weights.append(range(begin, begin + buffer.DataLength()))
    ends = [0, *(end for one in sorted(weights, key=min) for end in (one.start, one.stop))]
    pairs = zip(ends[::2], [*ends[1::2], len(content)], strict=True)
    return [range(begin, end) for begin, end in pairs if end > begin]


def attempt_flatbuffer(sample: Sample, scratch: pathlib.Path, dice: random.Random) -> str:
    """Alter a file, update the manifest's hashes, and generate with it."""
    from bart_export.artifact.artifact import Artifact
    from bart_export.runtime.generator import Generator

    name = dice.choice(FILES)
    content, places = sample.files[name]
    altered = alter(content, places, dice)
    made = copied(sample.directory, scratch)
    (made / name).write_bytes(altered)
    manifest = json.loads((sample.directory / "manifest.json").read_bytes())
    digest = hashlib.sha256(altered).hexdigest()
    manifest["files"][name].update(bytes=len(altered), sha256=digest)
    reseal(made, manifest)

    def read() -> None:
        Artifact.open(made).path(name)
        recipe = pathlib.Path(name).stem
        generator = Generator.from_artifact(made, recipe=recipe, num_threads=1)
        for beams in (1, 2):
            generator.generate(TEXT, num_beams=beams, max_length=20)

    try:
        return tried(read)
    finally:
        shutil.rmtree(made / ".cache", ignore_errors=True)
        shutil.copyfile(sample.directory / name, made / name)


def copied(artifact: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """Return this process's copy of an artifact, which is made once."""
    made = scratch / "made"
    if not made.exists():
        shutil.copytree(artifact, made, ignore=shutil.ignore_patterns(".cache"))
    return made


def reseal(directory: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with a matching seal."""
    from bart_export.artifact.artifact import seal
    from bart_export.artifact.manifest import UNSEALED

    manifest["manifest_sha256"] = UNSEALED
    (directory / "manifest.json").write_bytes(seal(json.dumps(manifest).encode()))


def tried(read: Callable[[], object]) -> str:
    """Return the outcome of a read; raise any error that is not one line of this package."""
    from bart_export.errors import ArtifactError, BartExportError

    try:
        read()
    except BartExportError as error:
        if not str(error).isprintable():
            raise
        other = not isinstance(error, ArtifactError)
        return f"{REFUSED} by {type(error).__name__}" if other else REFUSED
    return RAN


def alter(content: bytes, places: list[range], dice: random.Random) -> bytes:
    """Change a few bits, bytes or words, mostly outside the weights, or copy a piece."""
    altered = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        place = dice.choices(places, [len(one) for one in places])[0]
        at = dice.choice(place) if dice.random() < 0.95 else dice.randrange(len(altered))
        word = at & ~3
        match dice.randrange(6):
            case 0:
                altered[at] ^= 1 << dice.randrange(8)
            case 1:
                altered[at] = dice.randrange(256)
            case 2:
                altered[word : word + 4] = dice.choice(WORDS).to_bytes(4, "little")
            case 3:
                number = int.from_bytes(altered[word : word + 4], "little")
                number += dice.choice((-8, -4, -2, -1, 1, 2, 4, 8))
                altered[word : word + 4] = (number % (1 << 32)).to_bytes(4, "little")
            case 4:
                other = dice.choice(dice.choices(places, [len(one) for one in places])[0]) & ~3
                length = dice.choice((4, 8, 16))
                altered[word : word + length] = altered[other : other + length]
            case 5:
                altered[word : word + 4] = dice.randrange(len(content)).to_bytes(4, "little")
    if dice.random() < 0.02:
        del altered[dice.randrange(len(altered)) :]
    return bytes(altered)


# --- manifest: a restructured manifest with a matching seal ---------------------------------------

# Optional fields, and names that would lead outside the artifact.
FIELDS: dict[str, Any] = {
    "notes": ["A note."],
    "target": "saved_model",
    "version": 2,
    "shapes": {"source_lengths": [8], "target_length": 8, "num_beams": [1]},
    "calibration": {"texts": 3},
    "memory": {"loaded": 1, "peak": 2, "measured": True},
    "added_tokens": [{"content": "<mask>", "lstrip": True}, {"content": "a", "special": True}],
    "add_prefix_space": True,
    "bad_words_ids": [[5], [6, 7]],
    "../x": {},
    "/etc/passwd": {},
    "a\x1b[2J\n": {},
}


def attempt_manifest(artifact: pathlib.Path, scratch: pathlib.Path, dice: random.Random) -> str:
    """Change the structure of a manifest, then inspect the artifact and generate with it."""
    from bart_export.cli import inspect
    from bart_export.runtime.generator import Generator

    made = copied(artifact, scratch)
    manifest = json.loads((artifact / "manifest.json").read_bytes())
    manifest["tokenizer"].update(added_tokens=FIELDS["added_tokens"][:1], add_prefix_space=False)
    reseal(made, restructured(manifest, dice))
    shown = tried(lambda: list(inspect.lines(inspect.artifact_facts(made))))
    asked = tried(lambda: Generator.from_artifact(made, num_threads=1).generate(TEXT, max_length=8))
    return RAN if RAN in (shown, asked) else asked


def restructured(manifest: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """Return a manifest with parts exchanged, renamed, wrapped, added or replaced."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        (one, name), (two, other) = dice.sample(list(places(manifest)), 2)
        match dice.randrange(6):
            case 0:
                one[name], two[other] = copy.deepcopy(two[other]), copy.deepcopy(one[name])
            case 1 if isinstance(one, dict):
                word = other if isinstance(other, str) else dice.choice(list(FIELDS))
                one[word] = one.pop(name)
            case 2:
                for _ in range(dice.choice((1, 1, 2, 100))):
                    one[name] = [one[name]] if dice.random() < 0.5 else {"x": one[name]}
            case 3 if isinstance(one, dict):
                word = dice.choice(list(FIELDS))
                one[word] = copy.deepcopy(FIELDS[word])
            case _:
                manifest = server_requests.odd(manifest, dice)
    return manifest


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the name or index of each part of a JSON document."""
    for name in document if isinstance(document, dict) else range(len(document)):
        yield document, name
        if isinstance(document[name], (dict, list)):
            yield from places(document[name])


KINDS = {
    kind.name: kind
    for kind in (
        Kind("flatbuffer", prepare_flatbuffer, attempt_flatbuffer),
        Kind("manifest", server_requests.prepare, attempt_manifest),
        Kind("rest", server_requests.prepare, server_requests.attempt_rest),
        Kind("grpc", server_requests.prepare, server_requests.attempt_grpc),
        Kind("tokenizer", tokenizer_inputs.prepare, tokenizer_inputs.attempt),
        Kind("tokenizer_file", tokenizer_inputs.prepare, tokenizer_inputs.attempt_file),
        Kind(
            "graph_tokenizer",
            tokenizer_inputs.prepare,
            tokenizer_inputs.attempt_graph,
            batch=tokenizer_inputs.BATCH,
            seconds=120.0,  # some build a graph
        ),
    )
}


def main() -> int:
    """Try the inputs that the command line asks for, print counts, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--count", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--workers", type=int, default=2, help="parallel processes")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.kinds if name not in KINDS]:
        parser.error(f"a kind must be one of {', '.join(KINDS)}, received {unknown[0]!r}")
    if min(arguments.count, arguments.workers) < 1:
        parser.error("--count and --workers must be at least 1")
    faults = 0
    for name in arguments.kinds:
        kind, counts = KINDS[name], collections.Counter[str]()
        seeds = range(arguments.seed, arguments.seed + -(-arguments.count // kind.batch))
        for seed, word, said in run(kind, seeds, arguments.workers):
            counts[word] += kind.batch
            if word in FAULTS:
                faults += 1
                print(f"{name} seed {seed} {word}: {said}", flush=True)
        print(f"{name}: " + ", ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
