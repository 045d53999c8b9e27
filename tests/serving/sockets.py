"""Raw connections for the tests that send what no HTTP client would."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from dataclasses import dataclass
from typing import Any

# Seconds after which a server that neither answers nor hangs up has failed a test.
PATIENCE = 30.0


@dataclass(frozen=True)
class Heard:
    """What came back until the server hung up: a status (0 where there was no answer), and everything as it came."""

    status: int
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw.partition(b"\r\n\r\n")[2])


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def heard(raw: socket.socket) -> Heard:
    """Reads until the server hangs up."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while chunk := raw.recv(65536):
            said += chunk
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", said)
    return Heard(int(found[1]) if found else 0, said)


def dripped(url: str, head: bytes, drop: bytes, most: int = 1000) -> bytes:
    """Sends a head, then a drop again and again until the server hangs up; what it said.

    Fails where it has not hung up after so many drops.
    """
    with connect(url) as raw:
        raw.settimeout(0.02)
        said = b""
        with contextlib.suppress(ConnectionError):
            raw.sendall(head)
            for _ in range(most):
                raw.sendall(drop)
                with contextlib.suppress(TimeoutError):
                    said += (part := raw.recv(4096))
                    if not part:
                        return said
            raise AssertionError(f"the server took {most} drops and waits for more")
    return said


def sent(url: str, *parts: bytes) -> Heard:
    """Sends some bytes on a connection of its own; reads what comes back, also where the server hung up early."""
    with connect(url) as raw:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                raw.sendall(part)
        return heard(raw)


def request(path: str, body: bytes = b"", *headers: str, method: str = "POST", close: bool = True) -> bytes:
    """A whole request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    if close:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
