"""Workers: threads that do one piece of work each, in front of which a bounded number may wait.

Work goes in as a function, its answer comes out as a future. What the work is, is not known here.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from bart_export.server.servable import Limits
from bart_export.server.status import Code, StatusError

Answer = TypeVar("Answer")

QUEUE_FULL = "The batch scheduling queue to which this task was submitted is full"


class Workers:
    """Threads of a servable.

    Args:
        count: threads.
        queue_size: pieces of work that may wait beside those that are done.
        name: what the threads' names begin with.
    """

    def __init__(self, count: int, queue_size: int, name: str) -> None:
        self._free = threading.Semaphore(count + queue_size)
        self._threads = ThreadPoolExecutor(count, name)

    def submit(self, work: Callable[[], Answer], limits: Limits) -> "Future[Answer]":
        """Do some work on the next free thread, unless its limits have ended it by then.

        Raises:
            StatusError: UNAVAILABLE if too much is waiting already, or the threads have ended.
        """
        if not self._free.acquire(blocking=False):
            raise StatusError(Code.UNAVAILABLE, QUEUE_FULL)

        def limited() -> Answer:
            try:
                limits.check()
                return work()
            finally:
                # Before the answer is told: whoever is may count on the thread that gave it.
                self._free.release()

        try:
            future = self._threads.submit(limited)
        except RuntimeError:  # the threads were shut down
            self._free.release()
            raise StatusError(Code.UNAVAILABLE, "The model is being unloaded") from None
        future.add_done_callback(lambda ended: self._free.release() if ended.cancelled() else None)
        return future

    def close(self) -> None:
        """Wait for the threads to end."""
        self._threads.shutdown()
