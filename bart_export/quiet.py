"""Silence for native libraries that write to standard error whatever Python says.

TensorFlow, XNNPACK and LiteRT log from C++ straight to file descriptor 2. `native_stderr_silenced`
points that descriptor at a temporary file for the length of a block; when the block fails, what
was written is replayed, because then it may explain the failure.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def native_stderr_silenced() -> Iterator[None]:
    """Keep what native code writes to standard error from the user, unless the block raises."""
    sys.stderr.flush()
    try:
        original = os.dup(2)
    except OSError:  # no standard error to protect, as under pythonw
        yield
        return
    with tempfile.TemporaryFile() as spool:
        os.dup2(spool.fileno(), 2)
        try:
            yield
        except BaseException:
            restore(original)
            spool.seek(0)
            with contextlib.suppress(OSError):
                os.write(2, spool.read())
            raise
        restore(original)


def restore(original: int) -> None:
    """Point descriptor 2 back to `original`, and close the copy."""
    sys.stderr.flush()
    os.dup2(original, 2)
    os.close(original)
