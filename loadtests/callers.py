"""Callers that know the right answer: each answer is compared with the one from before anything went wrong.

One process, asyncio; for tests of endurance, where what came of each request matters more than the last percent of
precision. Latencies of a load test are Locust's part (`loadtests.run`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from loadtests.errors import AnswerWrong, TextsUnusable
from loadtests.texts import Ask, read_mix

# Largest difference of two scores of one text that are the same answer: batches are rounded differently.
SCORE_TOLERANCE = 2e-3
# Texts that are asked about; of each the right answer is known.
TEXTS = 60
# Statuses with which a server may refuse, if it says when to come again.
REFUSALS = (429, 503, 504)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request. Times are of `time.monotonic`.

    Attributes:
        status: HTTP status; 0 without an answer.
        fault: what is wrong with it: ``wrong answer``, ``no Retry-After``, ``http 500``, the name of a connection's
            error; empty for a right answer and for a refusal that is as it should be.
        said: kind and reason of a refusal, in the server's words.
    """

    start: float
    end: float
    status: int
    fault: str
    said: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def refused(self) -> bool:
        return self.status in REFUSALS and not self.fault


def read_asks(bundles: Path, model: str, texts: Path | None, *, pairs: bool, max_chars: int, seed: int) -> list[Ask]:
    """Short and long texts: of a file, of the model's test split, or else of the rows that every bundle carries.

    Raises:
        TextsUnusable: there are none.
    """
    bundle = next((place for place in (bundles / model / "bundle", bundles / model, bundles) if _holds(place)), None)
    places = [texts] if texts else [bundle / "splits" / "test.jsonl", bundle / "golden.jsonl"] if bundle else []
    file = next((place for place in places if place and place.is_file()), None)
    if file is None:
        raise TextsUnusable(texts or bundles / model, "no texts there")
    mix = read_mix(file, short_share=0.5, seed=seed, max_chars=max_chars, pairs=pairs)
    order = [*mix.short, *mix.long]
    random.Random(seed).shuffle(order)
    return order[:TEXTS]


def _holds(place: Path) -> bool:
    return (place / "bundle.json").is_file()


def body_of(asks: Sequence[Ask]) -> bytes:
    """A request for some texts at once."""
    if len(asks) == 1:
        return asks[0].body
    inputs: list[object] = [ask.text if ask.pair is None else {"text": ask.text, "pair": ask.pair} for ask in asks]
    return json.dumps({"inputs": inputs}, ensure_ascii=False).encode()


def same(left: Any, right: Any) -> bool:
    """Whether two predictions are one answer: scores may differ by rounding, nothing else may."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return abs(left - right) <= SCORE_TOLERANCE
    return bool(left == right)


class Callers:
    """Sends requests and keeps what came of them.

    Args:
        asks: the texts.
        timeout: seconds after which a request counts as unanswered.
    """

    def __init__(self, host: str, model: str, asks: Sequence[Ask], *, timeout: float, seed: int) -> None:
        self.host, self.model, self.url = host, model, f"{host}/v1/models/{model}/predict"
        self.asks, self.seed = list(asks), seed
        self.outcomes: list[Outcome] = []
        # When those began that are not answered yet.
        self.under_way: list[float] = []
        self._truth: list[Any] = []
        self._seconds, self._timeout = timeout, aiohttp.ClientTimeout(total=timeout)

    def session(self) -> aiohttp.ClientSession:
        """A session with as many connections as are wanted."""
        return aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0))

    def at(self, host: str) -> Callers:
        """Callers of another server with the same model, who know the same answers."""
        other = Callers(host, self.model, self.asks, timeout=self._seconds, seed=self.seed)
        other._truth = self._truth
        return other

    async def learn(self) -> None:
        """Asks every text alone, twice, and takes the answers for right.

        Raises:
            AnswerWrong: it refuses, or the second answer is another one.
        """
        async with self.session() as session:
            for _ in range(2):
                for place, ask in enumerate(self.asks):
                    async with session.post(self.url, data=body_of([ask])) as response:
                        text = await response.text()
                        if response.status != 200:
                            raise AnswerWrong(f"text {place}", f"http {response.status}", text[:300])
                        (prediction,) = json.loads(text)["predictions"]
                    if place == len(self._truth):
                        self._truth.append(prediction)
                    elif not same(prediction, self._truth[place]):
                        raise AnswerWrong(f"text {place}", "two answers", "the same text is answered in two ways")

    async def ask(self, session: aiohttp.ClientSession, places: Sequence[int]) -> Outcome:
        """One request for some of the texts; its outcome is kept."""
        start = time.monotonic()
        self.under_way.append(start)
        status, fault, said = 0, "", ""
        try:
            async with session.post(self.url, data=body_of([self.asks[place] for place in places])) as response:
                content = await response.read()
                status = response.status
                if status == 200:
                    found = json.loads(content)["predictions"]
                    right = [self._truth[place] for place in places]
                    fault = "" if same(found, right) else "wrong answer"
                else:
                    with contextlib.suppress(ValueError, AttributeError):
                        told = json.loads(content)
                        said = f"{str(told.get('type', '')).rpartition(':')[2]}: {told.get('detail', '')}"
                    if status not in REFUSALS:
                        fault = f"http {status}"
                    elif not response.headers.get("Retry-After", "").isdecimal():
                        fault = f"http {status} without Retry-After"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            refused = isinstance(error, aiohttp.ClientConnectorError)
            fault = "connection refused" if refused else type(error).__name__
        finally:
            self.under_way.remove(start)
        outcome = Outcome(start, time.monotonic(), status, fault, said)
        self.outcomes.append(outcome)
        return outcome

    async def steady(self, users: int, pause: float, newcomers: float, until: asyncio.Event) -> None:
        """Users who ask, wait for the answer, pause, and ask again; a refused one waits a little longer.

        Args:
            newcomers: per second; each asks once on a connection of its own, whether or not others are answered.
        """

        async def user(number: int) -> None:
            dice = random.Random(f"{self.seed}/{number}")
            async with self.session() as session:
                while not until.is_set():
                    outcome = await self.ask(session, [dice.randrange(len(self.asks))])
                    await asyncio.sleep(pause if outcome.status == 200 else 0.1)

        async def newcomer(place: int) -> None:
            async with self.session() as session:
                await self.ask(session, [place])

        async with asyncio.TaskGroup() as group:
            for number in range(users):
                group.create_task(user(number))
            dice = random.Random(f"{self.seed}/newcomers")
            while not until.is_set():
                group.create_task(newcomer(dice.randrange(len(self.asks))))
                await asyncio.sleep(1 / newcomers)

    async def capacity(self, users: int, seconds: float, texts: int) -> float:
        """Texts per second that the server answers to so many callers, each with so many texts per request."""
        until = asyncio.Event()
        done = 0

        async def user(number: int) -> None:
            nonlocal done
            dice = random.Random(f"{self.seed}/capacity/{number}")
            async with self.session() as session:
                while not until.is_set():
                    places = [dice.randrange(len(self.asks)) for _ in range(texts)]
                    outcome = await self.ask(session, places)
                    done += texts if outcome.status == 200 else 0
                    if outcome.status != 200:
                        await asyncio.sleep(0.1)

        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(users):
                group.create_task(user(number))
            await asyncio.sleep(seconds)
            until.set()
        return done / (time.monotonic() - begun)

    async def open_loop(self, rate: float, seconds: float, texts: int, *, keep: bool = True) -> list[Outcome]:
        """Requests at a fixed rate whether or not the server keeps up; returns when all are answered.

        Args:
            keep: whether to return their outcomes; a run of hours had better not.
        """
        dice = random.Random(f"{self.seed}/open")
        begun = time.monotonic()
        found: list[Outcome] = []

        async def one(places: list[int]) -> None:
            outcome = await self.ask(session, places)
            if keep:
                found.append(outcome)

        async with self.session() as session, asyncio.TaskGroup() as group:
            for number in range(max(1, round(rate * seconds))):
                await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
                group.create_task(one([dice.randrange(len(self.asks)) for _ in range(texts)]))
        return found
