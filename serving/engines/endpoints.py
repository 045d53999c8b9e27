"""Several servers for the same models: which one gets the next call, and who waits while none can.

A call goes to the server with the least work under way (least outstanding requests, as Envoy and HAProxy balance, but
counted in padded tokens, since calls differ in size by a hundred times). One that fails is put out and only its owner
lets it in again (passive and active outlier ejection, as in Envoy). Knows no protocol: what a call, a probe or a proof
is, the owner knows.

    out ── answers, and the golden rows agree ──▶ up ◀── answers again ── silent
     ▲                                            │ ── a probe is not answered ──▶ │
     └── refuses, or its process ended ───────────┴──── no answer for long ────────┘

Everything happens on one event loop, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Literal, TypeVar

log = logging.getLogger("slipway.endpoints")

T = TypeVar("T")


class Lost(Exception):
    """The server went away under a call, or failed to compute it: the same call may be asked again elsewhere."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


class Endpoint:
    """One server.

    Attributes:
        state: up takes calls; silent and out take none.
        why: why it takes none, as a sentence that may be told to callers.
        lacking: the models that it cannot answer for, and why, while it is up.
        work: padded tokens under way.
        heard: event-loop time of its last answer to anything.
        since: event-loop time of its last change of state.
    """

    def __init__(self, name: str, pool: Pool) -> None:
        self.name = name
        self.state: Literal["up", "silent", "out"] = "out"
        self.why = "Triton is starting"
        self.lacking: dict[str, str] = {}
        self.work = 0
        self.taken = 0
        self.heard = self.since = 0.0
        self._asked: dict[str, float] = {}
        self._pool = pool
        self._calls: set[asyncio.Task[Any]] = set()

    def up(self, lacking: dict[str, str] | None = None) -> None:
        """Takes calls from now on."""
        self.lacking = lacking or {}
        self._become("up", "")

    def lacks(self, model: str, why: str) -> None:
        """Takes no calls for this model until it is found to have it again."""
        self.lacking[model] = why
        self._pool.tell()

    def silent(self, why: str) -> None:
        """Takes no new calls; those under way may yet be answered."""
        self._become("silent", why)

    def out(self, why: str) -> None:
        """Takes no calls until `up`; those under way fail by themselves where the connection broke."""
        self._become("out", why)

    def asks(self, model: str) -> None:
        """A call for a model begins."""
        self._asked.setdefault(model, asyncio.get_running_loop().time())

    def hears(self, model: str) -> None:
        """A call for a model was answered, rightly or not."""
        self.heard = asyncio.get_running_loop().time()
        self._asked.pop(model, None)

    def unanswered(self, seconds: float) -> set[str]:
        """Models that were asked so long ago and answered nothing since; told once, then the time begins anew."""
        now = asyncio.get_running_loop().time()
        found = {model for model, asked in self._asked.items() if now - asked > seconds}
        for model in found:
            del self._asked[model]
        return found

    def drop(self) -> None:
        """Gives up the calls under way; each of them raises `Lost`."""
        for task in self._calls:
            task.cancel()

    async def run(self, work: int, call: Coroutine[Any, Any, T]) -> T:
        """Makes a call of so many padded tokens.

        Raises:
            Lost: it was dropped.
        """
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        self.work += work
        self.taken += 1
        try:
            return await task
        except asyncio.CancelledError:
            mine = asyncio.current_task()
            if mine is not None and mine.cancelling():
                raise
            raise Lost(self.why or "Triton went away") from None
        finally:
            self._calls.discard(task)
            self.work -= work

    def _become(self, state: Literal["up", "silent", "out"], why: str) -> None:
        if state == "out":
            self._asked.clear()
        if state != self.state:
            level = logging.INFO if state == "up" else logging.WARNING
            told = f": {why}; {len(self._calls)} calls are under way" if why else ""
            log.log(level, "%s is %s%s", self.name, state, told)
            self.since = asyncio.get_running_loop().time()
        self.state, self.why = state, why
        self._pool.tell()


class Pool:
    """The servers that can answer the same calls.

    Args:
        names: one for each server, for the log.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.endpoints = [Endpoint(name, self) for name in names]
        self._change = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """Nobody gets a server any more, and who waits for one does so no longer."""
        self._closed = True
        self.tell()

    def tell(self) -> None:
        """Wakes those who wait for a change."""
        self._change.set()
        self._change = asyncio.Event()

    def up(self, model: str) -> list[Endpoint]:
        """Those that can answer for a model now."""
        if self._closed:
            return []
        return [item for item in self.endpoints if item.state == "up" and model not in item.lacking]

    def why_not(self, model: str) -> str:
        """Why no server can answer for a model; empty when one can."""
        if self._closed:
            return "the server is stopping"
        if self.up(model):
            return ""
        reasons = [item.lacking.get(model, item.why) if item.state == "up" else item.why for item in self.endpoints]
        return "; ".join(dict.fromkeys(reasons))

    def pick(self, model: str, avoid: Endpoint | None = None) -> Endpoint | None:
        """The one with the least work under way, another than ``avoid`` where there is one; None when none is up."""
        able = self.up(model)
        others = [item for item in able if item is not avoid] or able
        # Idle ones take turns.
        return min(others, key=lambda item: (item.work, item.taken), default=None)

    async def wait(self, model: str, seconds: float, avoid: Endpoint | None = None) -> Endpoint | None:
        """As `pick`, but waits so long for a server to come back."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (found := self.pick(model, avoid)) is None and not self._closed and (left := deadline - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._change.wait()
            except TimeoutError:
                break
        return found
