"""A long run at a steady rate: does memory grow, do latencies rise?

A leak of a kilobyte per request is invisible in a load test of half a minute and ends a service after a week. So the
rate stays below what the gateway can do, and the memory of the gateway, of its Triton and of the models in it is
sampled until the slope can be told from noise (`loadtests.trend`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.callers import Callers, Outcome
from loadtests.own_gateway import OwnGateway, resident_mib
from loadtests.trend import trend

SCHEMA = "slipway.soak/1"
# Share of the measured capacity; seconds and callers of its measurement.
SHARE, CAPACITY_SECONDS, CAPACITY_USERS = 0.8, 20.0, 16
# The first part of a run fills pools and caches: this share of it is sampled and not judged.
SETTLING = 0.2
# Rise per hour that does not matter, of memory and of a latency, as shares of their medians; and in all, MiB and ms.
MEMORY_ALLOWED, LATENCY_ALLOWED = 0.02, 0.25
MEMORY_FLOOR, LATENCY_FLOOR = 1.0, 5.0
# Fewer samples tell nothing.
MIN_SAMPLES = 10


def memory(gateway: OwnGateway) -> dict[str, float]:
    """Resident memory in MiB of the gateway, its Triton, and the models in that one together."""
    triton = gateway.triton()
    found = {"gateway_mib": resident_mib(gateway.pid)}
    if triton:
        found["triton_mib"] = resident_mib(triton)
        found["models_mib"] = round(sum(map(resident_mib, gateway.stubs())), 1)
    return found


async def soak(
    gateway: OwnGateway, callers: Callers, *, minutes: float, every: float, rate: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs it.

    Args:
        minutes: of the run after the capacity was measured.
        every: seconds of one interval.
        rate: requests per second; 0 measures the capacity and takes `SHARE` of it.

    Returns:
        the samples, an interval each, and what they come to.
    """
    await callers.learn()
    capacity = None
    if not rate:
        # Twice, since the first one warms up.
        for seconds in (CAPACITY_SECONDS / 4, CAPACITY_SECONDS):
            capacity = await callers.capacity(CAPACITY_USERS, seconds, 1)
        rate = SHARE * (capacity or 0.0)
    say(f"{rate:.1f} requests/s for {minutes:g} minutes")
    callers.outcomes.clear()
    begun = time.monotonic()
    load = asyncio.create_task(callers.open_loop(rate, minutes * 60, 1, keep=False))
    samples: list[dict[str, Any]] = []
    try:
        while not load.done():
            await asyncio.wait({load}, timeout=max(0.0, begun + (len(samples) + 1) * every - time.monotonic()))
            # What is not over yet belongs to the next interval.
            done, callers.outcomes[:] = list(callers.outcomes), []
            sample = _sample(time.monotonic() - begun, done) | memory(gateway)
            if load.done() and time.monotonic() - begun < (len(samples) + 0.5) * every:
                sample |= {"p50_ms": None, "p99_ms": None}  # of a piece of an interval they tell nothing
            samples.append(sample)
            say(", ".join(f"{name} {value}" for name, value in sample.items()))
        await load
    finally:
        load.cancel()
    return {
        "capacity_requests_per_second": None if capacity is None else round(capacity, 1),
        "rate_requests_per_second": round(rate, 1),
        "minutes": minutes,
        "interval_s": every,
        "samples": samples,
        **judged(samples),
    }


def _sample(at: float, done: Sequence[Outcome]) -> dict[str, Any]:
    right = [one.seconds * 1000 for one in done if one.status == 200 and not one.fault]
    p50, p99 = (round(float(np.percentile(right, q)), 1) if right else None for q in (50, 99))
    return {
        "at_s": round(at, 1),
        "requests": len(done),
        "refused": sum(one.refused for one in done),
        "faulty": sum(bool(one.fault) for one in done),
        "p50_ms": p50,
        "p99_ms": p99,
    }


def judged(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The trend of each series after the settling, and whether all are flat; None where there are too few samples."""
    settled = samples[int(len(samples) * SETTLING) :]
    trends: dict[str, Any] = {}
    for name in ("gateway_mib", "triton_mib", "models_mib", "p50_ms", "p99_ms"):
        points = [(sample["at_s"], sample[name]) for sample in settled if sample.get(name) is not None]
        if len(points) >= MIN_SAMPLES:
            allowed = (MEMORY_ALLOWED, MEMORY_FLOOR) if name.endswith("_mib") else (LATENCY_ALLOWED, LATENCY_FLOOR)
            trends[name] = trend([at for at, _ in points], [value for _, value in points], *allowed)
    return {
        "requests": sum(sample["requests"] for sample in samples),
        "refused": sum(sample["refused"] for sample in samples),
        "faulty": sum(sample["faulty"] for sample in samples),
        "trends": trends,
        "flat": all(item["flat"] for item in trends.values()) if trends else None,
    }


def plot(record: dict[str, Any], file: Path) -> None:
    """Memory above, latencies below, over minutes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    samples = record["samples"]
    minutes = [sample["at_s"] / 60 for sample in samples]
    for axes, names, unit in ((upper, ("gateway_mib", "triton_mib", "models_mib"), "resident, MiB"),
                              (lower, ("p50_ms", "p99_ms"), "latency, ms")):  # fmt: skip
        for name in names:
            values = [sample.get(name) for sample in samples]
            if any(value is not None for value in values):
                told = record["trends"].get(name)
                rise = f" ({told['slope_share_per_hour']:+.1%} per hour)" if told else ""
                axes.plot(minutes, [np.nan if v is None else v for v in values], label=name.rsplit("_", 1)[0] + rise)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize="small")
    lower.set_xlabel("minutes")
    upper.set_title(f"{record['model']['name']}: {record['rate_requests_per_second']} requests/s, {record['engine']}")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(file)
