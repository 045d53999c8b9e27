"""Versions in one process: what a start serves, what survives it, who may change it, and what goes first."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.errors import BundleError, EngineUnavailable
from export.versions import keep
from serving import catalogue
from serving.admission import Admission
from serving.app import make_app
from serving.catalogue import ServedModel
from serving.classifier import Classifier, Text
from serving.decisions import Decision, Decisions
from serving.engines.onnx_engine import OnnxEngine
from serving.gateway import Gateway
from serving.keys import hash_of
from serving.running import UNBOUND
from serving.settings import Settings
from serving.shadow import Behind, Shadow
from serving.versions import place_of
from tests.serving.tiny_bundle import make_bundle
from tests.serving.versions_tree import make_versions

ADMIN, USER = ({"Authorization": f"Bearer {key}"} for key in ("the administrator's", "a user's"))
ALL = [Text("大国新闻"), Text("股市增长")]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_versions(tmp_path_factory.mktemp("decisions"), broken=False)


@pytest.fixture
def bundles(tree: Path, tmp_path: Path) -> Path:
    """The versions 1, 2 and 3 of news, of which nothing was decided yet."""
    shutil.copytree(tree, tmp_path / "artifacts")
    (tmp_path / "artifacts" / "versions.json").unlink()
    return tmp_path / "artifacts"


@asynccontextmanager
async def started(bundles: Path, engine: OnnxEngine | None = None, **settings: object) -> AsyncIterator[Gateway]:
    keys = {"admin_key_sha256": hash_of("the administrator's"), "user_key_sha256": hash_of("a user's")}
    gateway = Gateway(Settings(bundles=bundles, engine="onnx", **{**keys, **settings}), engine)  # type: ignore[arg-type]
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


def client_of(gateway: Gateway) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_app(gateway), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def test_without_a_decision_the_highest_version_is_served_and_a_broken_one_is_left_out(bundles: Path) -> None:
    said: list[str] = []
    assert catalogue.load(bundles, said.append)["news"].version == 3 and not said

    (bundles / "news" / "versions" / "3" / "bundle.json").write_text("{", encoding="utf-8")
    assert catalogue.load(bundles, said.append)["news"].version == 2
    assert len(said) == 1 and "versions/3/bundle.json" in said[0]


def test_the_working_bundle_is_a_version_of_its_own_until_it_is_kept(bundles: Path) -> None:
    said: list[str] = []
    working = make_bundle(bundles / "news" / "bundle", "news", "single-label", seed=9, version=4)
    assert catalogue.load(bundles)["news"].bundle.root == working.root
    version = keep(working)
    assert catalogue.load(bundles, said.append)["news"].bundle.root.samefile(version.root) and not said

    working.save(working.manifest.model_copy(update={"scores": {"dev": {"accuracy": 0.5}}}))
    assert catalogue.load(bundles, said.append)["news"].bundle.root.samefile(version.root)
    assert "another version 4" in said[0] and "export version" in said[0]


def test_a_promotion_survives_a_restart_and_so_does_the_way_back(bundles: Path) -> None:
    async def go() -> list[tuple[int, int | None]]:
        found = []
        async with started(bundles) as gateway:
            await gateway.versions.promote("news", 1, "test")
            await gateway.versions.promote("news", 2, "test")
            await gateway.versions.promote("news", 1, "test")
        for change in (False, True, False):
            async with started(bundles) as gateway:
                if change:
                    await gateway.versions.rollback("news", "test")
                line = gateway.versions.line("news")
                assert line is not None and gateway.models["news"].version == line.serving
                found.append((line.serving, line.previous))
        return found

    assert asyncio.run(go()) == [(1, 2), (2, 1), (2, 1)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "versions.json: document"),
        ('{"news": {"serving": "1"}}', "versions.json: news.serving"),
        ('{"news": {"serving": 9}}', "version 9 of 'news' was promoted and is not there any more (there is 1, 2, 3)"),
    ],
)
def test_a_start_refuses_a_decision_that_it_cannot_follow(bundles: Path, content: str, said: str) -> None:
    (bundles / "versions.json").write_text(content, encoding="utf-8")

    async def go() -> None:
        async with started(bundles):
            pass

    with pytest.raises(BundleError) as refusal:
        asyncio.run(go())
    assert said in str(refusal.value)


def test_a_promotion_that_cannot_be_written_down_is_made_and_says_so(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    async def go() -> Any:
        file = str(tmp_path / "file" / "versions.json")
        async with started(bundles, versions_file=file) as gateway, client_of(gateway) as http:
            return (await http.post("/v1/admin/models/news/versions/2:promote", headers=ADMIN)).json()

    said = asyncio.run(go())
    assert (said["serving"], said["survives"]) == (2, False)


def test_every_admin_route_needs_an_administrators_key(bundles: Path) -> None:
    bodies = {"canary": {"version": 2, "percent": 5}, "shadow": {"version": 2}}

    async def ask(**settings: object) -> list[tuple[str, list[int]]]:
        found = []
        async with started(bundles, **settings) as gateway, client_of(gateway) as http:
            paths = (await http.get("/openapi.json")).json()["paths"]
            for path, methods in paths.items():
                for method in methods if path.startswith("/v1/admin/") else ():
                    address = path.replace("{model}", "news").replace("{version}", "2")
                    body = bodies.get(path.rpartition("/")[2])
                    statuses = [
                        (await http.request(method, address, json=body, headers=headers)).status_code
                        for headers in ({}, {"Authorization": "Bearer nobody's"}, USER)
                    ]
                    found.append((f"{method} {path}", statuses))
            assert list(gateway.versions.line("news").loaded) == [3]  # type: ignore[union-attr]
        return found

    refused = asyncio.run(ask())
    assert len(refused) >= 9
    assert all(statuses == [401, 401, 403] for _, statuses in refused), refused
    # A server without an administrator's key has no administration.
    off = asyncio.run(ask(admin_key_sha256="", user_key_sha256=""))
    assert all(statuses == [403, 403, 403] for _, statuses in off), off


def test_a_version_in_use_is_not_unloaded_and_can_be_asked_again_after(bundles: Path) -> None:
    async def go() -> tuple[Any, Any, Any]:
        async with started(bundles, timeout_seconds=0.2) as gateway, client_of(gateway) as http:
            await gateway.versions.load("news", 2, "test")
            two = gateway.versions.find("news", "2")
            with gateway.versions.using(two):
                refused = await http.post("/v1/admin/models/news/versions/2:unload", headers=ADMIN)
            still = await http.get("/v2/models/news/versions/2/ready")
            done = await http.post("/v1/admin/models/news/versions/2:unload", headers=ADMIN)
            with pytest.raises(EngineUnavailable, match="not loaded"):
                await gateway.answer(two, ALL)
            return refused, still, done

    refused, still, done = asyncio.run(go())
    assert refused.status_code == 409 and "1 requests or streams still use it" in refused.json()["detail"]
    assert still.status_code == 200
    assert done.status_code == 200 and [item["state"] for item in done.json()["versions"]] == [
        "kept",
        "kept",
        "serving",
    ]


def test_the_version_before_the_previous_one_is_let_go_of(bundles: Path) -> None:
    async def go() -> list[int]:
        async with started(bundles) as gateway:
            for number in (2, 1):
                await gateway.versions.promote("news", number, "test")
            line = gateway.versions.line("news")
            assert line is not None
            return sorted(line.loaded)

    assert asyncio.run(go()) == [1, 2], "3 served first, and nobody can roll back to it any more"


class Counting(OnnxEngine):
    """Notes the version that computes."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: list[int] = []

    async def infer(self, model: ServedModel, *arrays: Any) -> Any:
        self.versions.append(model.version)
        return await super().infer(model, *arrays)


def test_a_shadow_waits_until_nobody_is_answered_and_is_dropped_first(bundles: Path) -> None:
    async def go() -> None:
        engine = Counting()
        async with started(bundles, engine) as gateway:
            await gateway.versions.load("news", 2, "test")
            serving, second = gateway.models["news"], gateway.versions.find("news", "2")
            behind = Classifier(
                Behind(engine, gateway.traffic),
                parallel_calls=1,
                timeout_seconds=60,
                workers=1,
                admission=Admission(UNBOUND),
            )
            shadow = Shadow(serving, second, behind, gateway.telemetry, room=len("大国新闻") * 4)
            line = gateway.versions.line("news")
            assert line is not None
            line.shadow, seen = shadow, shadow.agreement
            engine.versions.clear()
            with gateway.traffic:  # somebody is being answered all the time
                for _ in range(6):
                    await gateway.answer(serving, ALL[:1])
                await asyncio.sleep(0.05)
                assert set(engine.versions) == {3}, "the shadow computed while somebody was answered"
                assert (seen.counts["dropped"], seen.texts) == (2, 0)
            while seen.texts < 4:
                await asyncio.sleep(0.01)
            assert seen.counts["dropped"] == 2
            assert 2 in engine.versions

    asyncio.run(go())


def test_a_shadow_that_fails_is_counted_and_nobody_else_notices(bundles: Path) -> None:
    class Broken(OnnxEngine):
        async def infer(self, model: ServedModel, *arrays: Any) -> Any:
            if model.version == 2 and self.broken:
                raise EngineUnavailable("on purpose")
            return await super().infer(model, *arrays)

        broken = False

    async def go() -> tuple[int, int]:
        engine = Broken()
        async with started(bundles, engine) as gateway:
            await gateway.versions.set_shadow("news", 2, "test")
            engine.broken = True
            answers = await gateway.answer(gateway.models["news"], ALL)
            line = gateway.versions.line("news")
            assert line is not None and line.shadow is not None
            while not line.shadow.agreement.counts["failed"]:
                await asyncio.sleep(0.01)
            return len(answers.answers), line.shadow.agreement.counts["failed"]

    assert asyncio.run(go()) == (2, 2)


def test_requests_are_spread_evenly_and_differently_for_each_canary() -> None:
    places = [place_of(str(number).encode(), "news@2") for number in range(2000)]
    assert all(0 <= place < 100 for place in places)
    assert 0.22 < sum(place < 25 for place in places) / len(places) < 0.28
    other = [place_of(str(number).encode(), "news@3") for number in range(2000)]
    assert 0.03 < sum(a < 25 and b < 25 for a, b in zip(places, other, strict=True)) / len(places) < 0.09


def test_the_file_of_decisions_is_small_and_plain(bundles: Path) -> None:
    async def go() -> None:
        async with started(bundles) as gateway:
            await gateway.versions.promote("news", 2, "test")

    asyncio.run(go())
    assert json.loads((bundles / "versions.json").read_text()) == {"news": {"serving": 2, "previous": 3}}


def test_what_another_gateway_decided_about_another_model_is_not_lost(tmp_path: Path) -> None:
    one, other = Decisions(tmp_path / "versions.json"), Decisions(tmp_path / "versions.json")
    one.read()
    assert other.keep("ner", Decision(serving=4))
    assert one.keep("news", Decision(serving=2, previous=1))
    other.read()
    assert other.made == {"ner": Decision(serving=4), "news": Decision(serving=2, previous=1)}
