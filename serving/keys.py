"""API keys: who may ask, who may administer, and how much of it; read from a file or the environment.

Only hashes are kept. A key is 32 random bytes (`new_key`), which nobody can guess, so one SHA-256 of it is enough: a
slow password hash protects what people choose, and would cost every request its time. What is asked for a key is
decided by the routes' side (`serving.door`, admin routes); this module knows no HTTP but the word Bearer.

    [[keys]]
    name = "backoffice"
    sha256 = "…"              # printed by `python -m serving new-key backoffice`
    role = "user"             # or "admin", which may ask for predictions too
    texts_per_second = 50     # optional; beyond it 429
    burst = 200               # optional: texts that may come at once; default two seconds' worth
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundle.errors import AccessError, AdminOff, AdminOnly, KeyMissing, KeysInvalid, KeyUnknown, RateLimited

log = logging.getLogger("slipway.gateway")

Role = Literal["user", "admin"]

# Seconds between two looks at the file.
LOOK_SECONDS = 1.0
# Seconds' worth of texts that may come at once where a key says nothing else.
BURST_SECONDS = 2.0
_HASH = r"[0-9a-f]{64}"


class Key(BaseModel):
    """One key as the file has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    sha256: str = Field(pattern=f"^{_HASH}$")
    role: Role = "user"
    texts_per_second: float = Field(default=0.0, ge=0, description="0: as many as the server takes")
    burst: float = Field(default=0.0, ge=0, description="0: two seconds' worth")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keys: tuple[Key, ...] = Field(min_length=1, strict=False)


class Caller:
    """Who asks: the name and role of a key, and what is left of its rate.

    The rate is a token bucket (Turner 1986) of texts. A request may take more than is there, once: the debt is waited
    for by the next one. So a request larger than the bucket is answered too, and on average the rate holds.
    """

    def __init__(self, key: Key, clock: Callable[[], float] = time.monotonic) -> None:
        self.key, self.name, self.role = key, key.name, key.role
        self._rate, self._clock = key.texts_per_second, clock
        self._most = key.burst or max(1.0, BURST_SECONDS * key.texts_per_second)
        self._left, self._then = self._most, clock()

    def take(self, texts: int) -> None:
        """Takes texts from the bucket.

        Raises:
            RateLimited: it is empty; tells when it will not be.
        """
        if not self._rate:
            return
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._then) * self._rate)
        self._then = now
        if self._left < 1 - 1e-9:
            raise RateLimited(self.name, self._rate, (1 - self._left) / self._rate)
        self._left -= texts


class Keys:
    """The keys in force; a file is read again when it changes.

    A new version that is not valid, or a file that went away, is told in the log, and the last good keys stay in force:
    a slip in a file must neither lock everybody out nor let everybody in.

    Args:
        file: TOML as above, or None.
        hashes: SHA-256 (hex) of keys that the environment gives, by role; empty ones are none.
        look_seconds: between two looks at the file.

    Raises:
        KeysInvalid: the file, or a hash, is wrong at the start.
    """

    def __init__(
        self, file: Path | None = None, hashes: dict[Role, str] | None = None, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._file, self._look_seconds = file, look_seconds
        self._given = tuple(
            _checked("the environment", {"name": f"environment-{role}", "sha256": value.strip().lower(), "role": role})
            for role, value in (hashes or {}).items()
            if value
        )
        self._callers: dict[str, Caller] = {}
        self._stamp = self._now()
        self._put(read_keys(file) if file else ())
        self._looked = time.monotonic()

    @property
    def guarded(self) -> bool:
        """Whether predictions need a key: they do as soon as there is a key of a user."""
        return any(caller.role == "user" for caller in self._current().values())

    def describe(self) -> str:
        """Which keys are in force, for the start-up summary."""
        roles = [caller.role for caller in self._current().values()]
        who = "need a key" if "user" in roles else "are open to everybody"
        return f"predictions {who}; admin routes {'need an admin key' if 'admin' in roles else 'are off'}"

    def caller(self, authorization: str | None) -> Caller | None:
        """Who asks for a prediction; None where no key is needed and none was sent.

        Args:
            authorization: the header, ``Bearer KEY``.

        Raises:
            KeyMissing: a key is needed and none was sent.
            KeyUnknown: what was sent is no key of this server.
        """
        try:
            return self._find(authorization)
        except AccessError:
            # Where predictions are open, what a client sends out of habit is no reason to refuse them.
            if self.guarded:
                raise
            return None

    def admin(self, authorization: str | None) -> Caller:
        """Who asks an admin route.

        Raises:
            AdminOff: this server has no admin key, so its admin routes are off.
            KeyMissing, KeyUnknown: as of `caller`.
            AdminOnly: the key is a user's.
        """
        if not any(caller.role == "admin" for caller in self._current().values()):
            raise AdminOff
        caller = self._find(authorization)
        if caller.role != "admin":
            raise AdminOnly(caller.name)
        return caller

    def _find(self, authorization: str | None) -> Caller:
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise KeyMissing
        digest = hash_of(key.strip())
        found = None
        # Every hash is compared, each in constant time: how long it takes tells nothing of where they differ.
        for known, caller in self._current().items():
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise KeyUnknown
        return found

    def _current(self) -> dict[str, Caller]:
        """Callers by the SHA-256 of their keys."""
        now = time.monotonic()
        if self._file and now - self._looked >= self._look_seconds:
            self._looked = now
            stamp = self._now()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._put(read_keys(self._file))
                except KeysInvalid as error:
                    log.error("%s; the keys before it stay in force", error)
                else:
                    log.warning("%s: %d keys are in force", self._file, len(self._callers))
        return self._callers

    def _put(self, keys: tuple[Key, ...]) -> None:
        # A key that did not change keeps its bucket: a new file must not give everybody a full one.
        self._callers = {
            key.sha256: known if (known := self._callers.get(key.sha256)) and known.key == key else Caller(key)
            for key in (*self._given, *keys)
        }

    def _now(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size


def read_keys(file: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        KeysInvalid: it cannot be read, is no TOML, a field is wrong, or two keys share a name or a hash.
    """
    try:
        parsed = _File.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise KeysInvalid(file, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise KeysInvalid(file, f"not TOML: {error}") from error
    except ValidationError as error:
        raise KeysInvalid(file, _first(error)) from error
    for field in ("name", "sha256"):
        values = [getattr(key, field) for key in parsed.keys]
        if twice := {value for value in values if values.count(value) > 1}:
            raise KeysInvalid(file, f"two keys have the same {field} {min(twice)!r}")
    return parsed.keys


def new_key() -> str:
    """A key that nobody can guess: 32 random bytes as text without spaces."""
    return secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What is kept of a key: its SHA-256 in lower-case hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _checked(where: str, fields: dict[str, str]) -> Key:
    try:
        return Key.model_validate(fields)
    except ValidationError as error:
        raise KeysInvalid(where, _first(error)) from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    # What was written there is not told: it may be a key that somebody forgot to hash.
    if place.endswith("sha256"):
        return f"{place}: must be the 64 hex digits of a key's SHA-256; `python -m serving new-key` prints them"
    return f"{place}: {first['msg']}"
