"""What every request passes first: an id, the key, the body's limits, the last catch of errors, the measuring.

Whatever is computed is asked for by POST, so POST needs a key where there are keys; health, metrics, documentation and
descriptions of models stay open. Admin routes ask for an administrator's key themselves.

Plain ASGI, so that a body is counted while it arrives and never held before it is known to be small enough.
"""

from __future__ import annotations

import asyncio
import logging
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle.errors import BodyTooSlow, LimitExceeded
from serving.errors import kind_of, problem_of
from serving.keys import Keys
from serving.measuring import Measuring

log = logging.getLogger("slipway.gateway")


class Door:
    """ASGI middleware around the whole application.

    Args:
        max_body_bytes: a larger body is refused with 413, at the latest when its surplus byte arrives.
        body_seconds: in which a body must arrive; beyond it 408.
        stall_seconds: that may pass between two pieces of an endless body; then it counts as broken off.
        endless: paths whose bodies are read piece by piece and limit themselves.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        measuring: Measuring,
        keys: Keys,
        max_body_bytes: int,
        body_seconds: float,
        stall_seconds: float,
        endless: re.Pattern[str],
    ) -> None:
        self._app, self._measuring, self._keys = app, measuring, keys
        self._limit, self._endless = max_body_bytes, endless
        self._body_seconds, self._stall_seconds = body_seconds, stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        call = self._measuring.begin(
            scope["method"],
            headers.get("x-request-id", ""),
            headers.get("traceparent", ""),
            headers.get("tracestate", ""),
        )
        scope.setdefault("state", {})["request_id"] = call.request_id
        status, started, read = 500, False, 0
        limited, arriving = not self._endless.fullmatch(scope["path"]), True
        due = asyncio.get_running_loop().time() + self._body_seconds

        async def counted() -> Message:
            nonlocal read, arriving
            if not arriving:  # what a route waits for now is the caller's hanging up
                return await receive()
            try:
                async with asyncio.timeout_at(
                    due if limited else asyncio.get_running_loop().time() + self._stall_seconds
                ):
                    message = await receive()
            except TimeoutError:
                if limited:
                    raise BodyTooSlow(self._body_seconds) from None
                return {"type": "http.disconnect"}
            arriving = message.get("more_body", False)
            read += len(message.get("body", b""))
            if limited and read > self._limit:
                raise LimitExceeded("body", "bytes or more", read, self._limit)
            return message

        async def noted(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                leaving = MutableHeaders(scope=message)
                leaving["X-Request-Id"], leaving["traceparent"] = call.request_id, call.traceparent
                if version := scope["state"].get("model_version"):
                    leaving["X-Model-Version"] = str(version)
                # An answer may hold what a caller sent; no browser is to guess that it is something else.
                leaving["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            if scope["method"] == "POST":
                self._keys.caller(headers.get("authorization"))
            announced = headers.get("content-length", "0")
            if limited and announced.isdecimal() and int(announced) > self._limit:
                raise LimitExceeded("body", "bytes", int(announced), self._limit)
            await self._app(scope, counted, noted)
        except ClientDisconnect:
            status = 499  # nobody is left to read an answer; the number is for the metrics only
        except Exception as error:
            kind = kind_of(error)
            if kind.status == 500:
                log.exception("request %s failed", call.request_id)
            if started:
                # The answer is half sent; only a broken connection can tell the caller so.
                raise
            self._measuring.telemetry.errors.labels(kind.name).inc()
            await problem_of(error, scope)(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._measuring.end(call, route, status, failed=status >= 500)
