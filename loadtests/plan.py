"""The settings of one run, typed and bounded; written as JSON for the Locust process to read."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from loadtests.errors import LoadTestError, RemoteRefused

# Users of a closed loop, and connections of an open one, when the caller names none.
CLOSED_USERS = 8
OPEN_USERS = 64
# An open loop sends its backlog for this long after its last arrival; what is left then counts as unsent.
DRAIN_SECONDS = 5.0


class Plan(BaseModel):
    """Everything that decides what a run sends.

    Closed loop (``rate`` is 0): ``users`` callers, each sending its next request when the last one is answered.
    Open loop: ``rate`` requests per second arrive whether or not the gateway keeps up, over at most ``users``
    connections.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    model: str
    texts: Path
    users: int = Field(default=CLOSED_USERS, ge=1, le=2000, description="callers, or connections of an open loop")
    rate: float = Field(default=0.0, ge=0, le=100_000, description="requests per second; 0 is a closed loop")
    arrivals: Literal["steady", "poisson"] = "steady"
    seconds: float = Field(default=30.0, gt=0, le=3600, description="measured time, after the warm-up")
    warmup: float = Field(default=3.0, ge=0, le=600, description="seconds sent but not counted")
    max_requests: int = Field(default=200_000, ge=1, le=10_000_000, description="the run ends there at the latest")
    timeout: float = Field(default=30.0, gt=0, le=600, description="seconds after which a request has failed")
    seed: int = 13
    short_share: float = Field(default=0.7, ge=0, le=1, description="share of requests that are one sentence")
    max_chars: int = Field(default=5000, ge=1, description="longer texts are left out, and counted")

    @property
    def url(self) -> str:
        """Where requests go, relative to the host."""
        return f"/v1/models/{self.model}/predict"

    @property
    def span(self) -> float:
        """Seconds from the first request to the last intended start."""
        return self.warmup + self.seconds


def check_host(host: str, *, allow_remote: bool) -> str:
    """The host without a trailing slash, if it may be loaded.

    Raises:
        LoadTestError: it is not an address such as ``http://127.0.0.1:8000``.
        RemoteRefused: it is not this machine and ``allow_remote`` is false.
    """
    try:
        parts = urlsplit(host)
        named, _ = parts.hostname, parts.port
    except ValueError as error:
        raise LoadTestError(f"--host {host}: {error}") from error
    if parts.scheme not in ("http", "https") or not named or parts.path.strip("/") or parts.query or parts.fragment:
        raise LoadTestError(f"--host {host}: write it as http://127.0.0.1:8000, without a path")
    if not allow_remote and not is_loopback(named):
        raise RemoteRefused(host)
    return host.rstrip("/")


def is_loopback(name: str) -> bool:
    """Whether a host name or address can only mean this machine; no name is looked up."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
