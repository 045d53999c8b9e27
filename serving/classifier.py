"""Texts → answers: encode, infer, decode. Knows no HTTP; the engine is whatever it is given.

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
from bundle.errors import EngineTimeout, InvalidText, RequestError
from bundle.predict import Predicted, batches, gathered, of_window
from serving.catalogue import ServedModel
from serving.engines import Computing
from serving.rules import Fired
from serving.running import UNBOUND

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
    """The answers to one request, in its order, and how long each stage took (seconds)."""

    answers: tuple[Answer, ...]
    seconds: dict[Stage, float]


class Classifier:
    """Answers texts with one engine and several models.

    Args:
        parallel_calls: engine calls that one request may have under way.
        timeout_seconds: bound of a whole request.
        workers: threads for tokenizing and decoding of long texts.
    """

    def __init__(self, engine: Computing, *, parallel_calls: int, timeout_seconds: float, workers: int) -> None:
        self.engine = engine
        self._parallel, self._timeout = parallel_calls, timeout_seconds
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="text")

    def close(self) -> None:
        """Ends the worker threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def answer(self, model: ServedModel, texts: Sequence[Text], *, truncate: bool = False) -> Answers:
        """Answers some texts.

        Raises:
            RequestError: a text cannot be read, is too long, or is not what the model reads.
            EngineUnavailable, EngineTimeout: no answer now.
        """
        check_texts(model, texts)
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                long = sum(len(item.text) + len(item.pair or "") for item in texts) > INLINE_CHARACTERS
                encoded = await self._off_loop(
                    long,
                    lambda: [
                        model.encoder.encode(
                            item.text,
                            item.pair,
                            truncate=truncate,
                            field=item.field,
                            max_windows=model.max_windows,
                        )
                        for item in texts
                    ],
                )
                tokenized = time.perf_counter()
                predicted = await self.infer(model, encoded)
                inferred = time.perf_counter()
                many = sum(len(item.windows) for item in encoded) > INLINE_WINDOWS
                answers = await self._off_loop(many, lambda: _decode(model, texts, predicted))
        except TimeoutError as error:
            raise EngineTimeout(self._timeout) from error
        ended = time.perf_counter()
        return Answers(
            answers,
            {
                "tokenize": tokenized - begun,
                "infer": inferred - tokenized,
                "decode": ended - inferred,
                "total": ended - begun,
            },
        )

    async def infer(self, model: ServedModel, encoded: Sequence[Encoded]) -> list[Predicted]:
        """Every output of the model for every window of every text."""
        places = [(text, window) for text, item in enumerate(encoded) for window in range(len(item.windows))]
        lengths = np.concatenate([model.encoder.lengths(item) for item in encoded]).tolist()
        windows: list[list[list[FloatArray]]] = [[[]] * len(item.windows) for item in encoded]
        waiting = iter(self._calls(model, lengths))

        async def work() -> None:
            for call in waiting:
                # Made here and not for all windows at once, so that a novel takes no more memory than an article.
                rows = [model.encoder.row(encoded[text], window) for text, window in (places[i] for i in call)]
                found = await self.engine.infer(model, *pad(rows, model.encoder.spec.pad_id))
                for number, (index, row) in enumerate(zip(call, rows, strict=True)):
                    text, window = places[index]
                    # Copied, so that a call's padding and the engine's message are not kept until the last window.
                    windows[text][window] = [values.copy() for values in of_window(found, number, row.content)]

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._parallel, len(places))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            # One reason is enough; the others are mostly the same, seen by a neighbouring call.
            raise failures.exceptions[0] from None
        return gathered(encoded, windows)

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


def _decode(model: ServedModel, texts: Sequence[Text], predicted: Sequence[Predicted]) -> tuple[Answer, ...]:
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
