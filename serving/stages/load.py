"""A load generator that costs little: blocking sockets and one selector; of an answer only status and length are read.

    python -m serving.stages.load < plan.json

The plan is ``{"address": [host, port], "path": …, "bodies": [[…bytes as text…]], "clients": n}``: a closed loop, each
client sends its next request when the last was answered, until all bodies were sent once. It prints one JSON line:
seconds in all, milliseconds of each request in the order of the bodies, how many were not answered 200, and the CPU
seconds of this process while it sent.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from typing import Any

_END = b"\r\n\r\n"


class _Client:
    """One connection: at most one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.read = bytearray()
        self.place, self.sent = -1, 0.0

    def send(self, place: int, request: bytes) -> None:
        self.place, self.sent = place, time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> int:
        """Reads what has come; the status when the answer is whole, else 0.

        Raises:
            ConnectionError: the server closed the connection.
        """
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise ConnectionError("the server closed a connection")
        self.read += piece
        head = self.read.find(_END)
        if head < 0:
            return 0
        lower = bytes(self.read[:head]).lower()
        _, _, length = lower.partition(b"content-length:")
        if len(self.read) < head + len(_END) + int(length.split(b"\r\n", 1)[0]):
            return 0
        status = int(lower.split(b" ", 2)[1])
        self.read.clear()
        return status


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Sends every body once; see the module."""
    host, port = plan["address"]
    requests = [_request(plan["path"], f"{host}:{port}", body.encode()) for body in plan["bodies"]]
    clients = [_Client((host, port)) for _ in range(min(plan["clients"], len(requests)))]
    times, wrong, done, following = [0.0] * len(requests), 0, 0, iter(range(len(requests)))
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        busy, begun = time.process_time(), time.perf_counter()
        for client in clients:
            place = next(following)
            client.send(place, requests[place])
        while done < len(requests):
            for key, _ in selector.select():
                client = key.data
                status = client.receive()
                if not status:
                    continue
                times[client.place] = time.perf_counter() - client.sent
                wrong += status != 200
                done += 1
                if (place := next(following, -1)) >= 0:
                    client.send(place, requests[place])
                else:  # a server may close a connection that is idle
                    selector.unregister(client.socket)
        seconds, busy = time.perf_counter() - begun, time.process_time() - busy
    for client in clients:
        client.socket.close()
    return {"seconds": seconds, "ms": [round(item * 1000, 4) for item in times], "wrong": wrong, "cpu_seconds": busy}


def _request(path: str, host: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + _END + body


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
