"""The order in which engine calls of one model go to the engine, and how fast the engine works them off.

No more tokens are at the engine at a time than it has use for; the others wait here, where the order is ours. It is
fair queueing by start times (Goyal, Vin and Cheng 1996, "Start-time Fair Queuing"), twice:

- Between the two classes, by weight: while both wait, `interactive` gets `WEIGHT` of every `WEIGHT` + 1 tokens and
  `bulk` the rest. So neither stands still, and whoever is alone gets everything.
- Within a class, between flows, by weight: a flow is a key, or a request where there are no keys. A request of a
  thousand windows has had much already when one of a single window comes, and lets it pass.

Everything happens on the event loop, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Priority = Literal["interactive", "bulk"]
Clock = Callable[[], float]

# Tokens of interactive calls for each token of bulk ones, while both wait.
WEIGHT = 9
# The drain rate is a mean over so many seconds of backlog, taken in steps of at least `STEP_SECONDS`.
MEMORY_SECONDS, STEP_SECONDS = 3.0, 0.25
# How much a call that was faster than the rate counts.
_FASTER = 0.2


class Flow:
    """Whose calls share one turn: a key, or a request.

    Attributes:
        finish: virtual time up to which it has been served.
        left: tokens that are admitted for it and not computed yet.
        weight: its shares of the engine: of two flows that always wait, one of twice the weight gets twice as much.
    """

    __slots__ = ("finish", "left", "weight")

    def __init__(self, weight: float = 1.0) -> None:
        self.finish, self.left, self.weight = 0.0, 0, weight


@dataclass(eq=False, slots=True)
class Waiting:
    """A call that waits for its turn; no longer in line once ``over``, and ``granted`` if its turn came."""

    own: _Class
    tokens: int
    deadline: float
    turn: asyncio.Future[None]
    granted: bool = False
    over: bool = False


@dataclass(eq=False, slots=True)
class _Class:
    """One class: its place among the classes, and its line.

    Attributes:
        tag: virtual time of the class among the two.
        now: virtual time within the class.
        line: (start, number, call), a heap; calls that are over stay in it until they come up.
        live: calls in the line that are not over.
    """

    weight: float
    tag: float = 0.0
    now: float = 0.0
    line: list[tuple[float, int, Waiting]] = field(default_factory=list)
    live: int = 0


class Drain:
    """Tokens per second that the engine computes while more is waiting: the rate at which a queue gets shorter.

    A call that was given up tells nothing, though it took time. A call that was faster by itself than the rate says
    proves that the rate is higher, so that one which was measured in a bad moment does not stay.
    """

    def __init__(self, clock: Clock) -> None:
        self.rate = 0.0
        self._clock, self._tokens, self._seconds = clock, 0, 0.0
        self._since: float | None = None

    def backlog(self, waiting: bool) -> None:
        """Told whenever calls begin to wait, or none waits any more."""
        if not waiting:
            self._since = None
        elif self._since is None:
            self._since = self._clock()

    def left(self, tokens: int, seconds: float) -> None:
        """Told of every call that leaves the engine.

        Args:
            tokens: that it has computed; 0 of a call that was given up.
            seconds: that the call was there.
        """
        now = self._clock()
        if self.rate and tokens > seconds * self.rate:
            self.rate += _FASTER * (tokens / seconds - self.rate) if seconds else 0.0
        if self._since is None:
            return
        if tokens:
            self._tokens, self._seconds = self._tokens + tokens, self._seconds + now - self._since
        self._since = now
        if self._seconds >= STEP_SECONDS:
            measured = self._tokens / self._seconds
            share = 1 - math.exp(-self._seconds / MEMORY_SECONDS) if self.rate else 1.0
            self.rate += share * (measured - self.rate)
            self._tokens, self._seconds = 0, 0.0


class Turns:
    """The turns of one model's calls.

    Args:
        most: tokens at the engine at a time. A call that is larger goes when nothing else is there.
    """

    def __init__(self, most: int, clock: Clock = time.monotonic) -> None:
        self.most, self._clock = most, clock
        self.at_engine = 0
        self.drain = Drain(clock)
        self._now = 0.0
        self._numbers = itertools.count()
        self._classes: dict[Priority, _Class] = {"interactive": _Class(WEIGHT), "bulk": _Class(1)}

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return sum(item.live for item in self._classes.values())

    def at_once(self, flow: Flow, priority: Priority, tokens: int) -> bool:
        """Takes a turn without waiting, if it can be had."""
        interactive, bulk = self._classes.values()
        if interactive.live or bulk.live or not self._fits(tokens):
            return False
        own = interactive if priority == "interactive" else bulk
        own.tag = max(own.tag, self._now)
        self._serve(own, self._start(own, flow, tokens), tokens)
        return True

    def wait(self, flow: Flow, priority: Priority, tokens: int, deadline: float) -> Waiting:
        """Stands in line; give what comes back to `until`.

        Args:
            deadline: on the clock; a turn that comes later is not given.
        """
        own = self._classes[priority]
        if not own.live:
            # Who comes after a pause has no claim on the time in which it asked for nothing.
            own.tag = max(own.tag, self._now)
        call = Waiting(own, tokens, deadline, asyncio.get_running_loop().create_future())
        heapq.heappush(own.line, (self._start(own, flow, tokens), next(self._numbers), call))
        own.live += 1
        self.drain.backlog(True)
        self._go_on()
        return call

    async def until(self, call: Waiting) -> None:
        """Returns when the call's turn has come; from then on `leave` must be called once.

        Raises:
            TimeoutError: its deadline passed first.
        """
        try:
            await call.turn
        except BaseException:
            if call.granted:  # the turn came, and at the same time the one who waited for it went
                self.leave(call.tokens)
            else:
                self._drop(call)
            raise

    def leave(self, tokens: int, computed: int = 0, seconds: float = 0.0) -> None:
        """Ends a turn.

        Args:
            tokens: of the call.
            computed: how many of them the engine has answered: all, or none.
            seconds: that the turn took.
        """
        self.at_engine -= tokens
        self.drain.left(computed, seconds)
        self._go_on()

    def _fits(self, tokens: int) -> bool:
        return not self.at_engine or self.at_engine + tokens <= self.most

    def _start(self, own: _Class, flow: Flow, tokens: int) -> float:
        start = max(own.now, flow.finish)
        flow.finish = start + tokens / flow.weight
        return start

    def _serve(self, own: _Class, start: float, tokens: int) -> None:
        own.now, self._now = start, own.tag
        own.tag += tokens / own.weight
        self.at_engine += tokens

    def _go_on(self) -> None:
        """Gives turns as long as there is room."""
        now = self._clock()
        interactive, bulk = self._classes.values()
        while interactive.live or bulk.live:
            own = bulk if bulk.live and (not interactive.live or bulk.tag < interactive.tag) else interactive
            start, _, call = own.line[0]
            if call.over:
                heapq.heappop(own.line)
            elif call.turn.done():  # cancelled; its own task has not come to say so
                self._end(call)
            elif call.deadline <= now:
                self._end(call)
                call.turn.set_exception(TimeoutError())
            elif self._fits(call.tokens):
                self._end(call)
                self._serve(own, start, call.tokens)
                call.granted = True
                call.turn.set_result(None)
            else:
                return
        self.drain.backlog(False)

    def _end(self, call: Waiting) -> None:
        """Takes a call out of its line; its place in the heap goes when it comes up, or when there are too many."""
        own = call.own
        call.over = True
        own.live -= 1
        if len(own.line) > 2 * own.live + 64:
            own.line = [item for item in own.line if not item[2].over]
            heapq.heapify(own.line)

    def _drop(self, call: Waiting) -> None:
        if not call.over:
            self._end(call)
        self._go_on()
