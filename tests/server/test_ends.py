"""Servers that are told to end, many times and several at once: each ends in order."""

import collections
import json
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from support.serving_process import ServingProcess

STARTS, AT_ONCE = 40, 4
TEXT = "A library that reads and writes spreadsheets."
# What a server is asked before it is told to end; a stream that runs is cut off or finished.
BODIES = {"predict": {"instances": [TEXT] * 3}, "generate": {"text": TEXT}}


def ask(served, method):
    """Ask; the server may end meanwhile."""
    try:
        url = served.url(f"/v1/models/bart_mini_en:{method}")
        requests.post(url, json.dumps(BODIES[method]), timeout=120)
    except requests.RequestException:
        pass


def end(directory, number):
    """Start a server, ask it or not, end it; return its exit code and its last words."""
    generator = random.Random(number)
    served = ServingProcess(directory, "--drain-seconds", "5")
    method = [None, *BODIES][number % 3]
    asking = threading.Thread(target=ask, args=(served, method))
    if method:
        asking.start()
        # Before it is asked, while it answers or after that.
        time.sleep(generator.random())
    served.process.send_signal(generator.choice([signal.SIGTERM, signal.SIGINT]))
    code = served.process.wait(120)
    served.reader.join()
    served.process.stdout.close()
    served.process.stderr.close()
    if method:
        asking.join()
    return code, served.log[-1].rstrip().split(" INFO ")[-1]


@pytest.mark.slow
def test_every_server_ends_in_order(mini_artifact):
    with ThreadPoolExecutor(AT_ONCE) as threads:
        ends = threads.map(lambda number: end(mini_artifact.directory, number), range(STARTS))
        counted = collections.Counter(ends)
    assert counted == {(0, "bart_mini_en: unloaded version 1"): STARTS}
