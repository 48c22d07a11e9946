"""Ends exports in forks, each at a later access to files, and checks what every one of them left.

    PYTHONPATH=tests python -m support.killed_exports DIRECTORY [ARTIFACT STEP]

Ended means without a chance to clean up. Alone, DIRECTORY gets artifacts of a few bytes and an
export is ended at its first access, the next at its second, and so on until one gets through. With
ARTIFACT the whole journey of an export is ended, at every STEP-th access; of the model, which is
not what is tried here, only what ARTIFACT recorded is asked. Every other export swaps with two
renames. It prints how many accesses an export has.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import shutil
import sys
import traceback
import types

from bart_export.artifact import drafts
from bart_export.artifact.artifact import Artifact
from bart_export.artifact.figures import Answer
from bart_export.errors import ArtifactError
from support import made_up_artifacts
from support.golden_cases import preset_of
from support.made_up_artifacts import whole

VERSIONS = [{"a": b"old" * 999, "t/b": b"old"}, {"a": b"new" * 777, "t/c": b"new"}]
FILES = ("float32", "second", "third")  # each export writes one of them and keeps the others
EDITED = "serving/compose.yaml"
# Audit events: every open, lock, rename, link, removal and call into libc.
EVENTS = ("open", "fcntl.", "os.", "shutil.", "ctypes.call_function")
left = -1


def count(event, arguments):
    global left
    if event.startswith(EVENTS):
        left -= 1
        if left == 0:
            os._exit(9)


def is_killed(export, target, access, two_renames):
    """Run an export that ends at an access to files; return whether it ended there.

    The artifact is then there, or with two renames is put back by the next export.
    """
    global left
    process = os.fork()
    if process == 0:
        try:
            if two_renames:
                drafts.EXCHANGES.clear()
            left = access
            export()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, 9), status
    if two_renames and not target.exists():
        with drafts.draft(target):
            assert target.exists()
    check_neighbours(target)
    return status == 9


def check_neighbours(target):
    """Fail if a kill left an incomplete artifact next to this one."""
    for path in target.parent.rglob("*"):
        if path != target and path.is_dir():
            try:
                Artifact.open(path)
            except ArtifactError:
                continue
            whole(path)


def kill_commits(target):
    """End the writing of a new version over an old one at every access, each swapped both ways."""
    old, new = (functools.partial(made_up_artifacts.write, target, files) for files in VERSIONS)
    for access in itertools.count(1):
        killed = []
        for two_renames in (False, True):
            old()
            killed.append(is_killed(new, target, access, two_renames))
            assert len(list(target.parent.iterdir())) <= 2, access  # another export clears up
            found = whole(target)
            contents = {name: found.path(name).read_bytes() for name in found.manifest.files}
            assert contents in VERSIONS, access
        if not any(killed):
            break
    return access


def play_back(recorded):
    """Have the journey take from an artifact what a model would have to compute; return it."""
    from bart_export.export import pipeline  # which is slow to import, and to fork
    from bart_export.export.target import ExportedFile, ExportResult
    from bart_export.verify.compare import Cases

    cases = {case.setting + case.text: case for case in recorded.golden().cases}
    (row,) = recorded.manifest.verification

    def ask(tokenizer, questions):
        references = [cases[asked.setting + asked.text].reference for asked in questions]
        answers = [Answer(known.token_ids, known.text, known.score) for known in references]
        return Cases(questions, answers, [], None)

    def write(model, recipe, draft, stage):
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
    return pipeline


def kill_exports(target, recorded, step):
    """End exports over an artifact that has files of earlier ones, and one that somebody edited."""
    from bart_export.checkpoints.resolve import ResolvedPreset

    resolved = ResolvedPreset(preset_of(recorded), None)
    export = functools.partial(play_back(recorded).export, resolved, output=target)
    for file in FILES:
        export(file)
    (target / EDITED).parent.mkdir()
    (target / EDITED).write_text("mine")
    before = whole(target).manifest
    for number, access in enumerate(itertools.count(1, step)):
        again = functools.partial(export, FILES[number % len(FILES)])
        killed = is_killed(again, target, access, two_renames=number % 2 == 1)
        after = whole(target).manifest
        assert after.exports - before.exports in (0, 1), access
        assert set(after.files) == set(before.files), access
        assert (target / EDITED).read_text() == "mine"
        assert len(list(target.parent.iterdir())) <= 2, access
        before = after
        if not killed:
            break
    return access


def main(directory, recorded=None, step="1"):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    target = pathlib.Path(directory) / "made"
    sys.addaudithook(count)
    if recorded is None:
        accesses = kill_commits(target)
    else:
        accesses = kill_exports(target, Artifact.open(pathlib.Path(recorded)), int(step))
    with drafts.draft(target):  # the next export removes what is left
        pass
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    print(accesses)


if __name__ == "__main__":
    main(*sys.argv[1:])
