"""A gateway behind uvicorn, from the first sentence to the last: start, serve, drain, stop.

The order of stopping is decided here and not by uvicorn: not ready first, then a time of grace in which whoever
balances load turns away, then the port, then the requests in flight, and the engine last. A second signal ends all of
it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle.manifest import TaskKind
from serving.app import make_app
from serving.connections import guarded
from serving.gateway import Gateway
from serving.turnstile import Turnstile

if TYPE_CHECKING:
    from serving.kserve_grpc import Front

Say = Callable[[str], None]

# What the start-up summary offers to try, by task.
_TRY: dict[TaskKind, object] = {
    "single-label": "这家公司今年业绩大幅增长，股价创下新高。",
    "multi-label": "这家公司今年业绩大幅增长，股价创下新高。",
    "text-pair": [{"text": "怎么修改收货地址", "pair": "如何更改配送地址"}],
    "token-classification": "王小明昨天从北京到上海参加了复旦大学的会议。",
    "multi-task": "帮我订一张明天从北京到上海的机票。",
}


# Seconds after closing the port in which connections that never asked anything may yet do so.
LAST_CALL = 2.0


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own, which takes in what was sent before the port was closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Whoever waits to be accepted would be reset when the port is closed, so they are accepted first, and no turn
        # of the loop lies between the last of them and the closing.
        waiting = [one for listener in sockets or [] for one in _accepted(listener)]
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        loop = asyncio.get_running_loop()
        for one in waiting:
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(self._protocol, one)
        deadline = loop.time() + LAST_CALL
        while not self.force_exit and loop.time() < deadline and self._unasked():
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        make = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _unasked(self) -> bool:
        """Whether there is a connection that a first request may be on its way on."""
        return any(getattr(item, "cycle", None) is None for item in self.server_state.connections)


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait to be accepted."""
    with contextlib.suppress(OSError):
        while True:
            one, _ = listener.accept()
            one.setblocking(False)
            yield one


class _Stop:
    """What the signals ask for: the first one a stop, the second one its end."""

    def __init__(self, gateway: Gateway) -> None:
        self.asked, self.hurried = asyncio.Event(), asyncio.Event()
        self.grace = gateway.settings.drain_seconds
        self.server: Server | None = None
        self._gateway = gateway
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: int) -> None:
        if not self.asked.is_set():
            if number == signal.SIGINT:
                self.grace = 0.0  # somebody at a terminal waits, and nobody balances load
            self.asked.set()
            return
        self.hurried.set()
        if self.server:
            self.server.force_exit = True
        self._gateway.engine.abandon()

    async def first(self, *others: asyncio.Future[None], hurry: bool = False) -> None:
        """Returns when one of the others is done, or the stop is asked for (its end, with ``hurry``)."""
        told = asyncio.create_task(_until(self.hurried if hurry else self.asked))
        await asyncio.wait({told, *others}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


class _Closing:
    """ASGI middleware: while the server drains, an answer ends its connection.

    So a caller that keeps connections sends its next request elsewhere, and none into one that is about to be closed.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._gateway.draining:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, closing)


async def serve(gateway: Gateway, listener: socket.socket, log_level: str, say: Say) -> bool:
    """Starts the gateway, serves until SIGINT or SIGTERM, and stops it.

    Args:
        listener: a bound socket.
        say: told what happens, for the terminal; where that is a full disk, what is told is lost and nothing else.

    Returns:
        whether all that was under way could end; False after a second signal.

    Raises:
        BundleError, EngineError: the gateway cannot start.
        SlipwayError: the gRPC port is taken.
    """
    say = _whatever_becomes_of_it(say)
    begun = time.perf_counter()
    front = _grpc_front(gateway)
    loop = asyncio.get_running_loop()
    stop = _Stop(gateway)
    starting = loop.create_task(gateway.start(lambda sentence: say(f"  {sentence}")))
    try:
        # A signal during the start ends it, and the engine with it.
        await stop.first(starting)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            say("stopped while starting")
            return True
        await starting
        stop.server = server = Server(
            uvicorn.Config(
                _Closing(make_app(gateway), gateway),
                log_config=None,
                # What uvicorn says at info level, `serve` says itself.
                log_level=log_level if log_level == "debug" else "warning",
                access_log=log_level == "debug",
                lifespan="off",
                http=guarded(gateway.settings, Turnstile(gateway).refuse),
                ws="none",
                timeout_keep_alive=gateway.settings.keep_alive_seconds,
                timeout_graceful_shutdown=max(1, round(gateway.settings.stop_seconds)),
                server_header=False,
            )
        )
        serving = loop.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if front:
            await front.start()
        _summary(gateway, listener, time.perf_counter() - begun, say)
        await stop.first(serving)
        gateway.draining = True
        if stop.grace and not serving.done():
            say(f"stopping in {stop.grace:g} s: not ready any more, still serving")
            grace = loop.create_task(asyncio.sleep(stop.grace))
            await stop.first(grace, serving, hurry=True)
            grace.cancel()
        say("stopping: requests in flight are finished first")
        server.should_exit = True
        if front:
            calls = loop.create_task(front.stop(gateway.settings.stop_seconds))
            await stop.first(calls, hurry=True)
        await serving
    finally:
        if front:
            await front.stop(0)
        await gateway.stop()
    if stop.hurried.is_set():
        say("stopped at once: what was under way is lost")
        return False
    say("stopped")
    return True


def _whatever_becomes_of_it(say: Say) -> Say:
    def said(sentence: str) -> None:
        with contextlib.suppress(OSError):
            say(sentence)

    return said


def _grpc_front(gateway: Gateway) -> Front | None:
    """The gRPC side, its port bound, where the settings ask for it.

    Raises:
        SlipwayError: the port is taken.
    """
    if not gateway.settings.grpc_port:
        return None
    # Imported here: whoever serves HTTP alone, with ONNX Runtime, needs no gRPC.
    from serving.kserve_grpc import Front

    return Front(gateway, gateway.settings.host, gateway.settings.grpc_port)


def _summary(gateway: Gateway, listener: socket.socket, seconds: float, say: Say) -> None:
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    address = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    say(f"\nready after {seconds:.1f} s; {gateway.engine.describe()}\n")
    for model in gateway.models.values():
        manifest = model.manifest
        say(
            f"  {model.name}: {manifest.task.kind}, version {manifest.version}, {model.format}, windows of "
            f"{manifest.text.max_tokens} tokens, up to {model.max_windows} per text"
        )
        body = json.dumps({"inputs": _TRY[manifest.task.kind]}, ensure_ascii=False)
        say(f"    curl -s {address}/v1/models/{model.name}/predict -d '{body}'")
    if gateway.settings.grpc_port:
        say(f"\ngRPC (Open Inference Protocol) on {shown}:{gateway.settings.grpc_port}")
    say(f"\nserving on {address}; documentation at {address}/docs")
    say("next: try a curl line above in another terminal, or `make loadtest`; Ctrl-C stops the server")
