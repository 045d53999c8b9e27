"""How much work is let in, and on what terms: the bound of each model, in tokens.

A request is admitted when its tokens fit under the bound, and counts until the engine has computed them or nobody wants
them any more. Beyond the bound it is refused at once, since a queue that only grows serves nobody in time (SEDA: Welsh,
Culler and Brewer 2001): `Overloaded`, with the seconds after which the work that is there now will be done, at the rate
at which the engine was seen to do it. The bound is lower than what the settings say where the engine would take too
long for so much: where requests share the engine evenly, one of the usual size takes twice as long as what is admitted,
so that may be `IN_TIME` of the time that requests have. What could not be answered before its deadline even if nothing
else came is refused too. `bulk` work gets half of the bound at most, and no request counts for more than half, so that
neither a stream nor a novel shuts the door on others. In what order the admitted work is done is `serving.turns`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from bundle.errors import ClientGone, Overloaded
from serving.keys import Caller
from serving.turns import Clock, Flow, Priority, Turns, Waiting

# Seconds: whoever gives a request more time than this gives it all the time.
_FOREVER = 86_400.0
# How much the newest request counts in what is taken for usual.
_NEWEST = 0.1
# The share of the requests' time in which the engine could do what is admitted.
IN_TIME = 0.4
# So many requests of the usual size are let in whatever the engine's pace is: it must not idle for a wrong one.
AT_LEAST = 2
# Seconds: more is not told to anybody, since nobody knows what is then.
MOST_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a request is answered.

    Attributes:
        seconds: that it may take, from ``begun`` on.
        begun: on the clock of `time.monotonic`.
        caller: whose key it came with; None where none is needed.
        patient: waits for room instead of being refused, as long as the caller holds the connection; the seconds count
            from then on.
        gone: returns when the client has gone away; None where that cannot be seen.
    """

    seconds: float
    priority: Priority = "interactive"
    begun: float = field(default_factory=time.monotonic)
    caller: Caller | None = None
    patient: bool = False
    gone: Callable[[], Awaitable[None]] | None = None

    @property
    def left(self) -> float:
        """Seconds that are left; of a patient request all."""
        return self.seconds if self.patient else self.begun + self.seconds - time.monotonic()


# What the door knows of the request that is being answered; whoever answers reads it, so that no dialect can forget it.
TERMS: ContextVar[Terms | None] = ContextVar("terms", default=None)


class Ticket:
    """An admitted request: what it still counts for, and its turns at the engine. Must be closed."""

    def __init__(self, lane: Lane, flow: Flow, priority: Priority, tokens: int, terms: Terms) -> None:
        self._lane, self._flow, self._priority, self._terms = lane, flow, priority, terms
        self._left = tokens
        self._waiting: set[Waiting] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._gone = False

    async def turn(self, tokens: int, deadline: float) -> float:
        """Waits for a call's turn at the engine; `done` must follow.

        Args:
            tokens: of the call's windows.
            deadline: on the clock; a call whose deadline has passed is not started.

        Returns:
            seconds that it waited.

        Raises:
            TimeoutError: the deadline passed.
            ClientGone: nobody wants the answer any more.
        """
        turns = self._lane.turns
        if self._gone:
            raise ClientGone
        if turns.at_once(self._flow, self._priority, tokens):
            return 0.0
        self.watch()
        begun = time.monotonic()
        call = turns.wait(self._flow, self._priority, tokens, deadline)
        self._waiting.add(call)
        try:
            await turns.until(call)
        finally:
            self._waiting.discard(call)
        return time.monotonic() - begun

    def done(self, tokens: int, seconds: float, *, computed: bool) -> None:
        """Ends a call's turn, which took so many seconds; what the engine has computed no longer counts."""
        if computed:
            self._count(self._left - tokens)
        self._lane.turns.leave(tokens, tokens if computed else 0, seconds)

    def watch(self) -> None:
        """Looks from now on whether the client is still there; what waits is dropped when it goes."""
        if self._watcher is None and self._terms.gone is not None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch(self._terms.gone))

    async def _watch(self, gone: Callable[[], Awaitable[None]]) -> None:
        await gone()
        self._gone = True
        for call in self._waiting:
            if not call.turn.done():
                call.turn.set_exception(ClientGone())

    def close(self) -> None:
        """Nothing of it counts any more."""
        self._count(0)
        if self._watcher is not None:
            self._watcher.cancel()

    def _count(self, left: int) -> None:
        left = max(0, left)
        lane, freed = self._lane, self._lane.charge(self._left) - self._lane.charge(left)
        self._flow.left -= self._left - left
        self._left = left
        if not self._flow.left:
            lane.flows[self._priority].discard(self._flow)
        if freed:
            lane.admitted[self._priority] -= freed
            lane.let_in()


class Lane:
    """The admission of one model.

    Args:
        name: of the model, for what is told.
        most: tokens that may be admitted at a time.
        at_engine: tokens that the engine has use for at a time.

    Attributes:
        admitted: tokens that count now, by class.
        flows: those with admitted work.
    """

    def __init__(self, name: str, most: int, at_engine: int, clock: Clock = time.monotonic) -> None:
        self.name, self.most, self._clock = name, most, clock
        self.turns = Turns(at_engine, clock)
        self.admitted: dict[Priority, int] = {"interactive": 0, "bulk": 0}
        self.flows: dict[Priority, set[Flow]] = {"interactive": set(), "bulk": set()}
        self._of_callers: dict[tuple[str, Priority], Flow] = {}
        self._patient: dict[Priority, deque[tuple[int, asyncio.Future[None]]]] = {
            "interactive": deque(),
            "bulk": deque(),
        }
        # Of the requests that were let in: tokens that they count for, and seconds that they have.
        self._usual = self._seconds = 0.0

    @property
    def bound(self) -> int:
        """Tokens that may be admitted now."""
        if not (rate := self.turns.drain.rate):
            return self.most
        return min(self.most, max(int(AT_LEAST * self._usual), int(rate * IN_TIME * self._seconds)))

    @property
    def tokens(self) -> int:
        """Tokens that count now."""
        return sum(self.admitted.values())

    def charge(self, tokens: int) -> int:
        """What so many tokens of one request count for."""
        return min(tokens, self.most // 2)

    def check(self, terms: Terms) -> None:
        """Refuses at the door, before a body is read or a text is tokenized, what `admit` would refuse of usual size.

        Raises:
            Overloaded: it would.
        """
        if self.tokens:
            usual = int(self._usual)
            if not self._fits(usual, terms.priority):
                raise self._full(usual, terms.priority)
            self._check_deadline(usual, terms, None)

    async def admit(self, tokens: int, terms: Terms) -> Ticket:
        """Lets a request in.

        Args:
            tokens: of all its windows, as the model reads them.

        Raises:
            Overloaded: it does not fit, or could not be answered in time.
        """
        priority, charge = terms.priority, self.charge(tokens)
        flow = self._flow(terms)
        if terms.patient:
            await self._room(charge, priority)
        elif self._patient[priority] or not self._fits(charge, priority):
            raise self._full(charge, priority)
        else:
            self._check_deadline(tokens, terms, flow)
            self.admitted[priority] += charge
        weight = _NEWEST if self._usual else 1.0
        self._usual += weight * (charge - self._usual)
        self._seconds += weight * (min(terms.seconds, _FOREVER) - self._seconds)
        return self._ticket(flow, priority, tokens, terms)

    def let_in(self) -> None:
        """Room was made: lets in who waited for it, first come first served."""
        for priority, line in self._patient.items():
            while line and (line[0][1].done() or self._fits(line[0][0], priority)):
                charge, room = line.popleft()
                if not room.done():
                    self.admitted[priority] += charge
                    room.set_result(None)

    def retry_after(self, tokens: int | None = None) -> float:
        """Seconds until so many tokens, by default those admitted now, will be computed; 1 where no rate is known."""
        tokens = self.tokens if tokens is None else tokens
        rate = self.turns.drain.rate
        return min(MOST_RETRY_SECONDS, tokens / rate) if rate else 1.0

    def _ticket(self, flow: Flow, priority: Priority, tokens: int, terms: Terms) -> Ticket:
        flow.left += tokens
        self.flows[priority].add(flow)
        return Ticket(self, flow, priority, tokens, terms)

    def _fits(self, charge: int, priority: Priority) -> bool:
        # Whoever is alone in a class is let in whatever the engine's pace is; a pace is seen only of what is let in.
        bound = self.bound if self.admitted[priority] else self.most
        if priority == "bulk" and self.admitted["bulk"] + charge > bound // 2:
            return False
        return self.tokens + charge <= bound

    def _full(self, charge: int, priority: Priority) -> Overloaded:
        there, limit, what = self.tokens, self.bound, "tokens"
        if priority == "bulk" and self.admitted["bulk"] + charge > self.bound // 2:
            there, limit, what = self.admitted["bulk"], self.bound // 2, "tokens of bulk work"
        return Overloaded(self.name, f"{there:,} {what} are admitted, the limit is {limit:,}", self.retry_after())

    async def _room(self, charge: int, priority: Priority) -> None:
        """Takes room, and waits for it where there is none."""
        line = self._patient[priority]
        if not line and self._fits(charge, priority):
            self.admitted[priority] += charge
            return
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append((charge, room))
        try:
            await room
        except asyncio.CancelledError:
            if not room.cancelled():  # it was given, and at the same time the one who waited for it went
                self.admitted[priority] -= charge
            self.let_in()
            raise

    def _flow(self, terms: Terms) -> Flow:
        if terms.caller is None:
            return Flow()
        return self._of_callers.setdefault((terms.caller.name, terms.priority), Flow())

    def _check_deadline(self, tokens: int, terms: Terms, own: Flow | None) -> None:
        """Refuses what would be late even if nothing else came: processor sharing, at the rate seen last."""
        rate, has = self.turns.drain.rate, terms.left
        if not rate or not self.admitted[terms.priority] or (self.tokens + tokens) / rate <= has:
            return
        # Until this request is done, every other flow of its class gets as much as this one, or all it wants.
        ahead = tokens + sum(min(flow.left, tokens) for flow in self.flows[terms.priority] if flow is not own)
        if ahead / rate > has:
            sentence = f"an answer would take {ahead / rate:.1f} s, and the request has {max(0.0, has):.1f} s"
            raise Overloaded(self.name, sentence, min(MOST_RETRY_SECONDS, ahead / rate - has), reason="late")


class Admission:
    """The lanes of all models.

    Args:
        most: tokens that may be admitted for each model.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.lanes: dict[str, Lane] = {}

    def lane(self, name: str, at_engine: int) -> Lane:
        """The lane of a model.

        Args:
            at_engine: tokens that the engine has use for at a time; of the version that is asked now.
        """
        lane = self.lanes.get(name)
        if lane is None:
            lane = self.lanes[name] = Lane(name, self._most, at_engine)
        lane.turns.most = at_engine
        return lane

    def check(self, name: str, terms: Terms) -> None:
        """Raises `Overloaded` where a usual request for the model would not be let in; see `Lane.check`."""
        if lane := self.lanes.get(name):
            lane.check(terms)
