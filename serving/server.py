"""A gateway behind uvicorn, from the first sentence to the last: start, serve, drain, stop.

The order of stopping is decided here and not by uvicorn: not ready first, then the port, then the requests in
flight, and the engine last.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn

from bundle.manifest import TaskKind
from serving.app import make_app
from serving.gateway import Gateway

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


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(gateway: Gateway, listener: socket.socket, log_level: str, say: Say) -> None:
    """Starts the gateway, serves until SIGINT or SIGTERM, and stops it.

    Args:
        listener: a bound socket.
        say: told what happens, for the terminal.

    Raises:
        BundleError, EngineError: the gateway cannot start.
        SlipwayError: the gRPC port is taken.
    """
    begun = time.perf_counter()
    front = _grpc_front(gateway)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stopped = loop.create_task(stop.wait())
    starting = loop.create_task(gateway.start(lambda sentence: say(f"  {sentence}")))
    try:
        # A signal during the start ends it, and the engine with it.
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            say("stopped while starting")
            return
        await starting
        server = Server(
            uvicorn.Config(
                make_app(gateway),
                log_config=None,
                # What uvicorn says at info level, `serve` says itself.
                log_level=log_level if log_level == "debug" else "warning",
                access_log=log_level == "debug",
                lifespan="off",
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
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        gateway.draining = True
        say("stopping: requests in flight are finished first")
        await asyncio.sleep(gateway.settings.drain_seconds)
        server.should_exit = True
        hurry = asyncio.Event()
        # A second signal stops waiting for requests in flight.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _hurry, server, hurry)
        if front:
            calls = loop.create_task(front.stop(gateway.settings.stop_seconds))
            hurried = loop.create_task(hurry.wait())
            await asyncio.wait({calls, hurried}, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
        await serving
    finally:
        stopped.cancel()
        if front:
            await front.stop(0)
        await gateway.stop()
    say("stopped")


def _hurry(server: Server, hurry: asyncio.Event) -> None:
    server.force_exit = True
    hurry.set()


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
