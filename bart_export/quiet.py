"""Silence for native libraries that write to standard error whatever Python says.

TensorFlow, XNNPACK and LiteRT log from C++ straight to file descriptor 2. `native_stderr_silenced`
points that descriptor at a temporary file for the length of a block. When the block fails, what was
written is replayed, because then it may explain the failure, unless the error is one that explains
itself: one of this package, of the system, or Ctrl-C.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

from bart_export.errors import BartExportError

# The descriptor is the process's: of two threads that point it elsewhere at once, the second would
# point it back to where the first had it.
DESCRIPTOR = threading.RLock()


@contextlib.contextmanager
def native_stderr_silenced() -> Iterator[None]:
    """Keep what native code writes to standard error from the user, unless the block raises.

    Blocks of several threads run one after another.
    """
    with DESCRIPTOR:
        yield from silenced()


def silenced() -> Iterator[None]:
    """Yield once, while descriptor 2 points to a temporary file."""
    sys.stderr.flush()
    try:
        original = os.dup(2)
    except OSError:  # no standard error to protect, as under pythonw
        yield
        return
    with temporary_file() as spool:
        os.dup2(spool.fileno(), 2)
        try:
            yield
        except (BartExportError, OSError, KeyboardInterrupt):
            restore(original)
            raise
        except BaseException:
            restore(original)
            spool.seek(0)
            with contextlib.suppress(OSError):
                os.write(2, spool.read())
            raise
        restore(original)


def temporary_file() -> IO[bytes]:
    """Return an unnamed file, or the null device where there is no room for one."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.devnull, "w+b")


def restore(original: int) -> None:
    """Point descriptor 2 back to `original`, and close the copy."""
    sys.stderr.flush()
    os.dup2(original, 2)
    os.close(original)
