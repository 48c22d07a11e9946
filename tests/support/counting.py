"""A streaming servable without a model, which counts."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from bart_export.config import GenerationConfig
from bart_export.errors import InputError
from bart_export.runtime.results import GeneratedSequence, Result, Timings
from bart_export.server.status import Code, StatusError
from support.arithmetic import PREDICT, STRING, signature

LONGEST_TEXT = 5000


class Counting:
    """Counts from 1 to `max_length`, one number per token.

    A text that is a number fails at this token; a text with "cut" counts as truncated. No token
    beyond `pause_after` is emitted until a test changes it. `emitted` is the number of tokens so
    far, `begun` is set once a call has arrived, `ended` once nothing runs.
    """

    signature_defs = {
        "serving_default": signature(PREDICT, {"text": STRING}, {"generated_text": STRING})
    }
    streams = True
    reader = None

    def __init__(self, seconds=0.001, queue_size=64, pause_after=math.inf):
        self.seconds = seconds
        self.pause_after = pause_after
        self.places = threading.Semaphore(1 + queue_size)
        self.workers = ThreadPoolExecutor(1)
        self.emitted = 0
        self.begun, self.ended = threading.Event(), threading.Event()
        self.closed = threading.Event()

    def stream(self, text, parameters, emit, limits):
        if not self.places.acquire(blocking=False):
            raise StatusError(Code.UNAVAILABLE, "The queue is full")
        self.ended.clear()
        self.begun.set()
        future = self.workers.submit(self.count, text, parameters, emit, limits)
        future.add_done_callback(lambda _: (self.places.release(), self.ended.set()))
        return future

    def count(self, text, parameters, emit, limits):
        generation = GenerationConfig().replace(**parameters)
        if len(text) > LONGEST_TEXT:
            raise InputError(f"A text may have {LONGEST_TEXT} tokens, received {len(text)}.")
        broken = int(text) if text.isdecimal() else None
        limits.remarks.truncated += [0] if "cut" in text else []
        limits.remarks.empty += [] if text.strip() else [0]
        words = []
        for number in range(1, generation.max_length + 1):
            time.sleep(self.seconds)
            limits.check()
            while number > self.pause_after:
                time.sleep(0.005)
                limits.check()
            if number == broken:
                raise RuntimeError("the engine broke")
            words.append(f"{number} ")
            emit(words[-1], number)
            self.emitted += 1
        sequence = GeneratedSequence("".join(words), tuple(range(len(words) + 1)), -0.5)
        seconds = self.seconds * len(words)
        return Result((sequence,), (0, 2), Timings(0.0, seconds, len(words)))

    def close(self):
        self.closed.set()
        self.workers.shutdown()
