"""The weight cache: built once, then used, and never if it is damaged."""

import json
import multiprocessing
import os
import shutil
import sys

import pytest
from support.command import run
from support.mounts import run_on_mount

from bart_export.artifact import stamps
from bart_export.artifact.artifact import Artifact, sha256
from bart_export.runtime import weight_cache
from bart_export.runtime.generator import Generator

TEXT = "A library for reading and writing compressed archives, which streams them."


@pytest.fixture
def artifact(symmetric_artifact, tmp_path, monkeypatch):
    """Return a copy of an artifact, and keep the user's cache directory out of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    shutil.copytree(
        symmetric_artifact.directory, tmp_path / "made", ignore=shutil.ignore_patterns(".cache")
    )
    return Artifact.open(tmp_path / "made")


def generate(directory):
    """Open an artifact anew and return what it generates."""
    generator = Generator.from_artifact(directory, num_threads=1)
    return generator.generate(TEXT, num_beams=3, max_length=30, forced_eos_token_id=None).token_ids


def caches(directory):
    return sorted(directory.rglob("*.xnnpack"))


def only_cache(directory):
    (cache,) = caches(directory)
    return cache


def identity(path):
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def test_it_is_built_at_the_first_opening_and_used_at_the_second(artifact):
    first = generate(artifact.directory)
    cache = only_cache(artifact.directory)
    built = identity(cache)
    # Nearly all of the file's bytes are weights.
    assert built[2] > 0.8 * artifact.path("tflite/float32.tflite").stat().st_size
    assert generate(artifact.directory) == first
    assert identity(only_cache(artifact.directory)) == built
    assert list(cache.parent.iterdir()) == [cache]


def zero_between_pages_spread_evenly(cache):
    """Damage a few bytes of a file, and restore its modification time."""
    status, content = cache.stat(), bytearray(cache.read_bytes())
    pages = len(content) // 64
    for begin in range(4096, len(content) - 4096, pages):
        content[begin : begin + 2048] = bytes(2048)
    with cache.open("r+b") as file:
        file.write(content)
    os.utime(cache, ns=(status.st_atime_ns, status.st_mtime_ns))


HARMS = {
    "cut": lambda cache: os.truncate(cache, cache.stat().st_size // 2),
    "emptied": lambda cache: cache.write_bytes(b""),
    "zeros": zero_between_pages_spread_evenly,
    "appended": lambda cache: cache.write_bytes(cache.read_bytes() + b"more"),
    "no stamp": lambda cache: stamps.stamp_path(cache).unlink(),
    "damaged stamp": lambda cache: stamps.stamp_path(cache).write_bytes(b"{"),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("large", [False, True])
def test_one_that_is_not_whole_is_built_again(artifact, harm, large, monkeypatch):
    monkeypatch.setattr(weight_cache, "LARGE", 0 if large else 1 << 40)
    expected = generate(artifact.directory)
    cache = only_cache(artifact.directory)
    whole, before = cache.read_bytes(), cache.stat().st_ino
    HARMS[harm](cache)
    assert generate(artifact.directory) == expected
    assert only_cache(artifact.directory).stat().st_ino != before
    assert len(cache.read_bytes()) == len(whole)
    assert weight_cache.is_valid(cache)


def test_one_that_came_with_an_artifact_is_built_again(artifact, tmp_path):
    expected = generate(artifact.directory)
    received = shutil.copytree(artifact.directory, tmp_path / "received")
    cache = only_cache(received)
    zero_between_pages_spread_evenly(cache)
    stamp = vars(stamps.stamp(cache.stat(), sha256(cache)))
    cache.with_name(f"{cache.name}.json").write_text(json.dumps(stamp))
    assert generate(received) == expected


def test_verify_says_that_one_was_damaged_and_that_the_file_is_right(artifact):
    generate(artifact.directory)
    for harm, line in (
        (lambda cache: None, ""),
        (
            zero_between_pages_spread_evenly,
            "tflite/float32.tflite: the weight cache was damaged and was rebuilt\n",
        ),
        (lambda cache: None, ""),
    ):
        harm(only_cache(artifact.directory))
        result = run("verify", artifact.directory)
        assert (result.exit_code, result.stderr) == (0, line), result.output
        assert "is complete" in result.stdout


@pytest.mark.parametrize("large", [False, True])
def test_a_large_one_is_hashed_once_a_boot(artifact, large, monkeypatch):
    generate(artifact.directory)
    cache = only_cache(artifact.directory)
    hashed = []
    monkeypatch.setattr(weight_cache, "LARGE", 0 if large else 1 << 40)
    monkeypatch.setattr(weight_cache, "sha256", lambda path: hashed.append(path) or sha256(path))
    for boot in ("this", "this", "another", "another"):
        monkeypatch.setattr(stamps, "boot", lambda boot=boot: boot)
        assert weight_cache.is_valid(cache)
    assert len(hashed) == (2 if large else 4)
    assert weight_cache.is_valid(cache, rehash=True)
    assert len(hashed) == (3 if large else 5)


def put_a_link_there(directory):
    directory.rename(directory.with_name("elsewhere"))
    directory.symlink_to(directory.with_name("elsewhere"))


@pytest.mark.parametrize("harm", [lambda directory: directory.chmod(0o777), put_a_link_there])
def test_one_that_others_could_write_is_not_used(artifact, tmp_path, harm):
    first = generate(artifact.directory)
    cache = only_cache(artifact.directory)
    built = identity(cache)
    harm(cache.parent)
    assert generate(artifact.directory) == first
    assert identity(cache) == built
    assert only_cache(tmp_path / "user")


def test_where_nothing_can_be_stamped_there_is_none(artifact, tmp_path):
    (tmp_path / "user/bart-export").mkdir(parents=True)
    (tmp_path / "user/bart-export").chmod(0o777)
    generate(artifact.directory)
    assert caches(tmp_path) == []


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_opened(artifact, make):
    first = generate(artifact.directory)
    cache = only_cache(artifact.directory)
    cache.unlink()
    make(cache)
    assert generate(artifact.directory) == first


def test_one_of_another_model_is_not_used(artifact, distilled_artifact):
    generate(artifact.directory)
    cache = only_cache(artifact.directory)
    content = cache.read_bytes()
    other = artifact.directory.with_name("other")
    shutil.copytree(distilled_artifact.directory, other, ignore=shutil.ignore_patterns(".cache"))
    # The directory was replaced, and the cache somehow stayed.
    shutil.copytree(cache.parent, other / ".cache")
    assert generate(other) == generate(distilled_artifact.directory)
    assert len(caches(other)) == 2
    assert (other / ".cache" / cache.name).read_bytes() == content


@pytest.mark.parametrize("what", ["library", "processor"])
def test_one_of_another_library_or_processor_is_not_used(artifact, monkeypatch, what):
    generate(artifact.directory)
    if what == "library":
        monkeypatch.setattr(
            "bart_export.runtime.weight_cache.litert_version", lambda: "ai-edge-litert 9.9"
        )
    else:
        monkeypatch.setattr("platform.machine", lambda: "another")
    generate(artifact.directory)
    assert len(caches(artifact.directory)) == 2


def test_where_the_artifact_cannot_hold_it_the_users_cache_does(artifact, tmp_path):
    (artifact.directory / ".cache").write_bytes(b"")  # root may write anywhere, but not below this
    first = generate(artifact.directory)
    assert caches(artifact.directory) == []
    cache = only_cache(tmp_path / "user")
    built = identity(cache)
    assert generate(artifact.directory) == first
    assert identity(cache) == built


def test_where_nothing_can_hold_it_the_file_is_opened_all_the_same(artifact, tmp_path):
    expected = generate(artifact.directory)
    shutil.rmtree(artifact.directory / ".cache")
    (artifact.directory / ".cache").write_bytes(b"")
    shutil.rmtree(tmp_path / "user")
    (tmp_path / "user").write_bytes(b"")
    assert generate(artifact.directory) == expected
    assert caches(tmp_path) == []


GENERATE = """
import pathlib, shutil, sys
from bart_export.runtime.generator import Generator
shutil.copytree(sys.argv[1], sys.argv[2], ignore=shutil.ignore_patterns(".cache"))
generator = Generator.from_artifact(sys.argv[2], num_threads=1)
print(generator.generate("A text.", max_length=8).token_ids)
print(len(list(pathlib.Path(sys.argv[2]).rglob("*.xnnpack*"))))
"""


def test_on_a_disk_that_is_nearly_full_there_is_none(artifact, tmp_path):
    """LiteRT kills the process if it cannot write its cache."""
    expected = Generator.from_artifact(artifact.directory).generate("A text.", max_length=8)
    mount = tmp_path / "mount"
    mount.mkdir()
    size = sum(path.stat().st_size for path in artifact.directory.rglob("*")) // 1024
    done = run_on_mount(
        mount,
        f"size={size + 300}k",
        [sys.executable, "-c", GENERATE, artifact.directory, mount / "made"],
        env={**os.environ, "XDG_CACHE_HOME": str(mount)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{expected.token_ids}\n0\n"


def open_at_once(directory, barrier, answers):
    barrier.wait(60)
    answers.put(generate(directory))


def test_two_processes_may_build_it_at_once(artifact, symmetric_artifact):
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(2), spawn.Queue()
    arguments = (artifact.directory, barrier, answers)
    processes = [spawn.Process(target=open_at_once, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60), answers.get(timeout=60)] == 2 * [
        generate(symmetric_artifact.directory)
    ]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert weight_cache.is_valid(only_cache(artifact.directory))
    assert not list(artifact.directory.rglob("*.building"))


def test_what_killed_processes_left_unfinished_is_removed_in_time(artifact):
    generate(artifact.directory)
    cache = only_cache(artifact.directory)
    recent, old = (cache.with_name(f"{cache.name}.{number}.building") for number in (1, 2))
    for path in (recent, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.unlink()
    generate(artifact.directory)
    assert recent.exists()
    assert not old.exists()
