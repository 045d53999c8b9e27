"""A second version that computes what the first one answered, behind all real work, and how often they agree.

A caller's answer has left when its shadow begins. One request at a time is computed, with one engine call at a time,
and each call waits until no caller does; so at most one such call is under way when a request comes. After each request
the shadow rests, so that it meets few of those that come. What cannot wait is dropped: beyond `WAITING_CHARACTERS` new
requests are not taken, so under load the shadow sees a part of the traffic.
No text is kept or told, only counts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.errors import EngineTimeout, SlipwayError
from serving.catalogue import ServedModel
from serving.classifier import Answer, Answers, Classifier, Text
from serving.engines import Engine
from serving.telemetry import Telemetry

log = logging.getLogger("slipway.versions")

# Of all requests that wait for their turn.
WAITING_CHARACTERS = 200_000
# Seconds of rest for each second of work: a quarter of the time is the shadow's at most.
REST = 3.0


# What became of a text: both gave the same labels and entities, as a caller sees them, or not; real work came first;
# the second version could not answer it.
Result: TypeAlias = Literal["same", "different", "dropped", "failed"]


@dataclass(slots=True)
class Agreement:
    """What was seen so far.

    Attributes:
        counts: texts by what became of them.
        max_score_difference: largest difference of a score that both gave to the same label or entity.
    """

    counts: Counter[Result] = field(default_factory=Counter)
    max_score_difference: float = 0.0

    @property
    def texts(self) -> int:
        """Texts that both versions answered."""
        return self.counts["same"] + self.counts["different"]

    @property
    def share(self) -> float | None:
        """Share of those with the same answer; None before the first."""
        return self.counts["same"] / self.texts if self.texts else None


class Traffic:
    """How many requests are being answered, and a way to wait until none is."""

    def __init__(self) -> None:
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    def __enter__(self) -> None:
        self._under_way += 1
        self._quiet.clear()

    def __exit__(self, *failure: object) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._quiet.set()

    async def quiet(self) -> None:
        """Returns when no request is being answered."""
        while self._under_way:
            await self._quiet.wait()


class Behind:
    """The part of an engine that a classifier needs, for work that waits for all other work.

    Args:
        traffic: what goes first.

    Attributes:
        waited: seconds spent so far on letting others go first.
    """

    def __init__(self, engine: Engine, traffic: Traffic) -> None:
        self._engine, self._traffic = engine, traffic
        self.waited = 0.0

    async def infer(self, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        """As the engine's, once nobody waits for an answer."""
        begun = time.monotonic()
        await self._traffic.quiet()
        self.waited += time.monotonic() - begun
        return await self._engine.infer(model, input_ids, token_type_ids)

    def rows_per_call(self, model: ServedModel) -> int:
        """As the engine's."""
        return self._engine.rows_per_call(model)

    def parallel(self, model: ServedModel) -> int:
        """As the engine's."""
        return self._engine.parallel(model)


@dataclass(frozen=True, slots=True)
class _Waiting:
    texts: Sequence[Text]
    truncate: bool
    answers: Answers

    @property
    def characters(self) -> int:
        return sum(len(item.text) + len(item.pair or "") for item in self.texts)


class Shadow:
    """The second version of a model beside the first.

    Args:
        classifier: computes behind the traffic; closed with the shadow.
        room: characters of all requests that wait for their turn.
    """

    def __init__(
        self,
        first: ServedModel,
        second: ServedModel,
        classifier: Classifier,
        telemetry: Telemetry,
        room: int = WAITING_CHARACTERS,
    ) -> None:
        self._room = room
        self.first, self.second = first, second
        self.agreement = Agreement()
        self._classifier, self._telemetry = classifier, telemetry
        self._waiting: deque[_Waiting] = deque()
        self._characters = 0
        self._come = asyncio.Event()
        # In a context of its own: what it computes is no part of the request that set it.
        self._task = asyncio.create_task(self._work(), name=f"shadow-{second.id}", context=Context())

    def offer(self, model: ServedModel, texts: Sequence[Text], truncate: bool, answers: Answers) -> None:
        """Takes what a version just answered, if it was the first one and there is room; returns at once."""
        if model is not self.first:
            return
        item = _Waiting(texts, truncate, answers)
        if self._characters + item.characters > self._room:
            self._count("dropped", len(texts))
            return
        self._waiting.append(item)
        self._characters += item.characters
        self._come.set()

    async def end(self) -> None:
        """Gives up what waits and what is under way."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._classifier.close()

    async def _work(self) -> None:
        while True:
            await self._come.wait()
            item = self._waiting[0]
            begun, waited = time.monotonic(), self._waited()
            try:
                found = await self._classifier.answer(self.second, item.texts, truncate=item.truncate)
            except EngineTimeout:
                self._count("dropped", len(item.texts))
            except Exception as error:  # whatever it is, the first version's answers are not concerned
                expected = isinstance(error, SlipwayError)
                log.warning("%s: the shadow did not answer: %s", self.second.id, error, exc_info=not expected)
                self._count("failed", len(item.texts))
            else:
                for one, other in zip(item.answers.answers, found.answers, strict=True):
                    self._compare(one, other)
            self._waiting.popleft()
            self._characters -= item.characters
            if not self._waiting:
                self._come.clear()
            await asyncio.sleep(REST * (time.monotonic() - begun - (self._waited() - waited)))

    def _waited(self) -> float:
        """Seconds in which the shadow did not work but let others go first."""
        engine = self._classifier.engine
        return engine.waited if isinstance(engine, Behind) else 0.0

    def _compare(self, one: Answer, other: Answer) -> None:
        first, second = said(self.first, one), said(self.second, other)
        same = first.labels == second.labels and first.entities.keys() == second.entities.keys()
        common = [
            abs(here[key] - there[key])
            for here, there in ((first.scores, second.scores), (first.entities, second.entities))
            for key in here.keys() & there.keys()
        ]
        difference = max(common, default=0.0)
        self.agreement.max_score_difference = max(self.agreement.max_score_difference, difference)
        self._count("same" if same else "different", 1)
        self._telemetry.shadow_difference.labels(self.second.name).observe(difference)

    def _count(self, result: Result, texts: int) -> None:
        self.agreement.counts[result] += texts
        self._telemetry.shadow_texts.labels(self.second.name, str(self.second.version), result).inc(texts)


@dataclass(frozen=True, slots=True)
class Said:
    """An answer by names, so that versions with other lists of labels can be compared.

    Attributes:
        labels: those that are given, after thresholds and rules.
        scores: the model's score of each label.
        entities: (start, end, type) → score.
    """

    labels: frozenset[str]
    scores: dict[object, float]
    entities: dict[object, float]


def said(model: ServedModel, answer: Answer) -> Said:
    """What a caller reads in an answer."""
    names = model.manifest.task.labels
    scores = answer.classified.scores.tolist() if answer.classified else []
    return Said(
        frozenset(names[index] for index in answer.chosen),
        dict(zip(names, scores, strict=False)),
        {(item.start, item.end, item.label): float(item.score) for item in answer.tagged},
    )
