"""Refusals that never become a request: where a model is full, the connection itself answers 429.

At ten times what a gateway can do, nine of ten requests are refused, and what that costs is taken from the engine. The
way through the framework and the door to the same answer takes over three times as long (python -m
tests.serving.refusal_cost; docs/decisions/0008-under-load.md).
So a plain request of the native dialect, of which the door would say the same, is answered as soon as its headers are
read. Whatever needs a closer look goes on to the door, which decides by itself; nothing is kept or counted here then.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bundle.errors import Overloaded
from serving.door import TIMEOUT, milliseconds
from serving.errors import MEDIA_TYPE, problem_body, retry_after
from serving.tracing import ID

if TYPE_CHECKING:
    from serving.gateway import Gateway

_PATH = re.compile(rb"/v1/models/([A-Za-z0-9._-]+)/predict")
_TIMEOUT = TIMEOUT.encode()
# Headers that ask for nothing which is decided later; with another one the door decides.
_PLAIN = frozenset(
    (b"host", b"content-type", b"content-length", b"accept", b"accept-encoding", b"accept-language", b"user-agent",
     b"connection", b"x-request-id", _TIMEOUT)
)  # fmt: skip
_MEDIA_TYPE = MEDIA_TYPE.encode()
# Stands for the request's id where a body is made once for many.
_ANY = "0" * 16


class Turnstile:
    """Answers for the door where it would only refuse.

    Args:
        gateway: whose admission, settings and metrics count.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        # Ids need not be secret, only different: the system's randomness costs a call into the kernel each time.
        self._dice = random.Random(random.SystemRandom().getrandbits(128))
        self._said: tuple[str, int, bytes, bytes] = "", 0, b"", b""

    def refuse(self, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
        """The whole answer to a POST, without a status line's default headers; None where the door decides.

        Args:
            url: as it was sent.
            headers: their names in lower case.
        """
        gateway = self._gateway
        if (found := _PATH.fullmatch(url)) is None or gateway.draining:
            return None
        name = found[1].decode()
        lane = gateway.classifier.admission.lanes.get(name)
        if lane is None or (full := lane.full("interactive")) is None:
            return None
        request_id = ""
        for header, value in headers:
            if header not in _PLAIN:
                return None
            if header == b"x-request-id":
                request_id = value.decode("latin-1")
            elif header == _TIMEOUT and not milliseconds(value.decode("latin-1")):
                return None
        if gateway.keys.guarded or gateway.measuring.watches_each:
            return None
        if not ID.fullmatch(request_id):
            request_id = f"{self._dice.getrandbits(64):016x}"
        return self._answer(name, full, request_id)

    def _answer(self, name: str, full: Overloaded, request_id: str) -> bytes:
        self._gateway.measuring.telemetry.turned_away(name, full.reason)
        seconds, sentence = retry_after(full) or 1, str(full)
        if self._said[:2] != (sentence, seconds):
            body = problem_body(full, _ANY).model_dump_json(exclude_none=True).encode()
            # The last one: a model may be called so.
            before, _, after = body.rpartition(_ANY.encode())
            self._said = sentence, seconds, before, after
        _, _, before, after = self._said
        given = request_id.encode()
        trace, span = self._dice.getrandbits(128) or 1, self._dice.getrandbits(64) or 1
        return (
            b"retry-after: %d\r\ncontent-length: %d\r\ncontent-type: %b\r\nx-request-id: %b\r\n"
            b"traceparent: 00-%032x-%016x-00\r\nx-content-type-options: nosniff\r\n\r\n%b%b%b"
            % (seconds, len(before) + len(given) + len(after), _MEDIA_TYPE, given, trace, span, before, given, after)
        )
