"""The scheduler of engine calls against sums that anybody can check: bounds, fairness, and nothing left in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import ClientGone, Overloaded
from serving.admission import CLAIM_SECONDS, Admission, Lane, Terms
from serving.keys import Caller, Key
from serving.turns import WEIGHT, Flow, Priority, Turns
from tests.properties import cases

CLASSES: tuple[Priority, ...] = ("interactive", "bulk")
CALLERS = [Caller(Key(name=name, sha256=name * 64)) for name in "ab"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    """Lets everything that can go on go on."""
    for _ in range(12):
        await asyncio.sleep(0)


def run(play: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(play())  # type: ignore[arg-type]


class Request:
    """What the classifier does with a request, at an engine whose calls end when the test says so.

    Attributes:
        at_engine: tokens and end of each call that is being computed.
        left: tokens that are neither computed nor given up.
    """

    def __init__(self, lane: Lane, terms: Terms, calls: list[int], parallel: int) -> None:
        self.lane, self.terms, self.calls, self.parallel = lane, terms, list(calls), parallel
        self.charge = 0
        self.left, self.computed = sum(calls), 0
        self.admitted = False
        self.at_engine: dict[asyncio.Future[bool], int] = {}
        self.gone = asyncio.Event()
        self.task = asyncio.create_task(self._answer())

    async def _answer(self) -> str:
        try:
            ticket = await self.lane.admit(self.left, self.terms)
        except Overloaded:
            self.left = 0
            return "refused"
        self.admitted = True
        waiting = iter(self.calls)

        async def work() -> None:
            for tokens in waiting:
                await ticket.turn(tokens, float("inf"))
                begun = self.lane.turns._clock()
                end: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
                self.at_engine[end] = tokens
                computed = False
                try:
                    computed = await end
                    if not computed:
                        raise RuntimeError("the engine failed")
                finally:
                    del self.at_engine[end]
                    if computed:
                        self.left -= tokens
                        self.computed += tokens
                    ticket.done(tokens, self.lane.turns._clock() - begun, computed=computed)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.parallel):
                    group.create_task(work())
            return "answered"
        except BaseExceptionGroup as failures:
            return "gone" if isinstance(failures.exceptions[0], ClientGone) else "failed"
        finally:
            self.left = 0
            ticket.close()


arrival = st.tuples(
    st.just("come"),
    st.sampled_from(CLASSES),
    st.lists(st.integers(1, 40), min_size=1, max_size=9),
    st.sampled_from([None, 0, 1]),
    st.booleans(),
)
event = st.one_of(
    arrival,
    arrival,
    st.tuples(st.sampled_from(["cancel", "leave", "fail"]), st.integers(0, 50)),
    st.tuples(st.just("both"), st.integers(0, 50), st.integers(0, 50), st.integers(0, 4)),
    st.tuples(st.just("compute"), st.integers(0, 50)),
    st.tuples(st.just("compute"), st.integers(0, 50)),
    st.tuples(st.just("knock"), st.sampled_from(CLASSES)),
    st.tuples(st.just("turn back"), st.integers(0, 50)),
    st.tuples(st.just("step in"), st.integers(0, 50), st.lists(st.integers(1, 40), min_size=1, max_size=9)),
)


@cases(400)
@given(st.lists(event, min_size=1, max_size=40), st.integers(2, 200), st.integers(1, 60))
def test_bounds_hold_and_everything_is_freed_whatever_comes_and_goes(
    events: list[tuple[Any, ...]], most: int, at_engine: int
) -> None:
    async def play() -> None:
        lane = Lane("m", most, at_engine, Clock())
        requests: list[Request] = []
        knocked: list[Terms] = []

        def room(priority: Priority, there: dict[Priority, float]) -> bool:
            if any(not item.admitted and item.terms.priority == priority for item in requests if not item.task.done()):
                return False
            if not there[priority]:
                return lane.tokens < most + most // 2
            return sum(there.values()) < most and (priority == "interactive" or there["bulk"] < most // 2)

        def expected() -> dict[Priority, float]:
            """What is admitted, and what those will need for whom a place is kept."""
            kept = {kind: sum(item.priority == kind for item in knocked) for kind in CLASSES}
            assert lane.claimed == kept
            return {kind: lane.admitted[kind] + int(kept[kind] * lane._usual) for kind in CLASSES}

        def check() -> None:
            admitted = [item for item in requests if item.admitted and not item.task.done()]
            for priority in CLASSES:
                # Counted anew from what the requests themselves say.
                due = sum(min(item.left, most // 2) for item in admitted if item.terms.priority == priority)
                assert lane.admitted[priority] == due
            assert lane.tokens <= 2 * most
            there = [tokens for item in requests for tokens in item.at_engine.values()]
            assert lane.turns.at_engine == sum(there)
            assert sum(there) <= at_engine or len(there) == 1
            if lane.turns.waiting:
                assert there, "calls wait and the engine does nothing"

        async def step(kind: str, *more: Any) -> None:
            running = [item for item in requests if not item.task.done()]
            calls = [end for item in running for end in item.at_engine]
            if kind == "come":
                priority, sizes, caller, patient = more
                # Whatever it needs itself.
                fits = room(priority, lane.admitted if patient else expected())
                item: Request
                gone = asyncio.Event()
                terms = Terms(
                    1e9,
                    priority,
                    caller=None if caller is None else CALLERS[caller],
                    patient=patient,
                    gone=lambda: _until(gone),
                )
                item = Request(lane, terms, sizes, parallel=3)
                item.gone = gone
                requests.append(item)
                await settle()
                assert item.admitted is fits
                assert item.task.done() is (not fits and not patient), "only what does not fit is refused"
            elif kind == "knock":
                terms = Terms(1e9, more[0])
                if room(more[0], expected()):
                    lane.check(terms)
                    lane.check(terms)  # who has a place needs no other one
                    knocked.append(terms)
                else:
                    with pytest.raises(Overloaded) as refused:
                        lane.check(terms)
                    assert refused.value.retry_after > 0
            elif kind == "turn back" and knocked:
                assert knocked.pop(more[0] % len(knocked)).claim.give_up()
            elif kind == "step in" and knocked:
                before = lane.tokens
                item = Request(lane, knocked.pop(more[0] % len(knocked)), more[1], parallel=3)
                requests.append(item)
                await settle()
                assert item.admitted is (before < most + most // 2), "who has a place is let in, whatever its size"
            elif kind == "cancel" and running:
                running[more[0] % len(running)].task.cancel()
            elif kind == "leave" and running:
                running[more[0] % len(running)].gone.set()
            elif kind in ("compute", "fail") and calls:
                calls[more[0] % len(calls)].set_result(kind == "compute")
            elif kind == "both" and calls:
                # A turn, or room, is given at the moment in which the one who waits for it goes.
                calls[more[0] % len(calls)].set_result(True)
                for _ in range(more[2]):
                    await asyncio.sleep(0)
                running[more[1] % len(running)].task.cancel()
            await settle()
            check()

        for item in events:
            await step(*item)
        for _ in range(2000):
            if all(item.task.done() for item in requests):
                break
            await step("compute", 0)
        outcomes = [item.task for item in requests]
        assert all(task.done() for task in outcomes), "some request was never answered"
        for item in requests:
            if not item.task.cancelled() and item.task.result() == "answered":
                assert item.computed == sum(item.calls)
        for terms in knocked:
            terms.claim.give_up()
        assert lane.tokens == lane.turns.at_engine == lane.turns.waiting == 0
        assert not any(lane.flows.values()) and not any(lane.claimed.values())

    asyncio.run(play())


async def _until(gone: asyncio.Event) -> None:
    await gone.wait()


def backlogged(
    flows: list[tuple[Flow, Priority]], sizes: list[int], calls: int, at_engine: int, watch: Callable[[list[int]], None]
) -> None:
    """Serves flows that always have calls waiting; tells after each how many tokens every flow has had."""

    async def serve() -> None:
        turns, clock = Turns(at_engine, Clock()), iter(range(10**9))
        served = [0] * len(flows)
        lying: list[tuple[int, int]] = []

        async def ask(number: int) -> None:
            tokens = sizes[next(clock) % len(sizes)]
            flow, priority = flows[number]
            await turns.until(turns.wait(flow, priority, tokens, float("inf")))
            served[number] += tokens
            lying.append((number, tokens))

        blocker = Flow()
        assert turns.at_once(blocker, "interactive", at_engine)
        tasks = {asyncio.create_task(ask(number)) for number in range(len(flows)) for _ in range(2)}
        await settle()
        turns.leave(at_engine)
        for _ in range(calls):
            await settle()
            number, tokens = lying.pop(0)
            # Its next call waits before this one makes room, as with a request that has several under way.
            tasks.add(asyncio.create_task(ask(number)))
            await settle()
            turns.leave(tokens, tokens)
            await settle()
            watch(served)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(serve())


@cases(60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(2, 5), st.sampled_from(CLASSES))
def test_flows_of_a_class_get_the_same_within_a_call_of_each(sizes: list[int], count: int, priority: Priority) -> None:
    def watch(served: list[int]) -> None:
        assert max(served) - min(served) <= 2 * max(sizes)

    backlogged([(Flow(), priority) for _ in range(count)], sizes, 40, 1, watch)


@cases(60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_flows_get_turns_by_their_weights_within_a_call_of_each(sizes: list[int], weights: list[int]) -> None:
    def watch(served: list[int]) -> None:
        shares = [tokens / weight for tokens, weight in zip(served, weights, strict=True)]
        assert max(shares) - min(shares) <= 2 * max(sizes)

    backlogged([(Flow(weight), "interactive") for weight in weights], sizes, 40, 1, watch)


@cases(60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12))
def test_the_classes_share_by_their_weights_so_that_neither_stands_still(sizes: list[int]) -> None:
    def watch(served: list[int]) -> None:
        assert abs(served[0] / WEIGHT - served[1]) <= max(sizes) * (1 + 1 / WEIGHT)

    backlogged([(Flow(), "interactive"), (Flow(), "bulk")], sizes, 60, 1, watch)


def test_a_class_that_asked_for_nothing_has_no_claim_on_that_time() -> None:
    async def play() -> None:
        turns, order = Turns(1, Clock()), []

        async def ask(flow: Flow, priority: Priority) -> None:
            await turns.until(turns.wait(flow, priority, 1, float("inf")))
            order.append(priority)
            await settle()
            turns.leave(1, 1)

        for _ in range(100):
            await ask(Flow(), "bulk")
        order.clear()
        both = [asyncio.create_task(ask(Flow(), priority)) for _ in range(20) for priority in CLASSES]
        await asyncio.gather(*both)
        assert order[:20].count("bulk") == 2

    run(play)


def test_who_waits_for_room_behind_one_that_goes_is_let_in() -> None:
    async def play() -> None:
        lane = Lane("m", 100, 10, Clock())
        holds = await lane.admit(50, Terms(1e9, "bulk"))
        large = asyncio.create_task(lane.admit(40, Terms(1e9, "bulk", patient=True)))
        small = asyncio.create_task(lane.admit(10, Terms(1e9, "bulk", patient=True)))
        await settle()
        assert not large.done() and not small.done(), "nobody overtakes in this line"
        with pytest.raises(Overloaded):
            await lane.admit(10, Terms(1e9, "bulk"))
        large.cancel()
        holds.close()
        (await small).close()
        assert lane.tokens == 0

    run(play)


def test_a_small_request_passes_one_of_a_thousand_windows() -> None:
    async def play() -> int:
        lane = Lane("m", 10**6, 128, Clock())
        bulk = Request(lane, Terms(1e9), [128] * 1000, parallel=4)
        await settle()
        for _ in range(10):
            next(iter(bulk.at_engine)).set_result(True)
            await settle()
        small = Request(lane, Terms(1e9), [20], parallel=4)
        await settle()
        before = 0
        while not small.task.done():
            ends = [*small.at_engine, *bulk.at_engine]
            before += not small.at_engine
            ends[0].set_result(True)
            await settle()
        bulk.task.cancel()
        await settle()
        return before

    assert asyncio.run(play()) <= 2


def test_a_key_with_a_hundred_requests_gets_no_more_than_one_with_a_single_request() -> None:
    async def play() -> int:
        lane = Lane("m", 10**6, 10, Clock())
        many = [Request(lane, Terms(1e9, caller=CALLERS[0]), [10], parallel=1) for _ in range(100)]
        await settle()
        one = Request(lane, Terms(1e9, caller=CALLERS[1]), [10], parallel=1)
        await settle()
        before = 0
        while not one.task.done():
            ends = [end for item in (one, *many) for end in item.at_engine]
            before += not one.at_engine
            ends[0].set_result(True)
            await settle()
        for item in many:
            item.task.cancel()
        await settle()
        return before

    assert asyncio.run(play()) <= 2


def test_a_call_that_would_fit_does_not_pass_a_larger_one_that_waits() -> None:
    turns = Turns(10, Clock())

    async def play() -> None:
        assert turns.at_once(Flow(), "interactive", 8)
        large = turns.wait(Flow(), "interactive", 9, float("inf"))
        assert not turns.at_once(Flow(), "interactive", 1)
        turns.leave(8, 8)
        await turns.until(large)
        assert turns.at_once(Flow(), "interactive", 1), "nobody waits any more"

    run(play)


def test_work_whose_deadline_has_passed_is_not_started() -> None:
    async def play() -> None:
        clock = Clock()
        turns = Turns(10, clock)
        assert turns.at_once(Flow(), "interactive", 10)
        late = turns.wait(Flow(), "interactive", 10, clock.now + 1)
        kept = turns.wait(Flow(), "interactive", 10, clock.now + 9)
        clock.now += 2
        turns.leave(10, 10)
        with pytest.raises(TimeoutError):
            await turns.until(late)
        await turns.until(kept)
        assert turns.at_engine == 10

    run(play)


def test_the_work_of_a_client_that_went_away_never_reaches_the_engine() -> None:
    async def play() -> None:
        lane = Lane("m", 1000, 10, Clock())
        first = Request(lane, Terms(1e9), [10], parallel=1)
        await settle()
        gone = asyncio.Event()
        left = Request(lane, Terms(1e9, gone=lambda: _until(gone)), [10, 10], parallel=1)
        await settle()
        gone.set()
        await settle()
        assert left.task.result() == "gone"
        assert lane.tokens == 10
        next(iter(first.at_engine)).set_result(True)
        await settle()
        assert not left.at_engine and lane.turns.at_engine == 0

    run(play)


def test_the_drain_rate_is_that_of_a_backlog_and_retry_after_follows_it() -> None:
    async def play() -> None:
        clock = Clock()
        lane = Lane("m", 1000, 100, clock)
        big = Request(lane, Terms(1e9), [100] * 5, parallel=5)
        await settle()
        assert lane.retry_after() == 1, "no rate is known yet"
        for _ in range(3):
            clock.now += 0.5
            next(iter(big.at_engine)).set_result(True)
            await settle()
        assert lane.turns.drain.rate == pytest.approx(200)
        assert lane.retry_after() == pytest.approx(1.0)  # 200 tokens are left
        # What was given up took time and says nothing of the pace.
        clock.now += 50
        big.task.cancel()
        await settle()
        # An engine that idles says nothing of how fast it is.
        clock.now += 1000
        alone = Request(lane, Terms(1e9), [1], parallel=1)
        await settle()
        clock.now += 10
        next(iter(alone.at_engine)).set_result(True)
        await settle()
        assert lane.turns.drain.rate == pytest.approx(200)

    run(play)


def test_a_rate_from_a_bad_moment_neither_locks_requests_out_nor_stays() -> None:
    async def play() -> None:
        clock = Clock()
        lane = Lane("m", 10_000, 10, clock)
        slow = Request(lane, Terms(30), [10] * 4, parallel=4)
        await settle()
        for _ in range(4):
            clock.now += 1000
            next(iter(slow.at_engine)).set_result(True)
            await settle()
        assert lane.turns.drain.rate == pytest.approx(0.01)
        # At that pace nothing could be in time; whoever is alone is let in all the same, and shows that it is wrong.
        for _ in range(60):
            alone = Request(lane, Terms(30), [10], parallel=1)
            await settle()
            clock.now += 0.1
            next(iter(alone.at_engine)).set_result(True)
            await settle()
            assert alone.task.result() == "answered"
        assert lane.turns.drain.rate == pytest.approx(100, rel=0.01)

    run(play)


def test_no_more_is_let_in_than_the_engine_could_do_in_time() -> None:
    async def play() -> None:
        clock = Clock()
        lane = Lane("m", 100_000, 100, clock)
        for _ in range(100):
            (await lane.admit(10, Terms(10))).close()  # what is usual is small
        first = Request(lane, Terms(10), [100] * 12, parallel=4)
        await settle()
        for _ in range(10):
            clock.now += 1
            next(iter(first.at_engine)).set_result(True)
            await settle()
        assert lane.turns.drain.rate == pytest.approx(100)
        # 100 tokens a second for a quarter of 10 s; 200 are left of the first request.
        assert lane.bound == 250
        second = await lane.admit(500, Terms(10))
        with pytest.raises(Overloaded, match="700 tokens are admitted, the limit is 250"):
            await lane.admit(1, Terms(10))
        second.close()
        first.task.cancel()
        await settle()

    run(play)


def test_what_could_not_be_in_time_is_refused_with_the_time_that_it_lacks() -> None:
    async def play() -> None:
        clock = Clock()
        lane = Lane("m", 10_000, 100, clock)
        bulk = Request(lane, Terms(1e9), [100] * 20, parallel=4)
        await settle()
        clock.now += 1
        next(iter(bulk.at_engine)).set_result(True)
        await settle()
        assert lane.turns.drain.rate == 100
        # 100 tokens of its own and as many of the other flow: 2 s at that rate.
        with pytest.raises(Overloaded, match=r"would take 2\.0 s") as raised:
            await lane.admit(100, Terms(1.5))
        assert raised.value.reason == "late"
        assert raised.value.retry_after == pytest.approx(0.5, abs=0.1)
        ticket = await lane.admit(100, Terms(2.5))
        # At the door the usual size stands for the one that is not known yet.
        lane.check(Terms(1e9))
        with pytest.raises(Overloaded, match="an answer would take"):
            lane.check(Terms(1))
        ticket.close()
        bulk.task.cancel()
        await settle()

    run(play)


def test_the_last_one_may_go_beyond_the_bound_and_the_next_ones_wait_until_that_is_worked_off() -> None:
    async def play() -> None:
        lane = Lane("m", 100, 10, Clock())
        first, second = await lane.admit(60, Terms(1e9)), await lane.admit(45, Terms(1e9))
        assert lane.tokens == 95, "a novel counts for half"
        last = await lane.admit(80, Terms(1e9))
        with pytest.raises(Overloaded, match="'m' is overloaded: 145 tokens are admitted, the limit is 100"):
            await lane.admit(1, Terms(1e9))
        first.close()
        assert lane.tokens == 95
        lane.check(Terms(1e9))
        second.close()
        last.close()

    run(play)


def test_a_place_is_kept_from_the_door_on_for_a_while() -> None:
    async def play() -> None:
        clock, admission = Clock(), Admission(100)
        admission.check("m", Terms(1e9))  # nothing is known of it
        lane = admission.lanes["m"] = Lane("m", 100, 10, clock)
        ticket = await lane.admit(40, Terms(1e9))
        slow, other = Terms(1e9), Terms(1e9)
        lane.check(slow)
        lane.check(other)
        with pytest.raises(Overloaded, match="40 tokens are admitted, the limit is 100"):
            lane.check(Terms(1e9))  # two more of the usual size are on their way
        large = await lane.admit(50, other)
        with pytest.raises(Overloaded):
            lane.check(Terms(1e9))
        clock.now += CLAIM_SECONDS
        small = await lane.admit(10, Terms(1e9))
        with pytest.raises(Overloaded):
            await lane.admit(10, slow)
        for item in (ticket, large, small):
            item.close()
        assert not lane.claimed["interactive"] and not lane.tokens

    run(play)


def test_bulk_work_leaves_room_for_others_and_says_what_its_limit_is() -> None:
    async def play() -> None:
        lane = Lane("m", 100, 10, Clock())
        bulk = await lane.admit(10**9, Terms(1e9, "bulk"))
        assert lane.tokens == 50, "a novel counts for half"
        with pytest.raises(Overloaded, match="50 tokens of bulk work are admitted, the limit is 50"):
            await lane.admit(1, Terms(1e9, "bulk"))
        other = await lane.admit(50, Terms(1e9))
        bulk.close()
        other.close()

    run(play)
