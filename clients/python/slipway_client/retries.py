"""When to ask again, and how long to wait before: decided here, waited for by the clients.

A prediction changes nothing in the server, so it is safe to repeat.
"""

from __future__ import annotations

import email.utils
import random
import time
from dataclasses import dataclass, field

import httpx

# Busy, draining, or without an engine for the moment.
BUSY = frozenset({429, 503})
# Nobody listens, or the connection broke. A timeout is not among them: the server may be at it still.
BROKEN = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


@dataclass(frozen=True, slots=True)
class Retries:
    """How patient a client is.

    Attributes:
        attempts: tries of one request, the first among them; 1 never asks again.
        first_seconds: the pause where the server names none, doubled each time.
        most_seconds: no single pause is longer; a server that names a longer one is given up at once.
    """

    attempts: int = 4
    first_seconds: float = 0.2
    most_seconds: float = 30.0


@dataclass(slots=True)
class Patience:
    """The tries of one request."""

    retries: Retries
    tries: int = field(default=0)

    def pause(self, response: httpx.Response | None = None) -> float | None:
        """Seconds to wait before the next try; None where there is none.

        Args:
            response: what came back; None where nothing did.
        """
        self.tries += 1
        if self.tries >= self.retries.attempts:
            return None
        named = None if response is None else retry_after(response)
        if named is not None:
            return named if named <= self.retries.most_seconds else None
        # Spread, so that callers who were refused together do not come back together.
        pause = self.retries.first_seconds * 2.0 ** (self.tries - 1) * random.uniform(0.5, 1.0)
        return min(pause, self.retries.most_seconds)

    def renew(self) -> None:
        """Forgets the tries: there was progress."""
        self.tries = 0


def retry_after(response: httpx.Response) -> float | None:
    """The seconds that a response asks to wait, given as a number or as a date; None where it asks for none."""
    said = response.headers.get("Retry-After", "").strip()
    if said.isascii() and said.isdecimal():
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
