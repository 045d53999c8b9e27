"""Ten times more than the gateway can do: what share of its peak is still answered right and in time?

Two loads take turns on the same gateway. Closed: so many users, each sending when it was answered; the best of several
numbers of users is the peak. Open: requests start at ten times that rate, whether or not they are answered. Goodput is
what was answered right within the deadline, counted when the answer came; what was refused must say when to come back.
It is counted in tokens too, so that a server cannot keep its goodput by refusing the long requests, and for each length
of text is told how many got in.

The aim is meant for callers who send on whatever they are told. Callers who come back when they were told to are the
third load, on demand. The generator shares the machine with the server: what it took of the cores is told, and the
ratio to the peak also for each core that it left.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtests.answers import Answer, check
from loadtests.arrivals import arrival_times
from loadtests.errors import GatewayUnreachable
from loadtests.texts import Ask, Mix
from loadtests.wire import Broken, Wire

SCHEMA = "slipway.overload/2"
# Seconds between two looks at what is to be sent: to wake for each of many requests would take more from the server
# that shares the machine than sending them does.
TICK = 0.005
# Statuses of a server that cannot now, which must say when it can.
NOT_NOW = (429, 503, 504)
# The lengths of texts that are told apart, and the characters below which a whole text is of that length.
SENTENCE = "a sentence"
LENGTHS = {"under 500 characters": 500.0, "under 1,500 characters": 1500.0, "longer": float("inf")}
# Called with a sentence about what is being done.
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent, whichever loop sends it.

    Attributes:
        deadline: seconds that an answer may take; the gateway is told.
        seconds, warmup: of each load; what comes in the warm-up is not counted, which should be as long as the
            deadline, since the first long texts of an overload end as late as that.
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
        offered, kept: requests that started after the warm-up, and those of them that were answered right and in time,
            by length.
        cores: of the machine, that the generator took.
    """

    good: int = 0
    tokens: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    unsaid: int = 0
    taken: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    offered: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    cores: float = 0.0


class Run:
    """One load on one gateway."""

    def __init__(self, load: Load) -> None:
        self.load, self.seen = load, Seen()
        self._bodies: dict[tuple[str, int], bytes] = {}
        self._begun = self._cpu = 0.0

    async def closed(self, users: int, seed: int, *, obedient: bool = False) -> Seen:
        """So many callers, each of whom sends when it was answered.

        Args:
            seed: which texts they draw.
            obedient: who was refused waits as long as it was told, and asks the same again.
        """

        async def user(wire: Wire, number: int) -> None:
            for ask in self.load.mix.stream(f"closed/{seed}/{number}"):
                wait: float | None = 0.0
                while wait is not None:
                    await asyncio.sleep(wait)
                    if (now := self._now()) >= self.load.span:
                        return
                    told = await self._send(wire, ask, now)
                    wait = told if obedient else None

        async with self._wire(users) as wire:
            self._start()
            await asyncio.gather(*(user(wire, number) for number in range(users)))
        return self._end()

    async def open(self, rate: float, seed: int) -> Seen:
        """So many requests a second, by a Poisson process; each is sent at the next tick, and timed from its own."""
        times = arrival_times(rate, self.load.span, arrivals="poisson", seed=seed, limit=10_000_000)
        tasks: set[asyncio.Task[None]] = set()
        async with self._wire(self.load.connections) as wire:
            self._start()
            for moment, ask in zip(times, self.load.mix.stream(f"open/{seed}"), strict=False):
                if (early := math.ceil(moment / TICK) * TICK - self._now()) > 0:
                    await asyncio.sleep(early)
                task = asyncio.create_task(self._told(wire, ask, moment))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        return self._end()

    async def _told(self, wire: Wire, ask: Ask, moment: float) -> None:
        await self._send(wire, ask, moment)

    def _wire(self, connections: int) -> Wire:
        load = self.load
        headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": str(round(load.deadline * 1000))}
        return Wire(load.url, connections, load.deadline + 5, headers | load.headers)

    def _start(self) -> None:
        self._begun, self._cpu = time.perf_counter(), time.process_time()

    def _end(self) -> Seen:
        self.seen.cores = round((time.process_time() - self._cpu) / self._now(), 2)
        return self.seen

    def _now(self) -> float:
        return time.perf_counter() - self._begun

    async def _send(self, wire: Wire, ask: Ask, intended: float) -> float | None:
        """Sends one request and notes what came; of a refusal the seconds that it told to wait."""
        seen, load = self.seen, self.load
        counts, length = intended >= load.warmup, length_of(ask)
        seen.offered[length] += counts
        try:
            reply = await wire.post(self._body(ask))
        except (Broken, OSError, TimeoutError) as error:
            seen.outcomes[type(error).__name__] += counts
            return None
        now = self._now()
        # What a refusal says is not looked at: nine of ten answers are refusals, and the server pays for the look.
        answer = Answer(f"http {reply.status}") if reply.status in NOT_NOW else check(reply.status, reply.body)
        in_time = not answer.error and now - intended <= load.deadline
        if in_time and load.warmup <= now <= load.span:
            seen.good += 1
            seen.tokens += answer.tokens
        wait = int(reply.retry_after) if re.fullmatch(r"[1-9][0-9]*", reply.retry_after) else None
        if counts:
            seen.outcomes["in time" if in_time else "late" if not answer.error else answer.error] += 1
            if in_time:
                seen.kept[length] += 1
                seen.taken.append((now - intended) * 1000)
            elif reply.status in NOT_NOW:
                seen.refused.append((now - intended) * 1000)
                seen.unsaid += wait is None
                seen.waits += [] if wait is None else [wait]
        return wait if reply.status in NOT_NOW else None

    def _body(self, ask: Ask) -> bytes:
        # Made once: at ten times the peak even writing JSON would take from the server's share of the machine.
        key = ask.kind, ask.place
        if (body := self._bodies.get(key)) is None:
            body = self._bodies[key] = ask.body
        return body


def length_of(ask: Ask) -> str:
    """Of what length a text is, in words."""
    if ask.kind == "short":
        return SENTENCE
    return next(length for length, below in LENGTHS.items() if ask.chars < below)


def overload(
    load: Load,
    *,
    users: Sequence[int],
    factor: float,
    rounds: int,
    seed: int,
    obedient: bool = False,
    say: Say = lambda sentence: None,
) -> dict[str, Any]:
    """Finds the peak, then lets the closed loop at its peak and the open one take turns.

    Args:
        users: numbers of users to try for the peak.
        factor: of the peak's requests per second, that the open loop offers.
        rounds: of both, one after the other; figures are medians over them, ratios are taken within a round.
        obedient: each round also has a closed loop of so many times the users, who wait as long as they are told.

    Raises:
        GatewayUnreachable: nothing is answered right.
    """
    return asyncio.run(_overload(load, users, factor, rounds, seed, obedient, say))


async def _overload(
    load: Load, users: Sequence[int], factor: float, rounds: int, seed: int, obedient: bool, say: Say
) -> dict[str, Any]:
    tried: dict[int, float] = {}
    for count in users:
        seen = await Run(load).closed(count, seed)
        tried[count] = seen.tokens / load.seconds
        say(f"peak    {count} users: {seen.good / load.seconds:.1f} requests/s, {tried[count]:.0f} tokens/s")
    best = max(tried, key=lambda count: tried[count])
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        peak = await Run(load).closed(best, seed + number)
        if not peak.good:
            raise GatewayUnreachable(load.host, f"no answer was right and in time: {dict(peak.outcomes)}")
        rate = factor * peak.good / load.seconds
        under = await Run(load).open(rate, seed + number)
        found.append(
            {
                "peak": figures(peak, load),
                "offered_requests_per_second": round(rate, 1),
                "overload": figures(under, load),
                "goodput_ratio": ratio(under, peak),
                "goodput_ratio_per_core_left": ratio(under, peak, _left(peak) / _left(under)),
            }
        )
        said = f"round   {number + 1}: peak {peak.tokens / load.seconds:.0f} tokens/s; "
        said += f"{rate:.0f} requests/s {_kept(under, peak)}"
        if obedient:
            waiting = await Run(load).closed(round(factor * best), seed + number, obedient=True)
            found[-1] |= {"obedient": figures(waiting, load), "obedient_ratio": ratio(waiting, peak)}
            said += f"; {round(factor * best)} users who wait {_kept(waiting, peak)}"
        say(said)
    kinds = [kind for kind in found[0] if kind.endswith(("ratio", "left"))]
    return {
        "tried_tokens_per_second": {str(count): round(rate, 1) for count, rate in tried.items()},
        "users_at_peak": best,
        "rounds": found,
        **{
            kind: {unit: round(statistics.median(item[kind][unit] for item in found), 3) for unit in found[0][kind]}
            for kind in kinds
        },
        "refusals_without_retry_after": sum(item["overload"]["refusals_without_retry_after"] for item in found),
    }


def _left(seen: Seen) -> float:
    """Cores of the machine that the generator left to others."""
    return len(os.sched_getaffinity(0)) - seen.cores


def _kept(seen: Seen, peak: Seen) -> str:
    return f"keep {seen.tokens / peak.tokens:.0%} of its tokens, {seen.good / peak.good:.0%} of its requests"


def ratio(seen: Seen, peak: Seen, scale: float = 1.0) -> dict[str, float]:
    """What a load kept of the peak, in requests and in tokens."""
    return {
        "requests": round(scale * seen.good / peak.good, 3),
        "tokens": round(scale * seen.tokens / peak.tokens, 3),
    }


def figures(seen: Seen, load: Load) -> dict[str, Any]:
    """What a load came to."""
    return {
        "good_requests_per_second": round(seen.good / load.seconds, 2),
        "good_tokens_per_second": round(seen.tokens / load.seconds, 1),
        "outcomes": dict(sorted(seen.outcomes.items())),
        "by_length": {
            length: {"offered": count, "in_time": seen.kept[length], "share": round(seen.kept[length] / count, 4)}
            for length in (SENTENCE, *LENGTHS)
            if (count := seen.offered[length])
        },
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
