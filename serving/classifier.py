"""Texts → answers: encode, infer, decode. Knows no HTTP; the engine is whatever it is given.

A request is admitted when its tokens are known (`serving.admission`), and each of its engine calls waits for its turn.
Windows of all texts of a request are sent to the engine in calls of bounded size, as the model is run
(`serving.running`). A model whose graph is not batch-invariant (dynamic quantization) gets every window in a call of
its own and unpadded, so that an answer depends neither on the engine nor on what else is asked at the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from bundle.decode import Classified, FloatArray, Tagged
from bundle.encode import Encoded, pad
from bundle.errors import EngineTimeout, InvalidText, LimitExceeded, RequestError
from bundle.predict import Predicted, batches, gathered, of_window
from serving.admission import Admission, Lane, Terms, Ticket
from serving.cache import AnswerCache, key_of
from serving.catalogue import ServedModel
from serving.engines import Computing
from serving.rules import Fired
from serving.running import UNBOUND, at_engine

Stage = Literal["tokenize", "infer", "decode", "total"]
T = TypeVar("T")

# Characters up to which a request is tokenized on the event loop itself: below, handing over costs more than it gains.
INLINE_CHARACTERS = 2000
# Windows up to which a request is decoded on the event loop.
INLINE_WINDOWS = 16


@dataclass(frozen=True, slots=True)
class Text:
    """One input: a text, or a pair of texts; ``field`` is where it stands in the request."""

    text: str
    pair: str | None = None
    field: str = "text"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model, and the rules after it, say about one input.

    Attributes:
        classified: what the model alone says of the whole text; None of a tagger.
        tagged: the entities after the rules; empty where the task has none.
        chosen: the labels that are given after the rules, in label order: one, or any number of a multi-label task;
            none of a tagger.
        fired: the rules that changed the answer.
    """

    text: Text
    encoded: Encoded
    classified: Classified | None
    tagged: tuple[Tagged, ...]
    chosen: tuple[int, ...]
    fired: tuple[Fired, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one request, in its order.

    Attributes:
        seconds: how long each stage took.
        hits: texts whose computation was in the cache; None where there is no cache.
    """

    answers: tuple[Answer, ...]
    seconds: dict[Stage, float]
    hits: int | None = None


class Classifier:
    """Answers texts with one engine and several models.

    Args:
        parallel_calls: engine calls that one request may have under way.
        workers: threads for tokenizing and decoding of long texts.
        timeout_seconds: of a request that comes without terms.
        admission: how much is let in, and in which order.
        max_tokens: in the windows of one request.
        engine_tokens: at the engine at a time, of a model; 0 is what it has use for.
        cache: what models said before.
        waited: told of every engine call how many seconds it waited for its turn, by the model's name.
    """

    def __init__(
        self,
        engine: Computing,
        *,
        parallel_calls: int,
        timeout_seconds: float,
        workers: int,
        admission: Admission,
        max_tokens: int = UNBOUND,
        engine_tokens: int = 0,
        cache: AnswerCache | None = None,
        waited: Callable[[str, float], None] = lambda model, seconds: None,
    ) -> None:
        self.engine, self.admission, self._waited = engine, admission, waited
        self.cache = AnswerCache(0) if cache is None else cache
        self._parallel, self._max_tokens, self._engine_tokens = parallel_calls, max_tokens, engine_tokens
        self._timeout = timeout_seconds
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="text")

    def close(self) -> None:
        """Ends the worker threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def answer(
        self,
        model: ServedModel,
        texts: Sequence[Text],
        terms: Terms | None = None,
        *,
        truncate: bool = False,
        field: str = "inputs",
    ) -> Answers:
        """Answers some texts.

        Args:
            field: what the request calls its list of texts.

        Raises:
            RequestError: a text cannot be read, is too long or is not what the model reads; or too many tokens.
            Overloaded: it was not let in.
            ClientGone: nobody waits for the answer any more.
            EngineUnavailable, EngineTimeout: no answer now.
        """
        check_texts(model, texts)
        terms = terms or Terms(self._timeout)
        if not terms.patient:
            self.admission.check(model.name, terms)
        begun = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + terms.left) as timer:
                known = self._known(model, texts, truncate)
                new = [index for index, (_, found) in enumerate(known) if found is None]
                long = sum(len(texts[index].text) + len(texts[index].pair or "") for index in new) > INLINE_CHARACTERS
                encoded = await self._off_loop(
                    long,
                    lambda: [
                        model.encoder.encode(
                            texts[index].text,
                            texts[index].pair,
                            truncate=truncate,
                            field=texts[index].field,
                            max_windows=model.max_windows,
                        )
                        for index in new
                    ],
                )
                tokenized = time.perf_counter()
                predicted = [found for _, found in known]
                if new:
                    for index, found in zip(new, await self._infer(model, encoded, terms, timer, field), strict=True):
                        predicted[index] = found
                        self.cache.put(known[index][0], found)
                inferred = time.perf_counter()
                every = [item for item in predicted if item is not None]
                many = sum(len(item.encoded.windows) for item in every) > INLINE_WINDOWS
                answers = await self._off_loop(many, lambda: decoded(model, texts, every))
        except TimeoutError as error:
            lane = self.admission.lanes.get(model.name)
            raise EngineTimeout(terms.seconds, lane.retry_after() if lane else 1.0) from error
        finally:
            terms.claim.give_up()  # where all was known, or nothing was admitted
        ended = time.perf_counter()
        return Answers(
            answers,
            {
                "tokenize": tokenized - begun,
                "infer": inferred - tokenized,
                "decode": ended - inferred,
                "total": ended - begun,
            },
            len(texts) - len(new) if self.cache.most else None,
        )

    def _known(self, model: ServedModel, texts: Sequence[Text], truncate: bool) -> list[tuple[bytes, Predicted | None]]:
        """For each text its key in the cache, and what is kept there."""
        if not self.cache.most:
            return [(b"", None)] * len(texts)
        keys = [key_of(model, item.text, item.pair, truncate) for item in texts]
        return [(key, self.cache.get(key)) for key in keys]

    async def _infer(
        self, model: ServedModel, encoded: Sequence[Encoded], terms: Terms, timer: asyncio.Timeout, field: str
    ) -> list[Predicted]:
        """Has a request admitted, and its windows computed."""
        lengths = _lengths(model, encoded)
        tokens = sum(lengths)
        if tokens > self._max_tokens:
            raise LimitExceeded(field, "tokens", tokens, self._max_tokens)
        lane = self._lane(model)
        if terms.patient:
            # Waiting for room takes none of the time that a patient request has.
            left = (timer.when() or 0.0) - asyncio.get_running_loop().time()
            timer.reschedule(None)
            ticket = await lane.admit(tokens, terms)
            timer.reschedule(asyncio.get_running_loop().time() + left)
        else:
            ticket = await lane.admit(tokens, terms)
        try:
            left = (timer.when() or 0.0) - asyncio.get_running_loop().time()
            return await self._compute(model, encoded, lengths, ticket, time.monotonic() + left)
        finally:
            ticket.close()

    async def infer(self, model: ServedModel, encoded: Sequence[Encoded]) -> list[Predicted]:
        """Every output of the model for every window of every text, for the server's own checks.

        They are neither refused nor wait for a turn: whoever has one may be waiting for a server that is let in only
        after them.
        """
        return await self._compute(model, encoded, _lengths(model, encoded), None, float("inf"))

    async def _compute(
        self,
        model: ServedModel,
        encoded: Sequence[Encoded],
        lengths: Sequence[int],
        ticket: Ticket | None,
        deadline: float,
    ) -> list[Predicted]:
        places = [(text, window) for text, item in enumerate(encoded) for window in range(len(item.windows))]
        windows: list[list[list[FloatArray]]] = [[[]] * len(item.windows) for item in encoded]
        calls = self._calls(model, lengths)
        waiting = iter(calls)
        if ticket and len(calls) > self._parallel:
            ticket.watch()

        async def work() -> None:
            for call in waiting:
                tokens = sum(lengths[index] for index in call)
                if ticket:
                    self._waited(model.name, await ticket.turn(tokens, deadline))
                begun, computed = time.perf_counter(), False
                try:
                    # Made here and not for all windows at once, so that a novel takes no more memory than an article.
                    rows = [model.encoder.row(encoded[text], window) for text, window in (places[i] for i in call)]
                    found = await self.engine.infer(model, *pad(rows, model.encoder.spec.pad_id))
                    computed = True
                finally:
                    if ticket:
                        ticket.done(tokens, time.perf_counter() - begun, computed=computed)
                for number, (index, row) in enumerate(zip(call, rows, strict=True)):
                    text, window = places[index]
                    # Copied, so that a call's padding and the engine's message are not kept until the last window.
                    windows[text][window] = [values.copy() for values in of_window(found, number, row.content)]

        if len(calls) == 1:
            await work()
            return gathered(encoded, windows)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._parallel, len(calls))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            # One reason is enough; the others are mostly the same, seen by a neighbouring call.
            raise failures.exceptions[0] from None
        return gathered(encoded, windows)

    def _lane(self, model: ServedModel) -> Lane:
        most = self._engine_tokens or at_engine(
            model.running, self.engine.parallel(model), model.manifest.text.max_tokens
        )
        return self.admission.lane(model.name, most)

    def _calls(self, model: ServedModel, lengths: Sequence[int]) -> list[list[int]]:
        """Which windows go to the engine together, as indexes; ``lengths`` are those of the model's inputs."""
        how = model.running
        most = min(self.engine.rows_per_call(model), how.windows or UNBOUND) if model.artifact.batch_invariant else 1
        ordered = batches(lengths, how.batch_tokens) if how.by_length else [list(range(len(lengths)))]
        return [batch[start : start + most] for batch in ordered for start in range(0, len(batch), most)]

    async def _off_loop(self, away: bool, work: Callable[[], T]) -> T:
        if not away:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _lengths(model: ServedModel, encoded: Sequence[Encoded]) -> list[int]:
    """Tokens of every window of some texts, as the model reads them."""
    if len(encoded) == 1:
        only: list[int] = model.encoder.lengths(encoded[0]).tolist()
        return only
    found: list[int] = np.concatenate([model.encoder.lengths(item) for item in encoded]).tolist()
    return found


def check_texts(model: ServedModel, texts: Sequence[Text]) -> None:
    """A model of text pairs needs pairs, every other model single texts; NUL is no text, as in training.

    Raises:
        RequestError: naming the field.
    """
    wants_pairs = model.manifest.task.kind == "text-pair"
    for item in texts:
        # A bare string has no inner field to name.
        base = item.field.removesuffix(".text")
        field = f"{base}.pair" if base != item.field else base
        if wants_pairs and item.pair is None:
            raise RequestError(field, f'{model.name!r} compares two texts; send {{"text": …, "pair": …}} as {base}')
        if not wants_pairs and item.pair is not None:
            raise RequestError(field, f"{model.name!r} reads single texts; leave out {field}")
        for side, place in ((item.text, item.field), (item.pair, field)):
            if side and "\0" in side:
                raise InvalidText(place, f"{place} holds the character NUL, which is not text; remove it")


def decoded(model: ServedModel, texts: Sequence[Text], predicted: Sequence[Predicted]) -> tuple[Answer, ...]:
    """What the model said of some texts, and what the rules make of it."""
    task, joining = model.manifest.task, model.manifest.text.joining
    rules = model.rules.current() if model.rules else None
    answers = []
    for text, item in zip(texts, predicted, strict=True):
        classified = item.classified(task, joining) if task.classifies else None
        tagged = tuple(item.tagged(task, joining)) if task.tags else ()
        if rules is None or not rules.rules:
            chosen = classified.chosen if classified else ()
            answers.append(Answer(text, item.encoded, classified, tagged, chosen))
        else:
            ruled = rules.apply(text.text, classified, tagged)
            answers.append(Answer(text, item.encoded, classified, ruled.tagged, ruled.chosen, ruled.fired))
    return tuple(answers)
