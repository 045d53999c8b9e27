"""When the requests of an open loop should start, whatever the server does.

A closed loop waits for a slow answer before it sends again, and so leaves out exactly the requests that would have
waited: "coordinated omission" (Gil Tene, "How NOT to measure latency", and his wrk2). Here the starts are fixed
before the run, and a latency counts from the intended start: time that a request waited for a free connection is
time that its caller waited.
"""

from __future__ import annotations

import random
from typing import Literal


def arrival_times(
    rate: float, span: float, *, arrivals: Literal["steady", "poisson"], seed: int, limit: int
) -> list[float]:
    """Intended starts in seconds from the start of the run, ascending, all below ``span``.

    Args:
        rate: requests per second.
        span: seconds.
        arrivals: ``steady`` leaves 1/rate between two starts, as wrk2 does; ``poisson`` draws the gaps from an
            exponential distribution, as many callers who do not know of each other would.
        seed: the same seed gives the same starts.
        limit: at most so many.
    """
    dice = random.Random(f"{seed}/arrivals")
    times: list[float] = []
    moment = 0.0 if arrivals == "steady" else dice.expovariate(rate)
    while moment < span and len(times) < limit:
        times.append(moment)
        # Steady starts are counted, not summed, so that rounding does not add up.
        moment = len(times) / rate if arrivals == "steady" else moment + dice.expovariate(rate)
    return times
