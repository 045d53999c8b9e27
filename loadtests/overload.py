"""Ten times more than the gateway can do: what share of its peak is still answered right and in time?

Two loads take turns on the same gateway. Closed: so many users, each sending when it was answered; the best of several
numbers of users is the peak. Open: requests start at ten times that rate, whether or not they are answered. Goodput is
what was answered right within the deadline, counted when the answer came; what was refused must say when to come back.
It is counted in tokens too, so that a server cannot keep its goodput by refusing the long requests.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from loadtests.answers import check
from loadtests.arrivals import arrival_times
from loadtests.errors import GatewayUnreachable
from loadtests.texts import Ask, Mix

SCHEMA = "slipway.overload/1"
# Statuses of a server that cannot now, which must say when it can.
NOT_NOW = (429, 503, 504)
# Called with a sentence about what is being done.
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent, whichever loop sends it.

    Attributes:
        deadline: seconds that an answer may take; the gateway is told.
        seconds, warmup: of each load; what comes in the warm-up is not counted.
        connections: at most so many at a time; a request that waits for one is late by that.
        headers: of every request.
    """

    host: str
    model: str
    mix: Mix
    deadline: float
    seconds: float
    warmup: float
    connections: int
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{self.host}/v1/models/{self.model}/predict"

    @property
    def span(self) -> float:
        return self.warmup + self.seconds


@dataclass(slots=True)
class Seen:
    """What came of one load.

    Attributes:
        good, tokens: requests answered right and in time within the measured seconds, and their tokens.
        outcomes: every request that started after the warm-up: ``in time``, ``late`` (answered right, too late),
            the status of a refusal, or the kind of an error.
        unsaid: refusals without a usable Retry-After.
        taken, refused: milliseconds of answers in time and of refusals.
        waits: seconds that refusals told to wait.
    """

    good: int = 0
    tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    unsaid: int = 0
    taken: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    cores: float = 0.0


class Run:
    """One load on one gateway."""

    def __init__(self, load: Load) -> None:
        self.load, self.seen = load, Seen()
        self._begun = self._cpu = 0.0

    async def closed(self, users: int) -> Seen:
        """So many callers, each of whom sends when it was answered."""

        async def user(session: aiohttp.ClientSession, number: int) -> None:
            for ask in self.load.mix.stream(number):
                if (now := self._now()) >= self.load.span:
                    return
                await self._send(session, ask, now)

        async with self._session(users) as session:
            self._start()
            await asyncio.gather(*(user(session, number) for number in range(users)))
        return self._end()

    async def open(self, rate: float, seed: int) -> Seen:
        """So many requests a second, by a Poisson process."""
        times = arrival_times(rate, self.load.span, arrivals="poisson", seed=seed, limit=10_000_000)
        tasks: set[asyncio.Task[None]] = set()
        async with self._session(self.load.connections) as session:
            self._start()
            for moment, ask in zip(times, self.load.mix.stream(f"open/{seed}"), strict=False):
                if (early := moment - self._now()) > 0:
                    await asyncio.sleep(early)
                task = asyncio.create_task(self._send(session, ask, moment))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        return self._end()

    def _session(self, connections: int) -> aiohttp.ClientSession:
        limits = aiohttp.ClientTimeout(total=self.load.deadline + 5)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections), timeout=limits, headers=self.load.headers
        )

    def _start(self) -> None:
        self._begun, self._cpu = time.perf_counter(), time.process_time()

    def _end(self) -> Seen:
        self.seen.cores = round((time.process_time() - self._cpu) / self._now(), 2)
        return self.seen

    def _now(self) -> float:
        return time.perf_counter() - self._begun

    async def _send(self, session: aiohttp.ClientSession, ask: Ask, intended: float) -> None:
        seen, load = self.seen, self.load
        headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": str(round(load.deadline * 1000))}
        try:
            async with session.post(load.url, data=ask.body, headers=headers) as response:
                status, body = response.status, await response.read()
                wait = response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if intended >= load.warmup:
                seen.outcomes[type(error).__name__] += 1
            return
        now = self._now()
        answer = check(status, body)
        in_time = not answer.error and now - intended <= load.deadline
        if in_time and load.warmup <= now <= load.span:
            seen.good += 1
            seen.tokens += answer.tokens
        if intended < load.warmup:
            return
        if in_time:
            seen.taken.append((now - intended) * 1000)
        elif status in NOT_NOW:
            seen.refused.append((now - intended) * 1000)
            if re.fullmatch(r"[1-9][0-9]*", wait):
                seen.waits.append(int(wait))
            else:
                seen.unsaid += 1
        seen.outcomes["in time" if in_time else "late" if not answer.error else answer.error] += 1


def overload(
    load: Load, *, users: Sequence[int], factor: float, rounds: int, seed: int, say: Say = lambda sentence: None
) -> dict[str, Any]:
    """Finds the peak, then lets the closed loop at its peak and the open one take turns.

    Args:
        users: numbers of users to try for the peak.
        factor: of the peak's requests per second, that the open loop offers.
        rounds: of both, one after the other; figures are medians over them, ratios are taken within a round.

    Raises:
        GatewayUnreachable: nothing is answered right.
    """
    return asyncio.run(_overload(load, users, factor, rounds, seed, say))


async def _overload(
    load: Load, users: Sequence[int], factor: float, rounds: int, seed: int, say: Say
) -> dict[str, Any]:
    tried: dict[int, float] = {}
    for count in users:
        seen = await Run(load).closed(count)
        tried[count] = seen.tokens / load.seconds
        say(f"peak    {count} users: {seen.good / load.seconds:.1f} requests/s, {tried[count]:.0f} tokens/s")
    best = max(tried, key=lambda count: tried[count])
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        peak = await Run(load).closed(best)
        if not peak.good:
            raise GatewayUnreachable(load.host, f"no answer was right and in time: {dict(peak.outcomes)}")
        rate = factor * peak.good / load.seconds
        under = await Run(load).open(rate, seed + number)
        found.append(
            {
                "peak": figures(peak, load),
                "offered_requests_per_second": round(rate, 1),
                "overload": figures(under, load),
                "goodput_ratio": {
                    "requests": round(under.good / peak.good, 3),
                    "tokens": round(under.tokens / peak.tokens, 3),
                },
            }
        )
        say(
            f"round   {number + 1}: peak {peak.tokens / load.seconds:.0f} tokens/s, offered {rate:.0f} requests/s, "
            f"then {under.tokens / load.seconds:.0f} tokens/s ({under.tokens / peak.tokens:.0%})"
        )
    return {
        "tried_tokens_per_second": {str(count): round(rate, 1) for count, rate in tried.items()},
        "users_at_peak": best,
        "rounds": found,
        "goodput_ratio": {
            kind: round(statistics.median(item["goodput_ratio"][kind] for item in found), 3)
            for kind in ("requests", "tokens")
        },
        "refusals_without_retry_after": sum(item["overload"]["refusals_without_retry_after"] for item in found),
    }


def figures(seen: Seen, load: Load) -> dict[str, Any]:
    """What a load came to."""
    return {
        "good_requests_per_second": round(seen.good / load.seconds, 2),
        "good_tokens_per_second": round(seen.tokens / load.seconds, 1),
        "outcomes": dict(sorted(seen.outcomes.items())),
        "refusals_without_retry_after": seen.unsaid,
        "in_time_ms": quantiles(seen.taken),
        "refusal_ms": quantiles(seen.refused),
        "retry_after_seconds": quantiles(seen.waits),
        "generator_cpu_cores": seen.cores,
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and largest of some values; nothing of none."""
    if not values:
        return {}
    found = np.percentile(np.array(values), [50, 99, 100], method="inverted_cdf")
    return {name: round(float(value), 1) for name, value in zip(("p50", "p99", "max"), found, strict=True)}


def engine_of(host: str, model: str) -> str:
    """Which engine the gateway has for a model, as its metrics tell; ``unknown`` where they do not."""
    import httpx

    with suppress(httpx.HTTPError), httpx.Client(trust_env=False, timeout=10) as client:
        for line in client.get(f"{host}/metrics").text.splitlines():
            if line.startswith("slipway_model_info{") and f'model="{model}"' in line:
                return next(iter(re.findall(r'engine="([^"]*)"', line)), "unknown")
    return "unknown"
