"""What every request passes first: an id, the key, its terms, the body's limits, the last catch of errors, measuring.

Whatever is computed is asked for by POST, so POST needs a key where there are keys; health, metrics, documentation and
descriptions of models stay open. Admin routes ask for an administrator's key themselves. A full model refuses here,
before a body is read: under overload most of what arrives is refused, and must cost next to nothing.

Plain ASGI, so that a body is counted while it arrives and never held before it is known to be small enough.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle.errors import BodyTooSlow, LimitExceeded, RequestError
from serving.admission import TERMS, Terms
from serving.connections import WHOLE
from serving.errors import kind_of, problem_of
from serving.keys import Caller, Keys
from serving.measuring import Measuring
from serving.settings import Settings
from serving.turns import Priority

log = logging.getLogger("slipway.gateway")

TIMEOUT, PRIORITY = "x-request-timeout-ms", "x-priority"
# Routes that ask a model, and the model's name where the path has it.
_ASKS = re.compile(r"/(?:predict|v1/models/([^/]+)/predict|v2/models/([^/]+)/.*|models/([^/]+).*|taskflow/([^/]+))?")


class Door:
    """ASGI middleware around the whole application.

    Args:
        settings: limits and defaults.
        check_room: refuses for a model (by name; empty: the default one) that has no room, or keeps a place there.
        endless: paths whose bodies are read piece by piece and limit themselves.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        measuring: Measuring,
        keys: Keys,
        settings: Settings,
        check_room: Callable[[str, Terms], None],
        endless: re.Pattern[str],
    ) -> None:
        self._app, self._measuring, self._keys, self._settings = app, measuring, keys, settings
        self._check_room, self._limit, self._endless = check_room, settings.max_body_bytes, endless
        self._body_seconds, self._stall_seconds = settings.body_seconds, settings.stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
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
        set_terms = None

        async def counted() -> Message:
            nonlocal read, arriving
            if not arriving:  # what a route waits for now is the caller's hanging up
                return await receive()
            try:
                if scope["state"].get(WHOLE):  # nothing to wait for, and so no clock
                    message = await receive()
                else:
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
                added = {"x-request-id": call.request_id, "traceparent": call.traceparent}
                if version := scope["state"].get("model_version"):
                    added["x-model-version"] = str(version)
                # An answer may hold what a caller sent; no browser is to guess that it is something else.
                added["x-content-type-options"] = "nosniff"
                named = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in added.items()]
                message["headers"] = [*message.get("headers", ()), *named]
            await send(message)

        try:
            if scope["method"] == "POST":
                caller = self._keys.caller(headers.get("authorization"))
                terms = read_terms(headers, self._settings, caller, "interactive" if limited else "bulk", receive)
                set_terms = TERMS.set(terms)
                if limited and (asked := _ASKS.fullmatch(scope["path"])):
                    self._check_room(next(filter(None, asked.groups()), ""), terms)
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
            if set_terms is not None:
                TERMS.reset(set_terms)
                terms.claim.give_up()
            route = getattr(scope.get("route"), "path", "none")
            self._measuring.end(call, route, status, failed=status >= 500)


def milliseconds(said: str) -> int:
    """The time that the header `TIMEOUT` asks for; 0 where that is none."""
    # ASCII digits alone: int() reads more than a header should say.
    return int(said) if re.fullmatch(r"[0-9]{1,9}", said) else 0


def read_terms(
    told: Mapping[str, str],
    settings: Settings,
    caller: Caller | None,
    usual: Priority = "interactive",
    receive: Receive | None = None,
) -> Terms:
    """On what terms a request is answered, as its headers or metadata tell.

    Args:
        told: names in lower case.
        usual: the class of a request that names none.
        receive: of a connection on which nothing but its end can follow.

    Raises:
        RequestError: a header says what cannot be.
    """
    priority: Priority = usual
    if (said := told.get(PRIORITY)) is not None:
        if said not in ("interactive", "bulk"):
            raise RequestError("X-Priority", f"X-Priority is {said[:20]!r}; it can be 'interactive' or 'bulk'")
        priority = "bulk" if said == "bulk" else "interactive"
    seconds = settings.timeout_seconds
    if (said := told.get(TIMEOUT)) is not None:
        if not (asked := milliseconds(said)):
            wanted = "whole milliseconds, from 1"
            raise RequestError("X-Request-Timeout-Ms", f"X-Request-Timeout-Ms is {said[:20]!r}; it must be {wanted}")
        seconds = min(asked / 1000, settings.most_seconds)

    async def gone() -> None:
        assert receive
        while (await receive())["type"] != "http.disconnect":
            pass

    return Terms(seconds, priority, caller=caller, gone=gone if receive else None)
