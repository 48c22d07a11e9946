"""Silences native libraries, which bypass Python and log to file descriptor 2.

If the block of `native_stderr_silenced` fails, the log is replayed because it may explain why,
except after an error that explains itself: a `BartExportError`, an `OSError` or Ctrl-C.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

from bart_export.errors import BartExportError

# Without a lock, two threads would redirect the process's descriptor to each other's file.
DESCRIPTOR = threading.RLock()


@contextlib.contextmanager
def native_stderr_silenced() -> Iterator[None]:
    """Hide native output on standard error unless the block raises; one thread at a time."""
    with DESCRIPTOR:
        yield from silenced()


def silenced() -> Iterator[None]:
    """Redirect descriptor 2 to a temporary file until the generator is resumed."""
    sys.stderr.flush()
    try:
        original = os.dup(2)
    except OSError:  # there is no standard error, as under pythonw
        yield
        return
    with temporary_file() as spool:
        os.dup2(spool.fileno(), 2)
        try:
            yield
        except (BartExportError, OSError, KeyboardInterrupt):
            restore(original)
            raise
        except BaseException:  # also SystemExit: what was silenced may explain it
            restore(original)
            spool.seek(0)
            with contextlib.suppress(OSError):
                os.write(2, spool.read())
            raise
        restore(original)


def temporary_file() -> IO[bytes]:
    """Return an unnamed file, or the null device if none can be made."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "w+b")


def restore(original: int) -> None:
    """Restore descriptor 2 from `original`, and close that copy."""
    sys.stderr.flush()
    os.dup2(original, 2)
    os.close(original)
