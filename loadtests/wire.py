"""POST requests over kept connections, at as little processor time as Python allows.

The load generator shares the machine with the server that it measures, and of ten times too many requests most are
refused within a millisecond: a general client would take more of the machine than the refusals do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools


@dataclass(slots=True)
class Reply:
    """What came back; ``retry_after`` is the header as it was sent."""

    status: int = 0
    retry_after: str = ""
    body: bytes = b""


class Broken(Exception):
    """The connection ended before the answer did, or what came was no HTTP."""


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Reply] | None = None
        self.open = True
        self._reply, self._parts = Reply(), list[bytes]()

    def send(self, request: bytes) -> asyncio.Future[Reply]:
        self._reply, self._parts = Reply(), []
        self._parser = httptools.HttpResponseParser(self)
        self.answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self.answer

    def close(self) -> None:
        self.open = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            if self.answer is not None:
                self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(str(error))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._fail(str(exc or "closed"))

    def _fail(self, why: str) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(Broken(why))

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._reply.retry_after = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._reply.status, self._reply.body = self._parser.get_status_code(), b"".join(self._parts)
        self.open = self.open and self._parser.should_keep_alive()
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(self._reply)


@dataclass(eq=False)
class Wire:
    """Connections to one address; an asynchronous context manager.

    Args:
        url: with the path.
        most: connections; a request that finds them all busy waits for one.
        seconds: that an answer may take, then `TimeoutError`.
        headers: of every request.
    """

    url: str
    most: int
    seconds: float
    headers: dict[str, str] = field(default_factory=dict)
    _idle: list[_Connection] = field(default_factory=list)
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    _used: int = 0

    def __post_init__(self) -> None:
        there = urlsplit(self.url)
        self._tls = there.scheme == "https"
        self._host, self._port = there.hostname or "", there.port or (443 if self._tls else 80)
        lines = [
            f"POST {there.path} HTTP/1.1",
            f"Host: {there.netloc}",
            *(f"{k}: {v}" for k, v in self.headers.items()),
        ]
        self._head = "\r\n".join(lines).encode("latin-1") + b"\r\nContent-Length: %d\r\n\r\n"

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.close()

    async def post(self, body: bytes) -> Reply:
        """Sends one request.

        Raises:
            Broken, OSError, TimeoutError: there was no whole answer.
        """
        while self._used >= self.most:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._used += 1
        try:
            connection = await self._connection()
            late = asyncio.get_running_loop().call_later(self.seconds, _give_up, connection)
            try:
                reply = await connection.send(self._head % len(body) + body)
            finally:
                late.cancel()
            if connection.open:
                self._idle.append(connection)
            return reply
        finally:
            self._used -= 1
            while self._waiting:
                if not (turn := self._waiting.popleft()).done():
                    turn.set_result(None)
                    break

    async def _connection(self) -> _Connection:
        while self._idle:
            if (connection := self._idle.pop()).open:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(
            _Connection, self._host, self._port, ssl=self._tls or None
        )
        return connection


def _give_up(connection: _Connection) -> None:
    if connection.answer is not None and not connection.answer.done():
        connection.answer.set_exception(TimeoutError())
    connection.close()
