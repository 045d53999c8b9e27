"""Ten times more than the engine can do, in simulated time: what is let in is what is offered, and it is in time.

Scheduler and admission are real; the engine computes so many tokens a second, and what is sent is drawn with a seed.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable

import pytest

from serving.admission import Lane, Terms
from tests.serving.test_turns import Clock, Request, settle

# Tokens per second of the engine, computations at a time, tokens of a window.
PACE, SESSIONS, WINDOW = 6000.0, 2, 128
# Seconds that an answer may take; of the flood; and of its beginning, in which large texts are not done yet.
DEADLINE, SPAN, WARMUP = 10.0, 45.0, 15.0


def text(dice: random.Random) -> tuple[str, list[int]]:
    """Kind and windows of a text: seven of ten are a sentence, the others articles with a long tail."""
    if dice.random() < 0.7:
        return "short", [dice.randint(10, 50)]
    tokens = min(5000, int(dice.lognormvariate(6.5, 0.8)) + 50)
    windows = [WINDOW] * (tokens // WINDOW)
    return "long" if tokens < 1500 else "very long", [*windows, tokens % WINDOW + 2]


class Flood:
    """Requests that come whether or not others are answered.

    Attributes:
        offered, good: requests and tokens after the warm-up, by kind; ``good`` were answered within the deadline.
    """

    def __init__(self, lane: Lane, clock: Clock, rate: float, pace: Callable[[float], float]) -> None:
        self.lane, self.clock, self._pace = lane, clock, pace
        self.offered, self.good, self.tokens = Counter[str](), Counter[str](), 0
        self._dice, self._numbers = random.Random(7), itertools.count()
        self._events: list[tuple[float, int, asyncio.Future[bool] | None]] = []
        self._queue: deque[tuple[asyncio.Future[bool], int]] = deque()
        self._busy = 0
        self._open: list[tuple[str, float, Request]] = []
        at = 0.0
        while (at := at + self._dice.expovariate(rate)) < SPAN:
            self._at(at, None)

    async def play(self) -> None:
        seen: set[asyncio.Future[bool]] = set()
        while self._events:
            self.clock.now, _, ended = heapq.heappop(self._events)
            if ended is None:
                self._come()
            else:
                self._busy -= 1
                if not ended.done():
                    ended.set_result(True)
            for _ in range(6):
                await asyncio.sleep(0)
            self._look()
            for _, _, request in self._open:
                new = [(call, tokens) for call, tokens in request.at_engine.items() if call not in seen]
                seen.update(call for call, _ in new)
                self._queue.extend(new)
            self._compute()
        await settle()

    def _at(self, when: float, ended: asyncio.Future[bool] | None) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), ended))

    def _come(self) -> None:
        kind, windows = text(self._dice)
        self._open.append((kind, self.clock.now, Request(self.lane, Terms(DEADLINE), windows, parallel=4)))
        self.offered[kind] += self.clock.now > WARMUP

    def _look(self) -> None:
        still = []
        for kind, begun, request in self._open:
            late = self.clock.now - begun > DEADLINE
            if not request.task.done():
                if late:
                    request.task.cancel()
                still.append((kind, begun, request))
            elif not request.task.cancelled() and request.task.result() == "answered" and not late:
                self.good[kind] += begun > WARMUP
                self.tokens += sum(request.calls) if WARMUP < self.clock.now < SPAN else 0
        self._open = still

    def _compute(self) -> None:
        while self._busy < SESSIONS and self._queue:
            call, tokens = self._queue.popleft()
            if not call.done():
                self._busy += 1
                self._at(self.clock.now + tokens * SESSIONS / PACE / self._pace(self.clock.now), call)


def flood(factor: float, pace: Callable[[float], float] = lambda now: 1.0) -> Flood:
    """Offers so many times what the engine can do."""
    dice = random.Random(3)
    usual = sum(sum(text(dice)[1]) for _ in range(5000)) / 5000

    async def play() -> Flood:
        clock = Clock()
        clock.now = 0.0
        lane = Lane("m", 131_072, 4 * WINDOW, clock)
        found = Flood(lane, clock, factor * PACE / usual, pace)
        await found.play()
        assert lane.tokens == lane.turns.at_engine == lane.turns.waiting == 0
        return found

    return asyncio.run(play())


@pytest.mark.slow
def test_long_texts_get_in_under_a_flood_of_short_ones_and_are_in_time() -> None:
    found = flood(10)
    assert found.tokens / (SPAN - WARMUP) > 0.9 * PACE
    share = {kind: found.good[kind] / found.offered[kind] for kind in found.offered}
    assert share["long"] > 0.75 * share["short"], share
    assert share["very long"] > 0.6 * share["short"], share


@pytest.mark.slow
def test_who_was_let_in_is_in_time_even_when_the_engine_gets_slower_meanwhile() -> None:
    found = flood(10, lambda now: 0.6 if now > 25 else 1.0)
    assert found.tokens > 0.85 * PACE * ((25 - WARMUP) + 0.6 * (SPAN - 25))
