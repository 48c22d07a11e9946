"""A file system for fsspec: local files, of which reading waits after the first mebibyte."""

import time

import fsspec
from fsspec.implementations.local import LocalFileSystem

FIRST = 1 << 20


class StallingFileSystem(LocalFileSystem):
    protocol = "stalling"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("stalling://"))

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        read = file.f.read

        def stalling(size=-1):
            if file.f.tell() >= FIRST:
                time.sleep(60)
            return read(size)

        file.read = stalling
        return file


fsspec.register_implementation("stalling", StallingFileSystem)
