"""Bulk work over one connection: NDJSON in, NDJSON out, in bounded memory.

Lines are answered while later ones still arrive. Nothing is read ahead further than `AHEAD` lines, so a caller who
does not read, or an engine that is slow, slows the sender down (TCP does the rest); a caller must read while it
sends, as curl does. A line that cannot be answered gets a problem in its place, and the stream goes on.

Answers leave in the order of the lines, or, where the caller asks for it, each as soon as it is ready. Either way short
lines are computed while a long one is: a long line goes alone and in a lane of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from bundle.errors import LimitExceeded, RequestError, SlipwayError
from bundle.offsets import OffsetUnit
from serving.admission import TERMS, Terms
from serving.catalogue import ServedModel
from serving.classifier import Answer, Text, check_texts
from serving.door import log
from serving.errors import kind_of, problem_body
from serving.gateway import Gateway
from serving.routes import chosen, gateway_of
from serving.routes.native import problems
from serving.schemas import Prediction, Problem, parse_line
from serving.views import Shape, prediction_of

MEDIA_TYPE = "application/x-ndjson"
# The requests whose bodies have no limit as a whole; each of their lines has it.
PATH = re.compile(r"/v1/models/[^/]+/predict/stream")
# Lines that may be under way: read, but not yet written back.
AHEAD = 256
# Lines that go through the model together, at most, and the characters at which a group is full.
GROUP = 16
GROUP_CHARACTERS = 20_000
# Characters above which a line is long.
LONG_CHARACTERS = 5_000
# Groups of short lines, and long lines, that are answered at a time.
WORKERS = 4
LONG_WORKERS = 2

router = APIRouter(prefix="/v1/models", tags=["models"])


class StreamAnswer(BaseModel):
    """One line of the answer: a prediction, or a problem in its place."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"index": 0, "id": "a-17", "prediction": {}}]})

    index: int = Field(description="number of the input line, from 0; blank lines are not counted")
    id: str | int | None = Field(default=None, description="as the input line gave it")
    prediction: Prediction | None = None
    error: Problem | None = None


@dataclass(slots=True)
class _Line:
    """One input line: where its answer will be, and what it asks."""

    index: int
    answer: asyncio.Future[StreamAnswer]
    id: str | int | None = None
    text: Text | None = None

    @property
    def characters(self) -> int:
        """Of both sides of a pair."""
        text = _text(self)
        return len(text.text) + len(text.pair or "")


@router.post(
    "/{model}/predict/stream",
    response_class=Response,
    responses={
        200: {"content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{StreamAnswer.__name__}"}}}},
        **problems(401, 404, 422, 503),
    },
    summary="Answer a stream of texts, line by line",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": 'each line a text as a JSON string, or {"text": …, "pair": …, "id": …}',
            "content": {MEDIA_TYPE: {"example": '"早餐种类太少。"\n{"id": 2, "text": "房间干净整洁。"}\n'}},
        }
    },
)
async def stream(
    model: str,
    request: Request,
    top_k: Annotated[int | None, Query(ge=1)] = None,
    return_windows: bool = False,
    truncate: bool = False,
    offset_unit: OffsetUnit = "codepoint",
    ordered: Annotated[
        bool, Query(description="false gives each answer as soon as it is ready; index and id tell its line")
    ] = True,
) -> Response:
    """Answers come in the order of the lines, each as soon as those before it are written. Send any number of lines."""
    gateway = gateway_of(request)
    # One version for all lines, which may come for hours: a later change concerns the streams after it.
    served = chosen(request, model, request.state.request_id.encode())
    await gateway.check_ready(served)
    shape = Shape(top_k, return_windows, offset_unit)
    return _Answers(gateway, served, shape, truncate, ordered, request)


class _Answers(Response):
    """The response; Starlette's own streaming response would read the request's body away from us."""

    media_type = MEDIA_TYPE

    def __init__(
        self, gateway: Gateway, model: ServedModel, shape: Shape, truncate: bool, ordered: bool, request: Request
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._gateway, self._model, self._shape = gateway, model, shape
        self._truncate, self._ordered = truncate, ordered
        self._request_id: str = request.state.request_id
        # Each group of lines has the time of a request. What finds no room waits, and with it the sender.
        self._terms = replace(TERMS.get() or Terms(gateway.settings.timeout_seconds, "bulk"), patient=True, gone=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._gateway.versions.using(self._model):
            await self._stream(receive, send)

    async def _stream(self, receive: Receive, send: Send) -> None:
        ahead = asyncio.Semaphore(AHEAD)
        leaving: asyncio.Queue[asyncio.Future[StreamAnswer] | None] = asyncio.Queue()
        short: asyncio.Queue[_Line | None] = asyncio.Queue()
        long: asyncio.Queue[_Line | None] = asyncio.Queue()
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def read() -> None:
            index = 0
            async for raw in _lines(receive, self._gateway.settings.max_body_bytes):
                await ahead.acquire()
                line = _Line(index, asyncio.get_running_loop().create_future())
                index += 1
                if self._ordered:
                    leaving.put_nowait(line.answer)
                else:
                    line.answer.add_done_callback(leaving.put_nowait)
                self._parse(line, raw)
                if line.text is not None:
                    (long if line.characters > LONG_CHARACTERS else short).put_nowait(line)
            for lane, workers in ((short, WORKERS), (long, LONG_WORKERS)):
                for _ in range(workers):
                    lane.put_nowait(None)
            for _ in range(AHEAD):  # all are back when the last answer is written
                await ahead.acquire()
            leaving.put_nowait(None)

        async def write() -> None:
            while (answer := await leaving.get()) is not None:
                body = (await answer).model_dump_json(exclude_none=True).encode() + b"\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})
                ahead.release()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(read())
                for _ in range(WORKERS):
                    group.create_task(self._work(short, GROUP))
                for _ in range(LONG_WORKERS):
                    group.create_task(self._work(long, 1))
                group.create_task(write())
        except BaseExceptionGroup as failures:
            # The caller is gone, or the server is stopping: the connection breaks, which is how a caller sees it.
            raise failures.exceptions[0] from None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _parse(self, line: _Line, raw: bytes | LimitExceeded) -> None:
        """Fills a line in, or answers it at once with what is wrong with it."""
        try:
            if isinstance(raw, LimitExceeded):
                raise raw
            item = parse_line(raw)
            line.id = item.id
            text = Text(item.text, item.pair, "line.text")
            check_texts(self._model, [text])
            line.text = text
        except SlipwayError as error:
            self._refuse(line, error)

    async def _work(self, lane: asyncio.Queue[_Line | None], most: int) -> None:
        """Answers the lines of a lane, at most so many together."""
        while (line := await lane.get()) is not None:
            group, characters = [line], line.characters
            # Only what has arrived: no line waits for the next one.
            while len(group) < most and characters < GROUP_CHARACTERS and not lane.empty():
                following = lane.get_nowait()
                if following is None:
                    lane.put_nowait(None)
                    break
                group.append(following)
                characters += following.characters
            await self._answer(group)

    async def _answer(self, group: list[_Line]) -> None:
        try:
            texts = [_text(line) for line in group]
            found = await self._gateway.predict(
                self._model, texts, self._terms, truncate=self._truncate, field="line.text"
            )
        except RequestError as error:
            if len(group) > 1:  # one text of the group is at fault; alone, each tells for itself
                for line in group:
                    await self._answer([line])
            else:
                self._refuse(group[0], error)
        except Exception as error:  # an engine that is down, or a fault of ours: the next lines may fare better
            for line in group:
                self._refuse(line, error)
        else:
            for line, answer in zip(group, found.answers, strict=True):
                line.answer.set_result(self._line_of(line, answer))

    def _line_of(self, line: _Line, answer: Answer) -> StreamAnswer:
        return StreamAnswer(index=line.index, id=line.id, prediction=prediction_of(self._model, answer, self._shape))

    def _refuse(self, line: _Line, error: Exception) -> None:
        kind = kind_of(error)
        if kind.status == 500:
            log.error("request %s failed at line %d", self._request_id, line.index, exc_info=error)
        self._gateway.telemetry.errors.labels(kind.name).inc()
        line.answer.set_result(
            StreamAnswer(index=line.index, id=line.id, error=problem_body(error, f"{self._request_id}:{line.index}"))
        )


def _text(line: _Line) -> Text:
    assert line.text is not None
    return line.text


async def _lines(receive: Receive, limit: int) -> AsyncIterator[bytes | LimitExceeded]:
    """The body's lines that are not blank; a line above the limit is one error, and is not held in memory."""
    held, dropped = bytearray(), 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        parts = message.get("body", b"").split(b"\n")
        for number, part in enumerate(parts):
            if dropped or len(held) + len(part) > limit:
                dropped += len(held) + len(part)
                held.clear()
            else:
                held += part
            if number < len(parts) - 1 or not more:
                if dropped:
                    yield LimitExceeded("line", "bytes", dropped, limit)
                elif held.strip():
                    yield bytes(held)
                held, dropped = bytearray(), 0
