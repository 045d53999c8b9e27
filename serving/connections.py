"""What a connection may cost before and after a request is understood: bytes, seconds, and how many there are.

uvicorn reads headers for ever and of any size, and waits for ever for a caller who does not read. Here each connection
has a clock and a count of what is no body: the header bombs, slow senders, slow readers and pipelining floods that a
server meets are told so where that is still possible, and closed. How long a body may take is the door's matter
(`serving.door`), which knows the routes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.errors import BUSY, HEADERS_LARGE, HEADERS_SLOW, NOT_HTTP, Kind, problem
from serving.settings import Settings

# Requests that may wait behind the one that is being answered on the same connection.
PIPELINED = 64
# Bytes of chunk sizes and line ends that a byte of body may bring along, when it is sent byte by byte.
FRAMING = 16
# Seconds in which a connection above the limit has to ask, to be told why it is closed.
SURPLUS_SECONDS = 1.0
# What a header line takes beside name and value.
LINE = 4
# In the state of a request whose last byte has come.
WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection; see the settings of the same names."""

    max_connections: int
    max_header_bytes: int
    header_seconds: float
    stall_seconds: float


class _Refused(Exception):
    """Stops the parser."""


class _Joined:
    """A transport that sends an answer's head with what follows at once: one call into the kernel, one segment.

    uvicorn writes them apart. On a machine that is shared with the caller, each write wakes it, in the middle of a
    computation of the engine.
    """

    __slots__ = ("_head", "_inner", "_loop")

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop, self._head = inner, loop, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
            self._inner.write(data)
        elif data.startswith(b"HTTP/"):
            # A stream's first line may be long in coming: its head waits for no more than what is being done now.
            self._head = data
            self._loop.call_soon(self.flush)
        else:
            self._inner.write(data)

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def write_whole(self, data: bytes) -> None:
        """Sends an answer that is one piece already."""
        self._inner.write(data)

    def close(self) -> None:
        self.flush()
        self._inner.close()


class _Answered:
    """In the place of uvicorn's state of a request that was answered before it became one."""

    response_complete = True
    message_event = asyncio.Event()


# Called with the URL and the headers of a POST; see `Turnstile.refuse`.
Refuse = Callable[[bytes, list[tuple[bytes, bytes]]], bytes | None]


class Guarded(HttpToolsProtocol):
    """uvicorn's connection, watched.

    Args:
        refuse: what answers in the place of the application while that has no room.
    """

    def __init__(self, *args: Any, limits: Limits, refuse: Refuse | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refuse_early = refuse
        self._limits, self._seconds = limits, limits.header_seconds
        self._reason: Kind | None = None
        # Bytes of this request's line and headers, as parsed; and of everything that is no body, as it came.
        self._head = self._beside = 0
        self._clock: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        # Whether headers are under way, and whether a request's last byte is still to come.
        self._reading = self._arriving = False
        # Whether this connection is one too many: it is told so when it has asked something.
        self._surplus = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Joined(transport, self.loop)))
        self._surplus = len(self.connections) > self._limits.max_connections
        self._watch(min(SURPLUS_SECONDS, self._seconds) if self._surplus else self._seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._beside += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self.transport.is_closing():
            return
        if self._beside > self._limits.max_header_bytes:
            self._refuse(HEADERS_LARGE)
        elif self._clock is None and (self._reading or self._idle):
            # A request has begun and its headers are not here yet. Or something came that begins no request, such as an
            # empty line; or the rest of one that is answered.
            self._watch(self._seconds, self._late)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            # A limit of ours, or something that is no HTTP.
            self._refuse(self._reason or NOT_HTTP)

    def _decline(self, rest: bytes) -> None:
        """Reads a request that offers another protocol as if it did not, which the standard allows.

        The parser stops after such headers and would lose the body; Java's own client offers HTTP/2 with every POST.
        """
        kept = [
            (name, value) for name, value in self.headers if name not in (b"upgrade", b"http2-settings", b"connection")
        ]
        told = b",".join(value for name, value in self.headers if name == b"connection").split(b",")
        hops = [token for token in told if token.strip().lower() not in (b"upgrade", b"http2-settings")]
        lines = [b"%b: %b\r\n" % pair for pair in (*kept, (b"connection", b",".join(hops)))]
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn has it: what follows a last request must not take its answer away.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, b"".join(lines), rest))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = self._beside = 0
        self._reading = self._arriving = True
        if not self._surplus:
            self._unwatch()  # this request's own time begins, unless its headers have come with its first byte

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + LINE)
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > self._limits.max_header_bytes:
            self._reason = HEADERS_LARGE
            raise _Refused

    @property
    def _offered(self) -> bool:
        """Whether this request offers another protocol, and so is read again without the offer."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def on_headers_complete(self) -> None:
        if self._offered:
            return
        self._reading = False
        self._unwatch()
        if self._surplus or len(self.pipeline) >= PIPELINED:
            self._reason = BUSY
            raise _Refused
        if not self._turned_away():
            super().on_headers_complete()

    def _turned_away(self) -> bool:
        """Answers with a refusal, if there is no room and nothing else is to be said."""
        parser = self.parser
        if self._refuse_early is None or self._answering or parser.get_method() != b"POST":
            return False
        if parser.get_http_version() != "1.1" or not parser.should_keep_alive():
            return False
        if (answer := self._refuse_early(self.url, self.headers)) is None:
            return False
        default = [b"%b: %b\r\n" % pair for pair in self.server_state.default_headers]
        self.cycle = cast(Any, _Answered)
        cast(_Joined, self.transport).write_whole(b"".join((STATUS_LINE[429], *default, answer)))
        self.on_response_complete()
        return True

    def on_body(self, body: bytes) -> None:
        # Bounded below, so that a large body earns no right to endless trailers.
        self._beside = max(self._beside - len(body) * (1 + FRAMING), -self._limits.max_header_bytes)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offered:
            return
        self._arriving = False
        self._unwatch()
        self.scope["state"][WHOLE] = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._arriving and not self._reading and not self.transport.is_closing():
            # Answered before the body was here, such as one that is too large. A caller who sends before reading
            # gets the time of a header to come to an end; closing at once would take the answer away from them.
            self._watch(self._seconds, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(self._limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def _watch(self, seconds: float, then: Callable[[], None]) -> None:
        self._unwatch()
        self._clock = self.loop.call_later(seconds, then)

    def _unwatch(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        if self.flow.read_paused or self._answering:
            # We do not read now, or an earlier request of this connection is being answered: not the caller's delay.
            self._watch(self._seconds, self._late)
        elif self._reading:
            self._refuse(HEADERS_SLOW)
        else:
            self.transport.close()  # nothing was asked, so nothing is answered

    @property
    def _idle(self) -> bool:
        """Whether nothing is answered, and no clock runs for the next request either."""
        return not self._answering and self.timeout_keep_alive_task is None

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, kind: Kind) -> None:
        """Says why, where no answer is under way on this connection, and closes it."""
        if not self._answering:
            state = {"request_id": secrets.token_hex(8)}
            answer = problem(kind, _SENTENCES[kind.name], {"method": "", "path": "", "state": state}, _MORE[kind.name])
            head = [b"%b: %b\r\n" % pair for pair in answer.raw_headers]
            self.transport.write(b"".join([STATUS_LINE[kind.status], *head, b"\r\n", bytes(answer.body)]))
        self.transport.close()


_SENTENCES = {
    BUSY.name: "as many connections are open, or requests are waiting on this one, as the server takes; try again",
    HEADERS_LARGE.name: "the request's line and headers are larger than SLIPWAY_MAX_HEADER_BYTES",
    HEADERS_SLOW.name: "the request's line and headers took longer than SLIPWAY_HEADER_SECONDS",
    NOT_HTTP.name: "what was sent is not an HTTP/1.1 request",
}
_MORE = {kind.name: {"Connection": "close"} for kind in (HEADERS_LARGE, HEADERS_SLOW, NOT_HTTP)}
_MORE[BUSY.name] = {"Connection": "close", "Retry-After": "1"}


def guarded(settings: Settings, refuse: Refuse | None = None) -> type[asyncio.Protocol]:
    """The protocol for `uvicorn.Config(http=…)`."""
    limits = Limits(
        max_connections=settings.max_connections,
        max_header_bytes=settings.max_header_bytes,
        header_seconds=settings.header_seconds,
        stall_seconds=settings.stall_seconds,
    )
    # uvicorn calls it and never looks at it as a class.
    return cast(type[asyncio.Protocol], partial(Guarded, limits=limits, refuse=refuse))
