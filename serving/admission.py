"""How much work is let in, and on what terms: the bound of each model, in tokens.

A request is admitted while what is admitted is less than the bound, and counts until the engine has computed it or
nobody wants it any more. At the bound it is refused at once, since a queue that only grows serves nobody in time (SEDA:
Welsh, Culler and Brewer 2001): `Overloaded`, with the seconds after which the work that is there now will be done, at
the rate at which the engine was seen to do it.

Its own size does not matter: where a request must fit into what is left, small ones fill every gap and large ones are
never let in. So the last one may go beyond the bound, and the next ones wait until that is worked off. Nor does it
matter how long a request takes to be read: a place is kept for it from the door on, before anything is known of it.

The bound is lower than what the settings say where the engine would take too long for so much: it may have to work for
`IN_TIME` of the time that requests have. What could not be answered before its deadline even if nothing else came is
refused too. `bulk` work is let in up to half of the bound, and no request counts for more than half, so that neither a
stream nor a novel shuts the door on others for long. In what order the admitted work is done is `serving.turns`.
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
# How much the newest request counts in what is taken for usual: sizes differ a thousandfold, so a mean needs many.
_NEWEST = 0.02
# The share of the requests' time in which the engine could do what is admitted. Requests of several calls share the
# engine evenly and take about twice as long; the other half of their time is for a pace that drops meanwhile.
IN_TIME = 0.25
# A request has so many shares of the engine at most, however large it is.
MOST_SHARES = 16.0
# Seconds for which a place is kept for a request that is being read: who sends slowly does not keep others out.
CLAIM_SECONDS = 1.0
# So many requests of the usual size are let in whatever the engine's pace is: it must not idle for a wrong one.
AT_LEAST = 2
# Seconds: more is not told to anybody, since nobody knows what is then.
MOST_RETRY_SECONDS = 60.0


class Claim:
    """A place that is kept for a request between the door and its admission; empty until `Lane.check` gives one."""

    __slots__ = ("lane", "priority", "until")

    def __init__(self) -> None:
        self.lane: Lane | None = None
        self.priority: Priority = "interactive"
        self.until = 0.0

    def give_up(self) -> bool:
        """Ends it; whether there was one. May be called again."""
        lane, self.lane = self.lane, None
        if lane is None:
            return False
        lane.claimed[self.priority] -= 1
        return True


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
        claim: the place that is kept for the request until it is admitted.
    """

    seconds: float
    priority: Priority = "interactive"
    begun: float = field(default_factory=time.monotonic)
    caller: Caller | None = None
    patient: bool = False
    gone: Callable[[], Awaitable[None]] | None = None
    claim: Claim = field(default_factory=Claim, compare=False)

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
        claimed: places that are kept for requests of which nothing is known yet.
        flows: those with admitted work.
    """

    def __init__(self, name: str, most: int, at_engine: int, clock: Clock = time.monotonic) -> None:
        self.name, self.most, self._clock = name, most, clock
        self.turns = Turns(at_engine, clock)
        self.admitted: dict[Priority, int] = {"interactive": 0, "bulk": 0}
        self.claimed: dict[Priority, int] = {"interactive": 0, "bulk": 0}
        self.flows: dict[Priority, set[Flow]] = {"interactive": set(), "bulk": set()}
        self._of_callers: dict[tuple[str, Priority], Flow] = {}
        self._patient: dict[Priority, deque[tuple[int, asyncio.Future[None]]]] = {
            "interactive": deque(),
            "bulk": deque(),
        }
        self._claims: deque[Claim] = deque()
        # Of the requests that were let in: how many, tokens that they count for, and seconds that they have.
        self._let_in, self._usual, self._seconds = 0, 0.0, 0.0

    @property
    def bound(self) -> int:
        """Tokens that may be admitted now."""
        if not (rate := self.turns.drain.rate):
            return self.most
        return min(self.most, max(int(AT_LEAST * self._usual), int(rate * IN_TIME * self._seconds)))

    @property
    def tokens(self) -> int:
        """Tokens that count now."""
        return self.admitted["interactive"] + self.admitted["bulk"]

    def charge(self, tokens: int) -> int:
        """What so many tokens of one request count for."""
        return min(tokens, self.most // 2)

    def check(self, terms: Terms) -> None:
        """Lets a request through the door, before its body is read and its size is known, and keeps a place for it.

        Raises:
            Overloaded: there is no room, or one of the usual size would be late.
        """
        if terms.claim.lane is self:
            return
        self._check_room(terms.priority)
        self._check_deadline(int(self._usual), terms, None)
        claim = terms.claim
        claim.lane, claim.priority, claim.until = self, terms.priority, self._clock() + CLAIM_SECONDS
        self.claimed[terms.priority] += 1
        self._claims.append(claim)

    def full(self, priority: Priority) -> Overloaded | None:
        """What `check` would refuse a request with for want of room; None where there is room. Keeps no place."""
        try:
            self._check_room(priority)
        except Overloaded as refusal:
            return refusal
        return None

    async def admit(self, tokens: int, terms: Terms) -> Ticket:
        """Lets a request in.

        Args:
            tokens: of all its windows, as the model reads them.

        Raises:
            Overloaded: there is no room and none was kept for it, or it could not be answered in time.
        """
        priority, charge = terms.priority, self.charge(tokens)
        self._drop_old_claims()
        claimed = terms.claim.give_up()
        flow = self._flow(tokens, terms)
        if terms.patient:
            await self._room(charge, priority)
        else:
            self._check_room(priority, claimed=claimed)
            self._check_deadline(tokens, terms, flow)
            self.admitted[priority] += charge
        self._let_in += 1
        weight = max(_NEWEST, 1 / self._let_in)
        self._usual += weight * (charge - self._usual)
        self._seconds += weight * (min(terms.seconds, _FOREVER) - self._seconds)
        return self._ticket(flow, priority, tokens, terms)

    def let_in(self) -> None:
        """Room was made: lets in who waited for it, first come first served."""
        for priority, line in self._patient.items():
            while line and (line[0][1].done() or self._has_room(priority, self.admitted)):
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

    def _has_room(self, priority: Priority, there: dict[Priority, int]) -> bool:
        """Whether one more may come to so many tokens, whatever its size."""
        # Whoever is alone in a class is let in whatever the engine's pace is; a pace is seen only of what is let in.
        if not there[priority]:
            return self.tokens < self._most_of_all
        bound = self.bound
        return there["interactive"] + there["bulk"] < bound and (priority != "bulk" or there["bulk"] < bound // 2)

    @property
    def _most_of_all(self) -> int:
        """Tokens at which even who has a place is refused: with one request more, twice what the settings say."""
        return self.most + self.most // 2

    def _check_room(self, priority: Priority, *, claimed: bool = False) -> None:
        """Refuses where there is no room, or others wait for it.

        Args:
            claimed: whether it had a place; it was let in when that was given, without a look at its size.
        """
        if claimed:
            room = self.tokens < self._most_of_all
        else:
            self._drop_old_claims()
            there = self.admitted
            if self._claims:
                there = {kind: there[kind] + int(count * self._usual) for kind, count in self.claimed.items()}
            room = not self._patient[priority] and self._has_room(priority, there)
        if not room:
            raise self._full(priority)

    def _drop_old_claims(self) -> None:
        now, claims = self._clock(), self._claims
        while claims and (claims[0].lane is not self or claims[0].until <= now):
            claim = claims.popleft()
            if claim.lane is self:
                claim.give_up()

    def _full(self, priority: Priority) -> Overloaded:
        there, limit, what = self.tokens, self.bound, "tokens"
        if priority == "bulk" and self.admitted["bulk"] >= limit // 2:
            there, limit, what = self.admitted["bulk"], limit // 2, "tokens of bulk work"
        return Overloaded(self.name, f"{there:,} {what} are admitted, the limit is {limit:,}", self.retry_after())

    async def _room(self, charge: int, priority: Priority) -> None:
        """Takes room, and waits for it where there is none."""
        line = self._patient[priority]
        if not line and self._has_room(priority, self.admitted):
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

    def _flow(self, tokens: int, terms: Terms) -> Flow:
        """Whose turns the request takes: its key's, or its own where there are none.

        Such a request has a share of the engine for each usual size that it has, so that all who are larger than usual
        take as long as each other.
        """
        if terms.caller is None:
            shares = tokens / self._usual if self._usual else 1.0
            return Flow(min(MOST_SHARES, max(1.0, shares)))
        return self._of_callers.setdefault((terms.caller.name, terms.priority), Flow())

    def _check_deadline(self, tokens: int, terms: Terms, own: Flow | None) -> None:
        """Refuses what would be late even if nothing else came: processor sharing, at the rate seen last."""
        rate, has = self.turns.drain.rate, terms.left
        if not rate or not self.admitted[terms.priority] or (self.tokens + tokens) / rate <= has:
            return
        # Until this request is done, every other flow of its class gets what its shares give it, or all it wants.
        each = tokens / (own.weight if own else 1.0)
        flows = self.flows[terms.priority]
        ahead = tokens + sum(min(flow.left, each * flow.weight) for flow in flows if flow is not own)
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
        """Keeps a place for a request for the model, or raises `Overloaded`; see `Lane.check`."""
        if lane := self.lanes.get(name):
            lane.check(terms)
