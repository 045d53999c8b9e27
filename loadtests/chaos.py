"""What happens when things die: blows against a gateway of one's own, under steady traffic.

After the practice that Netflix called chaos engineering: a steady state is measured first (here: the answer to every
text), then something is broken on purpose, and what callers see is compared. Each blow is one function below; what
counts as a failure stands in `loadtests.chaos_report`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from loadtests.callers import Callers, Outcome, body_of
from loadtests.own_gateway import OwnGateway

# Seconds: quiet before and after a blow; that a recovery may take; between two looks at readiness.
CALM, RECOVERY, LOOK = 2.0, 90.0, 0.05
# The steady callers, and their pause in seconds; newcomers per second, who wait for nobody.
USERS, PAUSE, NEWCOMERS = 8, 0.02, 5.0
# A flood is so many times what the server can do, for so many seconds, in requests of so many texts.
FLOOD, FLOOD_SECONDS, FLOOD_TEXTS = 10, 5.0, 8
CAPACITY_SECONDS = 5.0
# Versions of the model, with the same weights: the gateway serves the newer one. How often they are swapped.
KEPT, SERVED, SWAPS = 1, 2, 2
# Callers who hang up, one after the other.
HANG_UPS = 200
# The blows that the report judges in a way of their own.
MODELS = "the models in Triton are killed"
SWAPPED = "versions are loaded and swapped"
TWICE, STOPPED, FULL = "Triton is killed twice", "the gateway is told to stop", "the disk of the logs is full"
FLOODED = f"{FLOOD} times the load"
# Settings of the gateway under test: a hang is noticed soon, a stop has a time of grace.
SETTINGS = {"SLIPWAY_HANG_SECONDS": "3", "SLIPWAY_DRAIN_SECONDS": "1"}


@dataclass
class Blow:
    """One thing that was done, and what callers saw. Times are of `time.monotonic`.

    Attributes:
        at: when it was done; ``over`` when it was over, for a blow that lasts.
        ready: (time, whether ready) from shortly before to the end.
        not_ready: what was said by whoever was not ready, and how often.
        outcomes: of all requests that touch this time.
        notes: further facts.
        recovered: whether the server was ready again, with what was killed replaced, within the time allowed.
    """

    name: str
    at: float
    over: float = 0.0
    ready: list[tuple[float, bool]] = field(default_factory=list)
    not_ready: dict[str, int] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    recovered: bool = True


class Chaos:
    """One run against one gateway.

    Args:
        say: told what is being done.
        admin_key: of the gateway.
    """

    def __init__(
        self, gateway: OwnGateway, callers: Callers, say: Callable[[str], None], *, admin_key: str = ""
    ) -> None:
        self.gateway, self.callers, self.say, self._admin_key = gateway, callers, say, admin_key
        self.blows: list[Blow] = []
        self.capacity = 0.0
        self._ready: list[tuple[float, bool]] = []
        self._said: Counter[str] = Counter()
        self._struck: int | None = None

    async def run(self) -> None:
        """All blows in turn; the last one stops the gateway."""
        self.say(f"asks {len(self.callers.asks)} texts twice, for the right answers")
        await self.callers.learn()
        self.capacity = await self.callers.capacity(16, CAPACITY_SECONDS, FLOOD_TEXTS)
        self.say(f"the gateway answers {self.capacity:.0f} texts/s")
        async with self._traffic():
            if self.gateway.triton():
                await self._blow("Triton is killed", lambda: self._signal(signal.SIGKILL), self._other_triton)
                await self._blow("Triton hangs", lambda: self._signal(signal.SIGSTOP), self._other_triton)
                await self._blow("Triton is told to end", lambda: self._signal(signal.SIGTERM), self._other_triton)
                await self._blow(MODELS, self._kill_stubs, self._ready_now)
                self.blows[-1].notes["triton_ended"] = self.gateway.triton() != self._struck
                await self._blow(TWICE, self._kill_twice, self._other_triton)
            await self._blow(SWAPPED, self._swap, self._ready_now)
            await self._blow(FLOODED, self._flood, self._ready_now)
            await self._blow("callers hang up", self._hang_up, self._nobody_is_left)
            await self._blow(STOPPED, self._stop, None)

    async def full_disk(self) -> None:
        """The one blow for a gateway whose disk is full; it stops the gateway."""
        async with self._traffic():
            strike = (lambda: self._signal(signal.SIGKILL)) if self.gateway.triton() else self._nothing
            await self._blow(FULL, strike, self._other_triton if self.gateway.triton() else self._ready_now)
        self.blows[-1].notes |= await self._stop()

    @contextlib.asynccontextmanager
    async def _traffic(self) -> AsyncIterator[None]:
        until = asyncio.Event()
        watch = asyncio.create_task(self._watch())
        steady = asyncio.create_task(self.callers.steady(USERS, PAUSE, NEWCOMERS, until))
        try:
            yield
        finally:
            until.set()
            watch.cancel()
            await asyncio.gather(watch, steady, return_exceptions=True)

    async def _watch(self) -> None:
        """Looks at readiness all the time."""
        async with self.callers.session() as session:
            while True:
                ready, said = False, ""
                try:
                    async with session.get(f"{self.callers.host}/health/ready") as response:
                        ready, said = response.status == 200, await response.text()
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    said = type(error).__name__
                self._said[said[:200]] += not ready
                self._ready.append((time.monotonic(), ready))
                await asyncio.sleep(LOOK)

    async def _blow(
        self,
        name: str,
        strike: Callable[[], Awaitable[dict[str, Any]]],
        healed: Callable[[], Awaitable[bool]] | None,
    ) -> None:
        await asyncio.sleep(CALM)
        first = len(self._ready)
        self._said.clear()
        blow = Blow(name, time.monotonic())
        blow.notes = await strike()
        blow.over = time.monotonic()
        if healed is not None:
            # An outage must have had the time to show.
            await asyncio.sleep(0.5)
            deadline = time.monotonic() + RECOVERY
            while not (good := await healed() and self._answered_since(blow.over)) and time.monotonic() < deadline:
                await asyncio.sleep(LOOK)
            blow.recovered = good
            await asyncio.sleep(CALM)
        end = time.monotonic()
        blow.ready = self._ready[first:]
        blow.not_ready = {said: count for said, count in self._said.most_common(3) if count}
        blow.outcomes = [one for one in self.callers.outcomes if one.end >= blow.at and one.start <= end]
        self.blows.append(blow)
        self.say(f"{name}: {len(blow.outcomes)} requests, {sum(one.status == 200 for one in blow.outcomes)} answered")

    def _answered_since(self, moment: float) -> bool:
        """Whether all is as before: those who came after this moment are answered, and nobody waits from before it."""
        if any(start <= moment for start in self.callers.under_way):
            return False
        return any(one.start > moment and one.status == 200 for one in reversed(self.callers.outcomes))

    async def _ready_now(self) -> bool:
        return bool(self._ready) and self._ready[-1][1]

    async def _other_triton(self) -> bool:
        found = self.gateway.triton()
        return found is not None and found != self._struck and await self._ready_now()

    async def _nothing(self) -> dict[str, Any]:
        return {}

    async def _signal(self, number: int) -> dict[str, Any]:
        self._struck = self.gateway.triton()
        if self._struck:
            os.kill(self._struck, number)
        return {"signal": signal.Signals(number).name}

    async def _kill_stubs(self) -> dict[str, Any]:
        self._struck, stubs = self.gateway.triton(), self.gateway.stubs()
        for pid in stubs:
            os.kill(pid, signal.SIGKILL)
        return {"stubs": len(stubs)}

    async def _kill_twice(self) -> dict[str, Any]:
        """Once more as soon as it is back, so that some of what is asked again is hit a second time."""
        await self._signal(signal.SIGKILL)
        first, deadline = self._struck, time.monotonic() + RECOVERY
        while time.monotonic() < deadline:
            if self.gateway.triton() not in (None, first) and await self._ready_now():
                break
            await asyncio.sleep(LOOK / 5)
        return await self._signal(signal.SIGKILL)

    async def _flood(self) -> dict[str, Any]:
        rate = max(2.0, FLOOD * self.capacity / FLOOD_TEXTS)
        begun = time.monotonic()
        found = await self.callers.open_loop(rate, FLOOD_SECONDS, FLOOD_TEXTS)
        sent = max(one.start for one in found) - begun
        return {
            "texts_per_second_wanted": round(rate * FLOOD_TEXTS, 1),
            "texts_per_second_sent": round(len(found) * FLOOD_TEXTS / max(sent, 0.001), 1),
            "requests": len(found),
            "answered": sum(one.status == 200 for one in found),
            "refused": sum(one.refused for one in found),
        }

    async def _swap(self) -> dict[str, Any]:
        """Another version is loaded, serves, goes back into the second row, and is unloaded."""
        base = f"{self.callers.host}/v1/admin/models/{self.callers.model}"
        statuses: dict[str, list[int]] = {}
        steps = (f"/versions/{KEPT}:load", f"/versions/{KEPT}:promote", ":rollback", f"/versions/{KEPT}:unload")
        async with self.callers.session() as session:
            for step in steps * SWAPS:
                headers = {"Authorization": f"Bearer {self._admin_key}"}
                async with session.post(base + step, headers=headers) as response:
                    statuses.setdefault(step, []).append(response.status)
                    if response.status != 200:
                        self.say(f"{step}: {(await response.text())[:300]}")
                await asyncio.sleep(0.5)
        return {"statuses": statuses}

    async def _hang_up(self) -> dict[str, Any]:
        """Callers that leave: before the body is whole, and while they should be waiting for the answer."""
        dice = random.Random(f"{self.callers.seed}/hang-up")
        address = urlsplit(self.callers.host)
        path = urlsplit(self.callers.url).path
        for number in range(HANG_UPS):
            places = [dice.randrange(len(self.callers.asks)) for _ in range(FLOOD_TEXTS)]
            body = body_of([self.callers.asks[place] for place in places])
            head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(head + (body[: len(body) // 2] if number % 2 else body))
            await writer.drain()
            await asyncio.sleep(dice.random() * 0.02)
            writer.transport.abort()
        return {"hang_ups": HANG_UPS}

    async def _nobody_is_left(self) -> bool:
        """Whether nothing is left of those who hung up: only the steady callers and this very look."""
        async with self.callers.session() as session, session.get(f"{self.callers.host}/metrics") as response:
            text = await response.text()
        lines = [line for line in text.splitlines() if line.startswith("slipway_requests_in_flight ")]
        return bool(lines) and float(lines[0].split()[1]) <= USERS + NEWCOMERS

    async def _stop(self) -> dict[str, Any]:
        self.gateway.terminate()
        deadline = time.monotonic() + RECOVERY
        while self.gateway.status is None and time.monotonic() < deadline:
            await asyncio.sleep(LOOK)
        return {"exit_status": self.gateway.status}
