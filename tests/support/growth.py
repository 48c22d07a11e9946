"""Compares work on texts of different sizes, which a slow or busy machine does not change."""

import time


def growth(function, small, large):
    """Return the processor time of `function(large)` divided by that of `function(small)`.

    Each is the lesser of two, so that a single interruption does not count.
    """

    def least(argument):
        times = []
        for _ in range(2):
            began = time.process_time()
            function(argument)
            times.append(time.process_time() - began)
        return min(times)

    return least(large) / least(small)
