"""The engine for traffic: one Triton or several, which may die under it.

A call that was under way is asked once more, of another server or of the same one when it is back, since inference
changes nothing. A server that was away takes calls again only after the golden rows passed through it. Which server
gets a call is `serving.engines.endpoints`' part, how it is asked `serving.engines.triton_client`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from pathlib import Path

from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.errors import BundleError, EngineError, EngineUnavailable
from serving.catalogue import ServedModel
from serving.engines import Watcher
from serving.engines.endpoints import Endpoint, Lost, Pool
from serving.engines.triton_client import UNKNOWN, Failed, Gone, Loaded, Missing, TritonClient
from serving.engines.triton_repository import check_repository, models_in
from serving.supervisor import Supervisor

log = logging.getLogger("slipway.triton")

# Seconds between two questions to a server, and between two looks at one that is restarted here.
PROBE_EVERY, LOOK_EVERY = 1.0, 0.1
# Seconds before a server whose golden rows did not agree is proved again.
PROVE_AGAIN = 10.0
# Seconds before a call is asked again of a server that failed to compute it: its stub is being started anew.
AGAIN_SECONDS = 0.5
# Of a golden run: the one server that it is meant for, up or not.
_ONLY: ContextVar[Endpoint | None] = ContextVar("only", default=None)


class TritonEngine:
    """The engine for traffic: Triton merges the calls of all requests.

    Args:
        urls: host:port of each Triton elsewhere; empty with a supervisor.
        supervisor: runs a Triton here, or None.
        timeout_seconds: bound of one call.
        start_seconds: how long to wait for a Triton elsewhere at the start.
        hang_seconds: how long a silent Triton is waited for before it counts as dead.
        recover_seconds: how long a call that was let in waits for a Triton to come back.
    """

    name = "triton"

    def __init__(
        self,
        urls: Sequence[str],
        supervisor: Supervisor | None,
        *,
        timeout_seconds: float,
        start_seconds: float,
        hang_seconds: float,
        recover_seconds: float,
    ) -> None:
        self._urls, self.supervisor = tuple(urls), supervisor
        self._timeout, self._start_seconds = timeout_seconds, start_seconds
        self._hang, self._recover = hang_seconds, recover_seconds
        self.pool = Pool(["the Triton here"] if supervisor else self._urls)
        self._clients: dict[Endpoint, TritonClient] = {}
        # By id; those that answer, and those that were loaded beside them.
        self._models: dict[str, ServedModel] = {}
        # What was loaded at this gateway's word; a Triton elsewhere keeps what it had by itself.
        self._own: set[str] = set()
        self._rows: dict[str, int] = {}
        self._prove: Callable[[ServedModel], Awaitable[object]] | None = None
        self._watches: list[asyncio.Task[None]] = []
        # When a model was found wrong on a server.
        self._wrong: dict[tuple[Endpoint, str], float] = {}
        self.watcher: Watcher | None = None  # Triton counts its computations itself
        # Calls that were asked a second time since the start.
        self.repeated = 0
        # What a server has loaded of a model.
        self._loaded: dict[tuple[Endpoint, str], Loaded] = {}

    async def start(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.id: model for model in models}
        if self.supervisor:
            for model in models:
                await asyncio.to_thread(check_repository, model, self.supervisor.repository)
            self.supervisor.lost = self.pool.endpoints[0].out
            await self.supervisor.start(self._names())
            self._own = set(self._models)
        await self._first_up()

    def watch(self, prove: Callable[[ServedModel], Awaitable[object]]) -> None:
        self._prove = prove
        self._watches = [
            asyncio.create_task(self._keep(item), name=f"watch-{item.name}") for item in self.pool.endpoints
        ]

    async def load(self, model: ServedModel) -> None:
        if self.supervisor:
            await asyncio.to_thread(check_repository, model, self.supervisor.repository)
        if not self._up():
            raise EngineUnavailable(self.pool.endpoints[0].why, self._retry_after)
        up = self._up()
        for endpoint in up:
            await self._order(endpoint, model)
            await self._check_model(endpoint, model)
            # A version that was unloaded may have been missed by a call that came late.
            endpoint.lacking.pop(model.id, None)
        # The caller proves what it loads; of several servers that would be one.
        for endpoint in up if len(up) > 1 else ():
            for why in (await self._proved(endpoint, [model])).values():
                raise BundleError(f"{endpoint.name}: {why}")
        self._models[model.id] = model
        self._tell_supervisor()

    async def unload(self, model: ServedModel) -> None:
        self._models.pop(model.id, None)
        self._rows.pop(model.id, None)
        self._tell_supervisor()
        if model.id in self._own:
            for endpoint in self._up():
                client = await self._connected(endpoint)
                await client.unload(model, self._start_seconds, self._known(endpoint, model))
            self._own.discard(model.id)

    async def stop(self) -> None:
        self.pool.close()
        for task in self._watches:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._watches = []
        for endpoint in list(self._clients):
            await self._disconnect(endpoint)
        if self.supervisor:
            await self.supervisor.stop()

    def abandon(self) -> None:
        self.pool.close()
        if self.supervisor:
            self.supervisor.abandon()

    def check_open(self, model: ServedModel) -> None:
        if why := self.pool.why_not(model.id):
            raise EngineUnavailable(why, self._retry_after)

    async def ready(self) -> dict[str, str]:
        up = self._up()
        for endpoint, found in zip(up, await asyncio.gather(*map(self._asked, up)), strict=True):
            if isinstance(found, EngineError):
                self._noted(endpoint, found)
            else:
                # What it lacks now; what it has again is believed only after the proof.
                endpoint.lacking = found | endpoint.lacking
        return {name: why for name in self._models if (why := self.pool.why_not(name))}

    async def infer(self, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        if only := _ONLY.get():
            try:
                return await self._call(only, model, input_ids, token_type_ids)
            except Lost as lost:
                raise EngineUnavailable(lost.why) from lost
        endpoint = await self._some(model)
        try:
            return await self._call(endpoint, model, input_ids, token_type_ids)
        except Lost as lost:
            log.debug("a call of %s is asked again: %s", model.id, lost.why)
        # Once only, so that a text which ends servers does not go round among them.
        self.repeated += 1
        again = await self._some(model, avoid=endpoint)
        if again is endpoint:
            await asyncio.sleep(AGAIN_SECONDS)
        try:
            return await self._call(again, model, input_ids, token_type_ids)
        except Lost as lost:
            raise EngineUnavailable(lost.why, self._retry_after) from lost

    @property
    def troubles(self) -> tuple[int, int]:
        return self.supervisor.restarts if self.supervisor else 0, self.repeated

    async def statistics(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for endpoint in self._up():
            client = await self._connected(endpoint)
            for model in list(self._models.values()):
                with contextlib.suppress(EngineError):
                    sums = found.setdefault(model.name, {})
                    for name, value in (await client.statistics(model, self._known(endpoint, model))).items():
                        sums[name] = sums.get(name, 0.0) + value
        return found

    def rows_per_call(self, model: ServedModel) -> int:
        return self._rows.get(model.id, 1)

    def parallel(self, model: ServedModel) -> int:
        found = (self._loaded.get((item, model.id)) for item in self._up())
        return max(1, sum(loaded.instances for loaded in found if loaded))

    def describe(self) -> str:
        if self.supervisor:
            return f"Triton from pip, process {self.supervisor.pid}, log in {_short(self.supervisor.log_file)}"
        return f"Triton at {', '.join(self._urls)}"

    def _up(self) -> list[Endpoint]:
        return [item for item in self.pool.endpoints if item.state == "up"]

    @property
    def _retry_after(self) -> float:
        return self.supervisor.retry_after if self.supervisor else 1.0

    async def _some(self, model: ServedModel, avoid: Endpoint | None = None) -> Endpoint:
        """A server for a call, waited for if need be.

        Raises:
            EngineUnavailable: none came back in time.
        """
        if endpoint := await self.pool.wait(model.id, self._recover, avoid):
            return endpoint
        raise EngineUnavailable(self.pool.why_not(model.id) or "Triton does not answer", self._retry_after)

    async def _call(
        self, endpoint: Endpoint, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray
    ) -> tuple[FloatArray, ...]:
        """One call of one server.

        Raises:
            Lost: it may be asked again.
            EngineUnavailable, EngineTimeout: asking again would not help.
        """
        client = await self._connected(endpoint)
        loaded = self._known(endpoint, model)
        endpoint.asks(model.id)
        try:
            found = await endpoint.run(input_ids.size, client.infer(model, input_ids, token_type_ids, loaded))
        except Gone as gone:
            # Of an older connection this says nothing about the server that is there now.
            if self._clients.get(endpoint) is client:
                endpoint.out(gone.reason)
            raise Lost(gone.reason) from gone
        except Missing as missing:
            endpoint.lacks(model.id, missing.reason)
            raise Lost(missing.reason) from missing
        except Failed as failed:
            endpoint.hears(model.id)
            raise Lost(failed.reason) from failed
        endpoint.hears(model.id)
        return found

    async def _connected(self, endpoint: Endpoint) -> TritonClient:
        """The client of a server, made anew when a supervised one had to take another port."""
        url = self.supervisor.url if self.supervisor else endpoint.name
        client = self._clients.get(endpoint)
        if client is None or client.url != url:
            await self._disconnect(endpoint)
            client = self._clients[endpoint] = TritonClient(url, self._timeout, self._away)
        return client

    async def _disconnect(self, endpoint: Endpoint) -> None:
        if client := self._clients.pop(endpoint, None):
            await client.close()

    def _away(self) -> str:
        """What the supervised server is doing while it is not ready."""
        return f"Triton is {self.supervisor.state}" if self.supervisor and self.supervisor.state != "ready" else ""

    async def _first_up(self) -> None:
        """Returns when one server can answer for every model; the others are let in by `_keep` when they can."""
        deadline = asyncio.get_running_loop().time() + self._start_seconds
        while True:
            reasons: list[Exception] = []
            for endpoint in self.pool.endpoints:
                try:
                    lacking = await (await self._connected(endpoint)).lacking(list(self._models.values()))
                    for name, why in lacking.items():
                        raise EngineUnavailable(f"{name}: {why}")
                    for model in self._models.values():
                        await self._check_model(endpoint, model)
                except (EngineError, BundleError) as error:
                    reasons.append(error)
                else:
                    endpoint.up()
                    return
            wrong = [item for item in reasons if isinstance(item, BundleError)]
            if len(wrong) == len(reasons):
                raise wrong[0]
            if self.supervisor or asyncio.get_running_loop().time() > deadline:
                where = self.supervisor.url if self.supervisor else ", ".join(self._urls)
                raise EngineUnavailable(f"Triton at {where}: {reasons[0]}")
            await asyncio.sleep(0.5)

    async def _keep(self, endpoint: Endpoint) -> None:
        """Asks a server again and again whether it is there, puts it out and lets it in."""
        while True:
            try:
                if endpoint.state == "out":
                    await asyncio.sleep(LOOK_EVERY if self.supervisor else PROBE_EVERY)
                    if self._away():
                        endpoint.out(self._away())
                    elif not await self._let_in(endpoint):
                        await asyncio.sleep(PROVE_AGAIN)
                else:
                    await asyncio.sleep(PROBE_EVERY)
                    await self._look_at(endpoint)
            except Exception:
                # Whatever it was: a server that nobody looks at would stay out, or in, for ever.
                log.exception("watching %s failed", endpoint.name)
                await asyncio.sleep(PROBE_EVERY)

    async def _look_at(self, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        found = await self._asked(endpoint)
        if isinstance(found, EngineError):
            self._noted(endpoint, found)
        elif endpoint.state != "out":
            kept = {name: why for name, why in endpoint.lacking.items() if loop.time() < self._again(endpoint, name)}
            back = [
                self._models[name] for name in endpoint.lacking if name in self._models and name not in found | kept
            ]
            endpoint.up(kept | found | await self._proved(endpoint, back))
            # One call is seconds of work at most, and few wait at the server.
            if stuck := endpoint.unanswered(2 * self._hang):
                await self._unstick(endpoint, [self._models[name] for name in stuck if name in self._models])
        if endpoint.state == "silent":
            if self._up():
                # Others can answer now; there is no need to wait for this one.
                endpoint.drop()
            if loop.time() - endpoint.since > self._hang:
                log.error("%s has not answered for %g s and counts as dead", endpoint.name, self._hang)
                await self._give_up(endpoint, endpoint.why)

    async def _unstick(self, endpoint: Endpoint, models: Sequence[ServedModel]) -> None:
        """Looks whether models that left every call unanswered can compute at all; the server itself is alive."""
        try:
            async with asyncio.timeout(self._hang):
                wrong = await self._proved(endpoint, models)
        except TimeoutError:
            wrong = {model.id: "Triton does not compute" for model in models}
        if wrong:
            log.error("%s is stuck with %s", endpoint.name, ", ".join(wrong))
            if self.supervisor:
                await self._give_up(endpoint, "; ".join(dict.fromkeys(wrong.values())))
            else:
                endpoint.up(endpoint.lacking | wrong)

    async def _give_up(self, endpoint: Endpoint, why: str) -> None:
        """Puts a server out and lets the calls under way go elsewhere; one that runs here is started anew."""
        endpoint.out(why)
        endpoint.drop()
        await self._disconnect(endpoint)
        if self.supervisor:
            self.supervisor.kill()

    def _noted(self, endpoint: Endpoint, error: EngineError) -> None:
        """What a probe that was not answered says of a server."""
        if isinstance(error, Gone):
            endpoint.out(error.reason)
        elif endpoint.state == "up":
            endpoint.silent("Triton does not answer")

    async def _let_in(self, endpoint: Endpoint) -> bool:
        """Lets a server that was out take calls, if it is there and computes what it should; False if it does not."""
        # A channel that saw its server die waits longer and longer before it looks again.
        await self._disconnect(endpoint)
        found = await self._asked(endpoint)
        if isinstance(found, EngineError):
            endpoint.out(self._away() or "Triton does not answer")
            return True
        for name in list(found):
            # It was restarted and knows nothing of what it was told to load.
            if name in self._own and not self.supervisor:
                with contextlib.suppress(BundleError, EngineError):
                    await self._order(endpoint, self._models[name])
                    del found[name]
        there = [model for name, model in self._models.items() if name not in found]
        lacking = found | await self._proved(endpoint, there)
        if self._away() or len(lacking) == len(self._models):
            endpoint.out(self._away() or "; ".join(dict.fromkeys(lacking.values())))
            return bool(self._away())
        endpoint.up(lacking)
        return True

    async def _proved(self, endpoint: Endpoint, models: Sequence[ServedModel]) -> dict[str, str]:
        """Which models a server does not compute as their bundles promise, and why."""
        wrong: dict[str, str] = {}
        token = _ONLY.set(endpoint)
        try:
            for model in models:
                try:
                    await self._check_model(endpoint, model)
                    if self._prove:
                        await self._prove(model)
                except BundleError as error:
                    wrong[model.id] = "Triton does not compute what the bundle promises"
                    log.error("%s does not serve %s: %s", endpoint.name, model.id, error)
                except EngineError as error:
                    wrong[model.id] = str(error)
                else:
                    continue
                self._wrong[endpoint, model.id] = asyncio.get_running_loop().time()
        finally:
            _ONLY.reset(token)
        return wrong

    def _again(self, endpoint: Endpoint, name: str) -> float:
        """Event-loop time before which a model is not proved again."""
        return self._wrong.get((endpoint, name), -PROVE_AGAIN) + PROVE_AGAIN

    async def _asked(self, endpoint: Endpoint) -> dict[str, str] | EngineError:
        """What it lacks; no answer is none only if no call was answered in the meantime either."""
        begun = asyncio.get_running_loop().time()
        try:
            client = await self._connected(endpoint)
            found = await client.lacking(list(self._models.values()), lambda model: self._known(endpoint, model))
        except EngineError as error:
            if endpoint.heard > begun and not isinstance(error, Gone):
                return dict(endpoint.lacking)
            return error
        endpoint.heard = asyncio.get_running_loop().time()
        return found

    async def _order(self, endpoint: Endpoint, model: ServedModel) -> None:
        """Has a server load a version that it has not; one that it has needs no order, and might not be taken."""
        client = await self._connected(endpoint)
        if await client.lacking([model]):
            await client.load(model, self._start_seconds)
            self._own.add(model.id)

    def _names(self) -> list[str]:
        """What the Triton here loads."""
        assert self.supervisor
        repository = self.supervisor.repository
        return [name for model in self._models.values() for name in models_in(model, repository)]

    def _tell_supervisor(self) -> None:
        if self.supervisor:
            self.supervisor.models = self._names()

    async def _check_model(self, endpoint: Endpoint, model: ServedModel) -> None:
        """Compares what a server has loaded with the manifest."""
        loaded = self._loaded[endpoint, model.id] = await (await self._connected(endpoint)).check(model)
        # Of several servers the smallest counts, since a call may go to any of them.
        self._rows[model.id] = min(self._rows.get(model.id, loaded.rows), loaded.rows)

    def _known(self, endpoint: Endpoint, model: ServedModel) -> Loaded:
        """What a server had loaded of a model when it was last looked at."""
        return self._loaded.get((endpoint, model.id), UNKNOWN)


def _short(path: Path) -> str:
    """The path as seen from here, where that is shorter."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
