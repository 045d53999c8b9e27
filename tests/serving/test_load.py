"""What callers see under load: refusals in every dialect, deadlines, classes, keys, streams that wait, the cache.

A real gateway behind a real uvicorn (and the gRPC side), whose ONNX engine lets no call through until it is told to.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
import tritonclient.grpc.aio as triton
import uvicorn
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services

from bundle.decode import FloatArray
from bundle.encode import IntArray
from serving.app import make_app
from serving.catalogue import ServedModel
from serving.connections import guarded
from serving.engines.onnx_engine import OnnxEngine
from serving.gateway import Gateway
from serving.keys import hash_of
from serving.kserve_grpc import Front
from serving.settings import Settings
from serving.turnstile import Turnstile
from tests.serving.conftest import free_port
from tests.serving.test_app import DIALECTS

PREDICT = "/v1/models/news/predict"
# 31 tokens a text, of which three reach the bound.
TEXT = "大国新闻股市增长" * 3 + "好的人我他"
TIGHT = {"max_pending_tokens": 93, "engine_tokens": 1}


class Gated(OnnxEngine):
    """The ONNX engine behind a gate.

    Attributes:
        calls: how many have come to the gate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = 0
        self.failure: Exception | None = None

    async def infer(self, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        self.calls += 1
        await self.gate.wait()
        if self.failure:
            raise self.failure
        return await super().infer(model, input_ids, token_type_ids)


class Running:
    """A server that runs in the loop of the test."""

    def __init__(self, gateway: Gateway, engine: Gated, http: httpx.AsyncClient, grpc_address: str) -> None:
        self.gateway, self.engine, self.http, self.grpc = gateway, engine, http, grpc_address

    def post(self, text: object = TEXT, url: str = PREDICT, **headers: str) -> asyncio.Task[httpx.Response]:
        body = text if isinstance(text, dict) else {"inputs": text}
        return asyncio.create_task(self.http.post(url, json=body, headers=headers))

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(3000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("waited in vain")

    @property
    def admitted(self) -> int:
        lane = self.gateway.classifier.admission.lanes.get("news")
        return lane.tokens if lane else 0

    async def full(self, **headers: str) -> list[asyncio.Task[httpx.Response]]:
        """Shuts the gate and fills the model with three requests."""
        self.engine.gate.clear()
        tasks = []
        for number in range(1, 4):
            tasks.append(self.post(**headers))
            await self.until(lambda number=number: self.admitted == 31 * number)  # type: ignore[misc]
        return tasks

    async def metrics(self) -> str:
        return (await self.http.get("/metrics")).text


def serve(bundles: Path, play: Callable[[Running], Awaitable[None]], **settings: object) -> None:
    """Plays a scene with a server of these settings."""

    @asynccontextmanager
    async def running() -> AsyncIterator[Running]:
        engine = Gated()
        port = free_port()
        everything = {"bundles": bundles, "engine": "onnx", "grpc_port": port, "default_model": "news", **settings}
        gateway = Gateway(Settings(**everything), engine)  # type: ignore[arg-type]
        await gateway.start()
        engine.calls = 0
        front = Front(gateway, "127.0.0.1", port)
        await front.start()
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(gateway),
                port=0,
                log_config=None,
                lifespan="off",
                timeout_graceful_shutdown=5,
                http=guarded(gateway.settings, Turnstile(gateway).refuse),
                server_header=False,
            )
        )
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{address[1]}", timeout=60) as http:
                yield Running(gateway, engine, http, front.address)
        finally:
            engine.gate.set()
            server.should_exit = True
            await serving
            await front.stop(5)
            await gateway.stop()

    async def scene() -> None:
        async with running() as server:
            await play(server)
            server.engine.gate.set()
            await server.until(lambda: server.admitted == 0)
            lanes = server.gateway.classifier.admission.lanes.values()
            assert all(lane.turns.at_engine == lane.turns.waiting == 0 for lane in lanes)

    asyncio.run(scene())


def infer_request(text: str = TEXT) -> messages.ModelInferRequest:
    item = messages.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1])
    item.contents.bytes_contents.append(text.encode())
    return messages.ModelInferRequest(model_name="news", inputs=[item])


async def grpc_refusal(server: Running, **options: object) -> grpc.aio.AioRpcError:
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await services.GRPCInferenceServiceStub(channel).ModelInfer(infer_request(), **options)
        return refused.value


def test_a_full_model_is_429_in_every_dialect_and_those_inside_are_answered(bundles: Path) -> None:
    async def play(server: Running) -> None:
        inside = await server.full()
        refused = await server.post()
        assert refused.status_code == 429
        assert refused.json()["type"] == "urn:slipway:problem:overloaded"
        assert refused.json()["detail"] == "'news' is overloaded: 93 tokens are admitted, the limit is 93"
        assert int(refused.headers["retry-after"]) >= 1
        for name, (url, body) in DIALECTS.items():
            answer = await server.post(body, url)
            assert answer.status_code == 429, name
            assert int(answer.headers["retry-after"]) >= 1
            said = answer.json()
            assert "overloaded" in said["detail" if name.startswith("paddle") and "taskflow" in name else "error"]
            if name in ("tei", "huggingface"):
                assert said["error_type"] == "Overloaded"
        for url in ("/predict", "/"):
            assert (await server.post(url=url)).status_code == 429, "the default model is full"
        over_grpc = await grpc_refusal(server)
        assert over_grpc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(over_grpc.trailing_metadata() or ())["retry-after"]) >= 1
        assert (
            await server.post(url="/v1/models/topics/predict", text="好", **{"X-Request-Timeout-Ms": "50"})
        ).status_code == 504, "another model has a bound of its own"
        assert 'slipway_refusals_total{model="news",reason="full"} ' in await server.metrics()
        assert 'slipway_queue_tokens{model="news"} 93.0' in await server.metrics()
        server.engine.gate.set()
        assert [(await task).status_code for task in inside] == [200] * 3

    serve(bundles, play, **TIGHT)


# With this header the door has to look for itself; it asks for what is so anyway.
BY_THE_DOOR = {"X-Priority": "interactive"}


def test_a_connection_refuses_in_the_words_of_the_door(bundles: Path) -> None:
    async def play(server: Running) -> None:
        inside = await server.full()
        early, late = await server.post(), await server.post(**BY_THE_DOOR)
        assert early.status_code == late.status_code == 429
        assert early.headers.keys() == late.headers.keys()
        for same in ("content-type", "content-length", "retry-after", "x-content-type-options"):
            assert early.headers[same] == late.headers[same]
        for answer in (early, late):
            said = answer.json()
            assert said.pop("instance") == f"urn:slipway:request:{answer.headers['x-request-id']}"
            assert said == {key: value for key, value in late.json().items() if key != "instance"}
            version, trace, span, flags = answer.headers["traceparent"].split("-")
            assert (version, len(trace), len(span), flags) == ("00", 32, 16, "00")
        assert early.headers["x-request-id"] != late.headers["x-request-id"]
        again = await server.post(**{"X-Request-Id": "order-7"})
        assert again.headers["x-request-id"] == "order-7"
        assert again.json()["instance"] == "urn:slipway:request:order-7"
        metrics = await server.metrics()
        for counted in (
            'slipway_requests_total{route="none",status="429"} 3.0',
            'slipway_errors_total{kind="overloaded"} 3.0',
            'slipway_refusals_total{model="news",reason="full"} 3.0',
            'slipway_request_seconds_count{route="none"} 3.0',
        ):
            assert counted in metrics
        server.engine.gate.set()
        assert [(await task).status_code for task in inside] == [200] * 3

    serve(bundles, play, **TIGHT)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Priority": "urgent"}, 422),
        ({"X-Request-Timeout-Ms": "soon"}, 422),
        ({"X-Request-Timeout-Ms": "0"}, 422),
        ({"X-Request-Timeout-Ms": "60000"}, 429),
        ({"Traceparent": f"00-{'7' * 32}-{'3' * 16}-01"}, 429),
    ],
)
def test_a_full_model_says_what_else_is_wrong_with_a_request(
    bundles: Path, headers: dict[str, str], status: int
) -> None:
    async def play(server: Running) -> None:
        inside = await server.full()
        answer = await server.post(**headers)
        server.engine.gate.set()
        await asyncio.gather(*inside)
        assert answer.status_code == status
        if "Traceparent" in headers:
            assert answer.headers["traceparent"].startswith(f"00-{'7' * 32}-")

    serve(bundles, play, **TIGHT)


def test_a_connection_goes_on_after_it_has_refused(bundles: Path) -> None:
    async def play(server: Running) -> None:
        inside = await server.full()
        there = server.http.base_url
        reader, writer = await asyncio.open_connection(there.host, there.port)
        body = json.dumps({"inputs": TEXT}).encode()
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n".encode()

        async def answered() -> int:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
            await reader.readexactly(length)
            return int(lines[0].split()[1])

        # The answer comes before the body, which is read and forgotten.
        writer.write(head)
        assert await answered() == 429
        for place in range(0, len(body), 50):
            writer.write(body[place : place + 50])
            await writer.drain()
            await asyncio.sleep(0.01)
        # Two at once, then, with room, one that is answered.
        writer.write((head + body) * 2)
        assert [await answered(), await answered()] == [429, 429]
        server.engine.gate.set()
        assert [(await task).status_code for task in inside] == [200] * 3
        await server.until(lambda: server.admitted == 0)
        writer.write(head + body)
        assert await answered() == 200
        writer.close()

    serve(bundles, play, **TIGHT)


def test_a_request_keeps_its_own_deadline_in_every_dialect(bundles: Path) -> None:
    async def play(server: Running) -> None:
        server.engine.gate.clear()
        soon = {"X-Request-Timeout-Ms": "60"}
        late = await server.post(**soon)
        assert late.status_code == 504
        assert late.json()["detail"] == "there was no answer within 0.06 s"
        assert int(late.headers["retry-after"]) >= 1
        for name, (url, body) in DIALECTS.items():
            # text-embeddings-inference has no 504.
            assert (await server.post(body, url, **soon)).status_code == (
                424 if name in ("tei", "huggingface") else 504
            )
        for options in ({"metadata": (("x-request-timeout-ms", "60"),)}, {"timeout": 0.06}):
            assert (await grpc_refusal(server, **options)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # Of what waited in vain only the first call of each had come to the engine.
        server.engine.gate.set()
        wrong = await server.post(**{"X-Request-Timeout-Ms": "soon"})
        assert wrong.status_code == 422 and wrong.json()["field"] == "X-Request-Timeout-Ms"
        assert (await server.post(**{"X-Request-Timeout-Ms": "0"})).status_code == 422
        assert (await server.post(**{"X-Priority": "urgent"})).json()["field"] == "X-Priority"
        assert (await server.post(**{"X-Request-Timeout-Ms": "999999999", "X-Priority": "bulk"})).status_code == 200

    serve(bundles, play)


def test_a_request_may_not_ask_for_more_time_than_the_server_gives(bundles: Path) -> None:
    async def play(server: Running) -> None:
        server.engine.gate.clear()
        late = await server.post(**{"X-Request-Timeout-Ms": "600000"})
        assert late.json()["detail"] == "there was no answer within 0.2 s"

    serve(bundles, play, timeout_seconds=0.1, max_timeout_seconds=0.2)


def test_too_many_tokens_are_413_with_limit_and_value(bundles: Path) -> None:
    async def play(server: Running) -> None:
        found = await server.post([TEXT, TEXT])
        assert found.status_code == 413
        body = found.json()
        assert (body["field"], body["limit"], body["value"]) == ("inputs", 50, 62)
        assert server.engine.calls == 0

    serve(bundles, play, max_request_tokens=50)


def test_the_work_of_clients_that_went_away_is_dropped_before_it_reaches_the_engine(bundles: Path) -> None:
    async def play(server: Running) -> None:
        first, *others = await server.full()
        assert server.engine.calls == 1, "one call at the engine, the others wait for their turn"
        for task in others:
            task.cancel()  # closes the connection
        await server.until(lambda: server.admitted == 31)
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            call = services.GRPCInferenceServiceStub(channel).ModelInfer(infer_request())
            await server.until(lambda: server.admitted == 62)
            call.cancel()
            await server.until(lambda: server.admitted == 31)
        server.engine.gate.set()
        assert (await first).status_code == 200
        assert server.engine.calls == 1
        assert 'status="499"} 2.0' in await server.metrics()

    serve(bundles, play, **TIGHT)


def test_interactive_requests_pass_bulk_ones_that_came_before(bundles: Path) -> None:
    async def play(server: Running) -> None:
        server.engine.gate.clear()
        done: list[str] = []

        def post(name: str, text: object, **headers: str) -> asyncio.Task[httpx.Response]:
            task = server.post(text, **headers)
            task.add_done_callback(lambda _: done.append(name))
            return task

        bulk = post("bulk", [TEXT] * 20, **{"X-Priority": "bulk"})
        await server.until(lambda: server.engine.calls == 1)
        small = [post("small", "好") for _ in range(3)]
        await server.until(lambda: server.gateway.classifier.admission.lanes["news"].turns.waiting == 3 + 3)
        server.engine.gate.set()
        assert {(await task).status_code for task in (bulk, *small)} == {200}
        assert done[-1] == "bulk"

    serve(bundles, play, engine_tokens=1, batch_tokens=1)


def test_a_stream_waits_for_room_and_leaves_some_to_others(bundles: Path) -> None:
    async def play(server: Running) -> None:
        lines = "".join(json.dumps(TEXT[: 5 + number % 20], ensure_ascii=False) + "\n" for number in range(200))
        alone = [(await server.post(TEXT[: 5 + number])).json()["predictions"][0] for number in range(20)]
        server.engine.gate.clear()
        stream = asyncio.create_task(server.http.post(f"{PREDICT}/stream", content=lines.encode()))
        await server.until(lambda: 0 < server.admitted < 93)
        beside = server.post("好")
        await server.until(lambda: server.admitted > 46 or beside.done())
        server.engine.gate.set()
        assert (await beside).status_code == 200
        answers = [json.loads(line) for line in (await stream).text.splitlines()]
        assert [item["index"] for item in answers] == list(range(200))
        for item in answers:
            expected = alone[item["index"] % 20]
            assert item["prediction"]["label"] == expected["label"]
            assert item["prediction"]["score"] == pytest.approx(expected["score"], abs=1e-5)

    serve(bundles, play, **TIGHT)


def test_keys_guard_predictions_in_every_dialect_and_nothing_else(bundles: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        f'[[keys]]\nname = "shop"\nsha256 = "{hash_of("open sesame")}"\ntexts_per_second = 0.001\nburst = 8\n',
        encoding="utf-8",
    )

    async def play(server: Running) -> None:
        for url, body in {**DIALECTS, "native": (PREDICT, {"inputs": "好"})}.values():
            for headers in ({}, {"Authorization": "Bearer open simsim"}):
                refused = await server.post(body, url, **headers)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"] == "Bearer"
                assert "sesame" not in refused.text and "simsim" not in refused.text
        assert (await grpc_refusal(server)).code() is grpc.StatusCode.UNAUTHENTICATED
        for url in ("/health/ready", "/metrics", "/v1/models", "/docs", "/v2/models/news"):
            assert (await server.http.get(url)).status_code == 200
        known = {"Authorization": "Bearer open sesame"}
        async with triton.InferenceServerClient(server.grpc) as client:
            assert await client.is_server_ready()
        assert (await server.post(["好"] * 8, **known)).status_code == 200
        over = await server.post("好", **known)
        assert over.status_code == 429
        assert over.json()["type"] == "urn:slipway:problem:rate-limited"
        assert int(over.headers["retry-after"]) > 900
        assert 'reason="rate"' in await server.metrics()

    serve(bundles, play, keys_file=str(keys))


def test_a_full_model_tells_nobody_who_may_not_ask(bundles: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "shop"\nsha256 = "{hash_of("open sesame")}"\n', encoding="utf-8")

    async def play(server: Running) -> None:
        known = {"Authorization": "Bearer open sesame"}
        inside = await server.full(**known)
        assert (await server.post()).status_code == 401
        assert (await server.post(**known)).status_code == 429
        server.engine.gate.set()
        assert [(await task).status_code for task in inside] == [200] * 3

    serve(bundles, play, keys_file=str(keys), **TIGHT)


def test_a_cached_answer_is_the_same_and_costs_no_engine_call(bundles: Path) -> None:
    async def play(server: Running) -> None:
        first = (await server.post([TEXT, "好"])).json()["predictions"]
        calls = server.engine.calls
        again = (await server.post(["好", TEXT, TEXT])).json()["predictions"]
        assert again == [first[1], first[0], first[0]]
        assert server.engine.calls == calls
        # Another model, a text that is cut, and one that is new are other computations.
        for url, body in (
            ("/v1/models/topics/predict", {"inputs": "好"}),
            (PREDICT, {"inputs": "好", "truncate": True}),
            (PREDICT, {"inputs": "好好"}),
        ):
            before = server.engine.calls
            assert (await server.post(body, url)).status_code == 200
            assert server.engine.calls == before + 1
        metrics = await server.metrics()
        assert 'slipway_cache_total{model="news",result="hit"} 3.0' in metrics
        assert 'slipway_cache_total{model="news",result="miss"} 4.0' in metrics
        assert "slipway_cache_entries 5.0" in metrics
        server.engine.failure = RuntimeError("no")
        assert (await server.post("不")).status_code == 500
        server.engine.failure = None
        assert (await server.post("不")).status_code == 200, "an error is not kept"

    serve(bundles, play, cache_bytes=1 << 20)


def test_the_cache_stays_within_its_bytes_and_forgets_what_was_not_asked_for_long(bundles: Path) -> None:
    async def play(server: Running) -> None:
        cache = server.gateway.classifier.cache
        for number in range(60):
            await server.post(["好", f"大国{number}"])
            assert cache.bytes <= 10_000
        assert 2 < len(cache) < 60
        before = server.engine.calls
        await server.post("好")
        assert server.engine.calls == before, "what is asked for stays"
        await server.post("大国0")
        assert server.engine.calls == before + 1

    serve(bundles, play, cache_bytes=10_000)
