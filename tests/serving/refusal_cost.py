"""What a refusal costs a full gateway: ``python -m tests.serving.refusal_cost``. A measurement, no test.

One connection of the real protocol in front of the real application, without sockets: requests are handed to it as
bytes, answers are taken from its transport. At the connection (`serving.turnstile`) and through the door take turns;
what is told is processor time, warm, of the whole process.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from bundle.machine import commit, hardware, versions
from serving.app import make_app
from serving.connections import guarded
from serving.gateway import Gateway
from serving.settings import Settings
from serving.turnstile import Turnstile
from tests.serving.tiny_bundle import make_bundle

ROUNDS, REQUESTS, WARMUP = 9, 2000, 500
BODY = '{"text": "这家公司今年业绩大幅增长，股价创下新高。"}'.encode()
REQUEST = (
    b"POST /v1/models/news/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"X-Request-Timeout-Ms: 10000\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


class Wire(asyncio.Transport):
    """Takes what the server writes."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.said.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        raise AssertionError("the server hung up")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Caller:
    """Asks on one connection, and counts processor time."""

    def __init__(self, app: Any, protocol: type[asyncio.Protocol]) -> None:
        config = uvicorn.Config(app, log_config=None, lifespan="off", http=protocol, ws="none", server_header=False)
        config.load()
        self.wire = Wire()
        self.connection: Any = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})
        self.connection.connection_made(self.wire)

    async def ask(self, count: int) -> float:
        """Microseconds of a refusal, mean of so many."""
        begun = time.process_time()
        for _ in range(count):
            self.wire.said.clear()
            self.connection.data_received(REQUEST)
            while not self.wire.said:
                await asyncio.sleep(0)
            assert self.wire.said[0].startswith(b"HTTP/1.1 429 ")
            await asyncio.sleep(0)
        return (time.process_time() - begun) / count * 1e6


async def main(folder: Path) -> None:
    make_bundle(folder / "artifacts" / "news" / "bundle", "news", "single-label")
    gateway = Gateway(Settings(bundles=folder / "artifacts", engine="onnx"))
    await gateway.start()
    lane = gateway.classifier.admission.lane("news", 4096)
    lane._has_room = lambda *_: False  # type: ignore[method-assign]
    app = make_app(gateway)
    callers = {
        "at the connection": Caller(app, guarded(gateway.settings, Turnstile(gateway).refuse)),
        "through the door": Caller(app, guarded(gateway.settings)),
    }
    for caller in callers.values():
        await caller.ask(WARMUP)
    found: dict[str, list[float]] = {name: [] for name in callers}
    for _ in range(ROUNDS):
        for name, caller in callers.items():
            found[name].append(await caller.ask(REQUESTS))
    here = hardware()
    machine = f"{here['cpu']}, {here['cores']} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}; commit {commit()}; {versions(['uvicorn'])}")
    print(f"{ROUNDS} interleaved rounds of {REQUESTS} refusals each, {WARMUP} of warm-up; µs of processor time of one")
    for name, values in found.items():
        print(f"{name}: median {statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})")
    ratios = [door / early for early, door in zip(*found.values(), strict=True)]
    print(f"the door takes {statistics.median(ratios):.1f} times as long ({min(ratios):.1f} to {max(ratios):.1f})")
    await gateway.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(Path(scratch)))
