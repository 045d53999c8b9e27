"""The loaded versions of each model: which one answers, which one is kept for a rollback, which ones are on trial.

A version takes work only after its checksums, its tokenizer and its golden rows were checked on the live engine; until
then, and whenever that fails, the one before it goes on. A change of what answers is one assignment on the event loop,
so every request is answered by exactly one version, and none has to wait for a change.
Who may change this, and how it is said over HTTP, is for `serving.routes.admin`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bundle.errors import (
    BundleError,
    EngineError,
    EngineUnavailable,
    RulesInvalid,
    SlipwayError,
    VersionRefused,
    VersionUnknown,
)
from bundle.manifest import Parity
from bundle.versions import home_of, kept
from serving.catalogue import ServedModel
from serving.decisions import Decision, Decisions
from serving.engines import Engine
from serving.shadow import Shadow

log = logging.getLogger("slipway.versions")

# Seconds between two looks whether a version that is unloaded is still in use.
LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version that can answer, and how it did on its golden rows when it was loaded."""

    model: ServedModel
    live: Parity


@dataclass(frozen=True, slots=True)
class Canary:
    """A version that answers a share of the requests, 0 to 100 percent."""

    version: int
    percent: float


@dataclass(slots=True)
class Line:
    """The versions of one model.

    Attributes:
        serving: the version that answers.
        previous: what a rollback serves; it may have to be loaded for that.
        survives: whether the last decision is written down for a restart.
    """

    home: Path
    serving: int
    previous: int | None = None
    loaded: dict[int, Loaded] = field(default_factory=dict)
    canary: Canary | None = None
    shadow: Shadow | None = None
    survives: bool = True

    def roles(self, version: int) -> list[str]:
        """What a version is there for."""
        trial = self.canary.version if self.canary else None
        beside = self.shadow.second.version if self.shadow else None
        places = {"serving": self.serving, "previous": self.previous, "canary": trial, "shadow": beside}
        return [role for role, number in places.items() if number == version]


class Versions:
    """All models' versions, and the changes to them, one at a time.

    Args:
        models: what answers, by name; kept up to date here.
        opened: opens a version that was kept of a model (its home, name and number), with its checksums compared.
        checked: passes a version's golden rows through the engine.
        shadowed: makes the shadow of a first version by a second.
        patience: seconds that an unloading waits for requests that still use the version.
    """

    def __init__(
        self,
        models: dict[str, ServedModel],
        engine: Engine,
        decisions: Decisions,
        *,
        opened: Callable[[Path, str, int], ServedModel],
        checked: Callable[[ServedModel], Awaitable[Parity]],
        shadowed: Callable[[ServedModel, ServedModel], Shadow],
        patience: float,
    ) -> None:
        self._models, self._engine, self._decisions = models, engine, decisions
        self._opened, self._checked, self._shadowed = opened, checked, shadowed
        self._patience = patience
        self._lines: dict[str, Line] = {}
        self._uses: Counter[str] = Counter()
        self._changing = asyncio.Lock()

    def begin(self, measured: dict[str, Parity]) -> None:
        """Takes over the models that the start has loaded and checked."""
        made = self._decisions.made
        for name, model in self._models.items():
            line = Line(home_of(model.bundle.root), model.version)
            line.loaded[model.version] = Loaded(model, measured[name])
            if name in made:
                line.previous = made[name].previous
            self._lines[name] = line

    async def end(self) -> None:
        """Ends the trials; can be called twice."""
        for line in self._lines.values():
            await self._end_trials(line)

    # What a request asks

    def line(self, name: str) -> Line | None:
        """The versions of a model that is served; None before the start has ended."""
        return self._lines.get(name)

    def find(self, name: str, version: str) -> ServedModel:
        """A version that is loaded, for a caller who names it.

        Raises:
            VersionUnknown: it is not.
        """
        loaded = self._lines[name].loaded if name in self._lines else {}
        for number, item in loaded.items():
            if str(number) == version:
                return item.model
        raise VersionUnknown(name, version, [str(number) for number in sorted(loaded)])

    def choose(self, name: str, request: bytes) -> ServedModel:
        """The version that answers a request: the canary for its share of them, else the one that serves.

        Args:
            request: what tells it from others, such as its body; the same bytes are always answered by the same
                version, while nothing is changed.
        """
        line = self._lines.get(name)
        if line and line.canary and place_of(request, f"{name}@{line.canary.version}") < line.canary.percent:
            return line.loaded[line.canary.version].model
        return self._models[name]

    @contextlib.contextmanager
    def using(self, model: ServedModel) -> Iterator[None]:
        """While a request uses a version, it is not unloaded."""
        self._uses[model.id] += 1
        try:
            yield
        finally:
            self._uses[model.id] -= 1

    def uses(self, model: ServedModel) -> int:
        """Requests and streams that use a version now."""
        return self._uses[model.id]

    # What an administrator asks; ``by`` says who did, for the log

    async def load(self, name: str, version: int, by: str) -> None:
        """Loads a kept version beside those that are loaded.

        Raises:
            VersionUnknown: there is none.
            VersionRefused: it is broken or does not compute what it promises.
            EngineError: the engine cannot do so now.
        """
        async with self._changing:
            await self._load(name, version, by)

    async def promote(self, name: str, version: int, by: str) -> None:
        """Lets a version answer from now on, loading it first if need be; trials end.

        Raises:
            VersionUnknown, VersionRefused, EngineError: as of `load`.
        """
        async with self._changing:
            await self._promote(name, version, by)

    async def rollback(self, name: str, by: str) -> None:
        """Promotes the version that served before.

        Raises:
            VersionUnknown, VersionRefused, EngineError: as of `load`, or there is none before.
        """
        async with self._changing:
            line = self._lines[name]
            if line.previous is None:
                raise VersionRefused(name, line.serving, "there is no version before it to roll back to")
            await self._promote(name, line.previous, by)

    async def unload(self, name: str, version: int, by: str) -> None:
        """Lets go of a version once no request uses it.

        Raises:
            VersionUnknown: it is not loaded.
            VersionRefused: it serves, is on trial, or is still in use after the patience.
            EngineError: the engine cannot do so now.
        """
        async with self._changing:
            line = self._lines[name]
            item = line.loaded.get(version)
            if item is None:
                raise VersionUnknown(name, str(version), [str(number) for number in sorted(line.loaded)], "loaded")
            if roles := [role for role in line.roles(version) if role != "previous"]:
                raise VersionRefused(name, version, f"it is {' and '.join(roles)}; another must be that first")
            # From here on nobody new can ask for it.
            del line.loaded[version]
            try:
                await self._until_unused(item.model)
            except BaseException:
                line.loaded[version] = item
                raise
            await self._engine.unload(item.model)
            log.info("%s: version %d is unloaded, by %s", name, version, by)

    async def set_canary(self, name: str, canary: Canary | None, by: str) -> None:
        """Lets a version answer a share of the requests; None ends that.

        Raises:
            VersionUnknown, VersionRefused, EngineError: as of `load`, or the version serves already.
        """
        async with self._changing:
            line = self._lines[name]
            if canary is not None:
                await self._load_for_trial(name, canary.version, by)
            line.canary = canary
            said = f"version {canary.version} answers {canary.percent:g}%" if canary else "no canary any more"
            log.info("%s: %s, by %s", name, said, by)

    async def set_shadow(self, name: str, version: int | None, by: str) -> None:
        """Lets a version compute beside the one that serves, and compares them; None ends that.

        Raises:
            VersionUnknown, VersionRefused, EngineError: as of `load`, or the version serves already.
        """
        async with self._changing:
            line = self._lines[name]
            if version is not None:
                await self._load_for_trial(name, version, by)
            if line.shadow:
                await line.shadow.end()
                line.shadow = None
            if version is not None:
                line.shadow = self._shadowed(line.loaded[line.serving].model, line.loaded[version].model)
            said = f"version {version} is the shadow" if version is not None else "no shadow any more"
            log.info("%s: %s, by %s", name, said, by)

    def on_disk(self, name: str) -> list[int]:
        """The numbers of the versions that were kept of a model, whole or not."""
        return list(kept(self._lines[name].home))

    async def _load(self, name: str, version: int, by: str) -> Loaded:
        line = self._lines[name]
        if known := line.loaded.get(version):
            return known
        try:
            model = await asyncio.to_thread(self._opened, line.home, name, version)
            self._check_kind(self._models[name], model)
            live = await self._proved(model)
        except (BundleError, RulesInvalid, OSError) as error:
            reason = str(error).replace(f"{line.home}/", "")
            log.error("%s: version %d is refused, asked for by %s: %s", name, version, by, error)
            raise VersionRefused(name, version, reason) from error
        line.loaded[version] = loaded = Loaded(model, live)
        log.info(
            "%s: version %d is loaded, by %s; %d golden rows agree, largest difference %.1e",
            name,
            version,
            by,
            live.rows,
            live.max_abs,
        )
        return loaded

    async def _proved(self, model: ServedModel) -> Parity:
        """Loads a version and passes its golden rows; one that fails is unloaded again."""
        try:
            await self._engine.load(model)
            return await self._checked(model)
        except BaseException as error:
            await self._give_up(model)
            if isinstance(error, SlipwayError) or not isinstance(error, Exception):
                raise
            # A graph that loads and cannot be run: runtimes have many errors for that.
            log.exception("%s: version %d cannot compute its golden rows", model.name, model.version)
            raise BundleError("its golden rows cannot be computed; the log of the server says why") from error

    async def _load_for_trial(self, name: str, version: int, by: str) -> None:
        if version == self._lines[name].serving:
            raise VersionRefused(name, version, "it serves already; a trial needs another one")
        await self._load(name, version, by)

    async def _promote(self, name: str, version: int, by: str) -> None:
        line = self._lines[name]
        if version == line.serving:
            return
        loaded = await self._load(name, version, by)
        if reason := (await self._engine.ready()).get(loaded.model.id):
            raise EngineUnavailable(reason)
        await self._end_trials(line)
        old, forgotten = line.serving, line.previous
        self._models[name] = loaded.model
        line.serving, line.previous = version, old
        line.survives = await asyncio.to_thread(self._decisions.keep, name, Decision(serving=version, previous=old))
        log.info("%s: version %d is promoted, %d stays for a rollback, by %s", name, version, old, by)
        if forgotten in line.loaded and not line.roles(forgotten) and not self.uses(line.loaded[forgotten].model):
            # Nobody can roll back to it any more; whoever wants it loads it again.
            await self._give_up(line.loaded.pop(forgotten).model)

    def _check_kind(self, serving: ServedModel, model: ServedModel) -> None:
        kind, wanted = model.manifest.task.kind, serving.manifest.task.kind
        if kind != wanted:
            raise BundleError(f"its task is {kind}, and callers of {model.name!r} expect the answers of {wanted}")

    async def _give_up(self, model: ServedModel) -> None:
        try:
            await self._engine.unload(model)
        except EngineError as error:
            log.warning("%s: version %d could not be unloaded: %s", model.name, model.version, error)

    async def _end_trials(self, line: Line) -> None:
        line.canary = None
        if line.shadow:
            shadow, line.shadow = line.shadow, None
            await shadow.end()

    async def _until_unused(self, model: ServedModel) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while count := self.uses(model):
            if loop.time() > deadline:
                raise VersionRefused(model.name, model.version, f"{count} requests or streams still use it")
            await asyncio.sleep(LOOK_SECONDS)


def place_of(request: bytes, salt: str) -> float:
    """Where a request stands among all, 0 to 100: evenly spread, and always the same for the same bytes."""
    digest = hashlib.blake2b(request, digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100
