"""Kills exports over an artifact, spread over their stages, and counts what each kill left.

    PYTHONPATH=tests python -m support.killed_exports DIRECTORY ARTIFACT KILLS [SEED]

Exports go to DIRECTORY/made. The journey of an export is the real one, in forks of a process that
has everything imported; of the model, which is not what is tried here, only what ARTIFACT recorded
is asked, so that a kill takes a fraction of a second. Every other export swaps with two renames.
"""

import collections
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import types

from bart_export.artifact import artifact, directories
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.figures import Answer
from bart_export.checkpoints.resolve import resolve_preset
from bart_export.export import pipeline
from bart_export.export.target import ExportedFile, ExportResult
from bart_export.verify.compare import Cases
from support.made_up_artifacts import check_neighbours, whole

STAGES = (
    "build the Keras model",
    "verify the tokenizer",
    "write a file",
    "ask the Keras model",
    "verify",
    "measure for the report",
    "commit the artifact",
    "remove what was replaced",
)
FILES = ("float32", "second", "third")  # each export writes one of them and keeps the others
EDITED = "serving/compose.yaml"


def play_back(recorded):
    """Have the journey take from an artifact what a model would have to compute."""
    cases = {case.setting + case.text: case for case in recorded.golden().cases}
    (row,) = recorded.manifest.verification

    def answers(questions):
        found = (cases[question.setting + question.text] for question in questions)
        references = (case.reference for case in found)
        return [Answer(one.token_ids, one.text, one.score) for one in references]

    def ask(tokenizer, questions):
        return Cases(questions, answers(questions), [], None)

    def write(model, recipe, draft, stage):
        stage("write a file")
        name = f"tflite/{recipe}.tflite"
        path = draft.directory / name
        path.parent.mkdir()
        shutil.copyfile(recorded.path(row.file), path)
        (draft.scratch / "half").write_bytes(b"half")
        entry = dataclasses.replace(recorded.manifest.files[row.file], recipe=recipe)

        def check(keras, cases):
            return dataclasses.replace(row, file=name), cases.answers

        return ExportResult([ExportedFile(name, {name: entry}, check)])

    pipeline.BartBackbone = types.SimpleNamespace(from_checkpoint=lambda checkpoint: None)
    pipeline.KerasReference = lambda backbone: types.SimpleNamespace(ask=ask)
    pipeline.export_files = write
    commit = artifact.Draft.commit

    def commit_and_tell(draft, manifest):
        commit(draft, manifest)
        draft.stage("remove what was replaced")

    artifact.Draft.commit = commit_and_tell


def run_export(resolved, target, number, stage):
    """Export once more, each third of the exports the same file."""
    artifact.Draft.stage = staticmethod(stage)
    pipeline.export_resolved(resolved, FILES[number % len(FILES)], target, stage)


def start(resolved, target, number):
    """Start an export in a fork; return its process and a pipe on which it names its stages."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, os.fdopen(reading, "r")
    try:
        if number % 2:
            directories.EXCHANGES.clear()
        tell = os.fdopen(writing, "w", buffering=1)
        run_export(resolved, target, number, lambda name: print(name, file=tell))
        os._exit(0)
    finally:
        os._exit(1)


def kill(process, pipe, wanted, seconds):
    """Kill an export so many seconds after a stage began; return whether it still ran."""
    for line in pipe:
        if line.startswith(wanted):
            time.sleep(seconds)
            break
    os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    pipe.close()
    assert status in (0, -signal.SIGKILL), f"the export failed: {status}"
    return status != 0


def durations(resolved, target, number):
    """Return how long each stage of an export takes."""
    process, pipe = start(resolved, target, number)
    began = [(line.strip(), time.perf_counter()) for line in pipe]
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    ended = time.perf_counter()
    pipe.close()
    assert status == 0, f"the export failed: {status}"
    times = [moment for _, moment in began[1:]] + [ended]
    assert len(began) == len(STAGES), began
    return {
        stage: after - before
        for stage, (_, before), after in zip(STAGES, began, times, strict=True)
    }


def lay_traps(place):
    """Put things beside the target that are named like drafts and are none; return them."""
    (place / "victim/photos").mkdir(parents=True)
    (place / "victim/photos/1.jpg").write_bytes(b"precious")
    (place / ".made.draft").symlink_to("victim")
    (place / ".made.abcdefgh.draft").symlink_to("victim")
    (place / ".made.hgfedcba.draft/photos").mkdir(parents=True)
    (place / ".made.hgfedcba.draft/photos/2.jpg").write_bytes(b"precious")
    return seen(place)


def seen(place):
    """Return what lies beside the target and is not what an export left there."""
    return {
        str(path.relative_to(place)): os.readlink(path) if path.is_symlink() else path.is_dir()
        for path in sorted(place.rglob("*"))
        if path.relative_to(place).parts[0] in TRAPS
    }


TRAPS = ("victim", ".made.draft", ".made.abcdefgh.draft", ".made.hgfedcba.draft")


def main(directory, recorded, kills, seed=0):
    """Kill exports, check after each, and return counts by stage."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    recorded = Artifact.open(pathlib.Path(recorded))
    place = pathlib.Path(directory)
    target = place / "made"
    traps = lay_traps(place)
    play_back(recorded)
    resolved = resolve_preset(recorded.manifest.source.handle, None)
    for number in range(len(FILES)):
        run_export(resolved, target, number, lambda name: None)
    (target / EDITED).parent.mkdir()
    (target / EDITED).write_text("mine")
    takes = durations(resolved, target, 0)
    draws = random.Random(seed)
    counts = {stage: collections.Counter() for stage in STAGES}
    exports = whole(target).manifest.exports
    names = set(whole(target).manifest.files)
    killed = tried = 0
    while killed < kills:
        stage = STAGES[tried % len(STAGES)]
        tried += 1
        process, pipe = start(resolved, target, draws.randrange(6))
        hit = kill(process, pipe, stage, draws.uniform(0, 1.1) * takes[stage])
        counts[stage]["killed" if hit else "ended before"] += 1
        killed += hit
        if not target.exists():  # between two renames: the next export puts it back
            with artifact.draft(target):
                assert target.exists()
            counts[stage]["put back"] += 1
        found = whole(target)
        new = found.manifest.exports - exports
        assert new in (0, 1), (tried, stage, new)
        assert set(found.manifest.files) == names
        assert (target / EDITED).read_text() == "mine"
        assert seen(place) == traps
        left = {path.name for path in place.iterdir()} - {"made", *TRAPS}
        assert len(left) <= 1, left
        check_neighbours(target)
        exports += new
        counts[stage].update({"new" if new else "old": 1, "left something": len(left)})
    with artifact.draft(target):
        pass
    assert {path.name for path in place.iterdir()} == {"made", *TRAPS}
    return counts


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3], *map(int, sys.argv[3:])), indent=1))
