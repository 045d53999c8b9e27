"""The application without a socket, with an engine that fails on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from bundle.decode import FloatArray
from bundle.encode import IntArray
from bundle.errors import EngineTimeout, EngineUnavailable
from serving.app import make_app
from serving.catalogue import ServedModel
from serving.engines.onnx_engine import OnnxEngine
from serving.gateway import Gateway
from serving.settings import Settings


class Moody(OnnxEngine):
    """The ONNX engine, until it is told to fail; notes the shape of each call."""

    failure: Exception | None = None
    # Seconds that a call takes longer.
    delay = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    async def infer(self, model: ServedModel, input_ids: IntArray, token_type_ids: IntArray) -> tuple[FloatArray, ...]:
        self.shapes.append(input_ids.shape)
        if self.failure:
            raise self.failure
        await asyncio.sleep(self.delay)
        return await super().infer(model, input_ids, token_type_ids)


async def _asked(
    bundles: Path, requests: Sequence[tuple[str, str, object]], failure: Exception | None, **settings: object
) -> tuple[list[httpx.Response], Moody]:
    engine = Moody()
    gateway = Gateway(Settings(bundles=bundles, engine="onnx", **settings), engine)  # type: ignore[arg-type]
    await gateway.start()
    engine.failure = failure
    engine.shapes.clear()
    transport = httpx.ASGITransport(make_app(gateway), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answers = [await client.request(method, url, json=body) for method, url, body in requests]
    await gateway.stop()
    return answers, engine


def asked(
    bundles: Path, *requests: tuple[str, str, object], failure: Exception | None = None, **settings: object
) -> tuple[list[httpx.Response], Moody]:
    return asyncio.run(_asked(bundles, requests, failure, **settings))


PREDICT = ("POST", "/v1/models/news/predict", {"inputs": "好"})


def test_an_unknown_fault_is_a_500_with_an_id_and_nothing_internal(
    bundles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (answer,), _ = asked(bundles, PREDICT, failure=RuntimeError("the secret inside"))

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text and "RuntimeError" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["detail"]
    assert answer.headers["x-request-id"] in caplog.text and "the secret inside" in caplog.text


def test_an_engine_that_is_down_is_a_503_with_retry_after(bundles: Path) -> None:
    (answer,), _ = asked(bundles, PREDICT, failure=EngineUnavailable("Triton went away", 2.5))

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["detail"] == "Triton went away"


DIALECTS = {
    "kserve": (
        "/v2/models/news/infer",
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["好"]}]},
    ),
    "tei": ("/models/news/predict", {"inputs": "好"}),
    "huggingface": ("/models/news", {"inputs": "好"}),
    "paddlenlp": ("/models/news", {"data": {"text": "好"}}),
    "paddlenlp taskflow": ("/taskflow/news", {"data": {"text": "好"}}),
}
UNKNOWN, DOWN, LATE = RuntimeError("the secret inside"), EngineUnavailable("Triton went away", 2.5), EngineTimeout(3)


@pytest.mark.parametrize(
    ("dialect", "failure", "status", "more"),
    [
        ("kserve", UNKNOWN, 500, {}),
        ("kserve", DOWN, 503, {}),
        ("kserve", LATE, 504, {}),
        ("tei", UNKNOWN, 500, {"error_type": "Backend"}),
        ("tei", DOWN, 503, {"error_type": "Unhealthy"}),
        ("tei", LATE, 424, {"error_type": "Backend"}),
        ("huggingface", UNKNOWN, 500, {"error_type": "Backend"}),
        ("huggingface", DOWN, 503, {"error_type": "Unhealthy"}),
        ("paddlenlp", UNKNOWN, 500, {}),
        ("paddlenlp", DOWN, 503, {}),
        ("paddlenlp", LATE, 504, {}),
        ("paddlenlp taskflow", DOWN, 503, {}),
    ],
)
def test_a_fault_leaves_in_the_dialects_own_shape(
    bundles: Path, dialect: str, failure: Exception, status: int, more: dict[str, str]
) -> None:
    (answer,), _ = asked(bundles, ("POST", *DIALECTS[dialect]), failure=failure)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    sentence = body.pop("detail" if dialect.startswith("paddlenlp") else "error")
    assert body == more
    assert answer.headers.get("retry-after") == {DOWN: "3", LATE: "1"}.get(failure)
    if failure is UNKNOWN:
        assert "secret" not in answer.text and answer.headers["x-request-id"] in sentence
    else:
        assert sentence == str(failure)


@pytest.mark.parametrize(
    ("text", "delay"),
    # A million characters take seconds to tokenize; a thousand calls of a slow engine take a minute.
    [("大跌，" * 333_333, 0.0), ("大跌，" * 8_000, 0.2)],
    ids=["tokenizing", "inferring"],
)
def test_the_deadline_of_a_very_long_text_cuts_whatever_is_under_way(bundles: Path, text: str, delay: float) -> None:
    async def cut() -> tuple[httpx.Response, float, httpx.Response, int]:
        engine, loop = Moody(), asyncio.get_running_loop()
        settings = {"engine": "onnx", "max_windows": 100_000, "batch_tokens": 32, "timeout_seconds": 1.0}
        gateway = Gateway(Settings(bundles=bundles, **settings), engine)  # type: ignore[arg-type]
        await gateway.start()
        engine.delay = delay
        async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(gateway)), base_url="http://test") as http:
            begun = loop.time()
            late = await http.post("/v1/models/news/predict", json={"inputs": text})
            seconds = loop.time() - begun
            engine.delay = 0.0
            engine.shapes.clear()
            other = await http.post("/v1/models/news/predict", json={"inputs": "好"})
        await gateway.stop()
        return late, seconds, other, len(engine.shapes)

    late, seconds, other, calls = asyncio.run(cut())
    assert late.status_code == 504 and late.json()["type"].endswith("engine-timeout")
    assert 1.0 <= seconds < 2.5
    assert other.status_code == 200
    assert calls == 1, "nothing goes on computing for the text that was given up"


def test_windows_of_a_request_are_grouped_up_to_the_token_budget(bundles: Path) -> None:
    request = ("POST", "/v1/models/news/predict", {"inputs": ["大" * 100, "好", "中国"]})
    _, engine = asked(bundles, request, batch_tokens=64)

    assert all(rows * tokens <= 64 for rows, tokens in engine.shapes)
    assert len(engine.shapes) < sum(rows for rows, _ in engine.shapes)


def test_a_graph_that_is_not_batch_invariant_gets_every_window_alone_and_unpadded(bundles: Path) -> None:
    request = ("POST", "/v1/models/news-int8/predict", {"inputs": ["大" * 100, "好", "中国"]})
    _, engine = asked(bundles, request)

    assert all(rows == 1 for rows, _ in engine.shapes)
    assert {3, 4} <= {tokens for _, tokens in engine.shapes}


def test_the_documentation_page_loads_nothing_from_elsewhere(bundles: Path) -> None:
    (page, script, style, icon, root, nothing), _ = asked(
        bundles,
        ("GET", "/docs", None),
        ("GET", "/docs/swagger-ui-bundle.js", None),
        ("GET", "/docs/swagger-ui.css", None),
        ("GET", "/playground/icon.svg", None),
        ("GET", "/", None),
        ("GET", "/docs/__init__.py", None),
    )

    assert "http://" not in page.text and "https://" not in page.text
    assert all(answer.status_code == 200 and len(answer.content) > 100 for answer in (page, script, style, icon))
    assert root.status_code == 200 and "/playground/app.js" in root.text
    assert nothing.status_code == 404


def test_the_api_description_has_the_request_with_examples(bundles: Path) -> None:
    (answer,), _ = asked(bundles, ("GET", "/openapi.json", None))
    description = answer.json()

    body = description["paths"]["/v1/models/{model}/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/PredictRequest"}
    assert body["examples"]
    schemas = description["components"]["schemas"]
    assert set(schemas["PredictRequest"]["properties"]) == {
        "inputs",
        "top_k",
        "return_windows",
        "truncate",
        "offset_unit",
        "version",
    }
    assert "$defs" not in answer.text and "StreamAnswer" in schemas
    references = [part.split('"')[0] for part in answer.text.split("#/components/schemas/")[1:]]
    assert set(references) <= set(schemas)


def test_a_stopping_server_is_alive_and_not_ready(bundles: Path) -> None:
    async def stopping() -> tuple[httpx.Response, httpx.Response]:
        gateway = Gateway(Settings(bundles=bundles, engine="onnx"))
        await gateway.start()
        gateway.draining = True
        async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(gateway)), base_url="http://test") as http:
            answers = await http.get("/health/live"), await http.get("/health/ready")
        await gateway.stop()
        return answers

    live, ready = asyncio.run(stopping())
    assert live.status_code == 200
    assert ready.status_code == 503
    assert ready.json()["models"]["news"] == "the server is stopping"


def test_every_output_of_each_window_comes_back_in_its_own_place(bundles: Path) -> None:
    """The gateway's grouping and sorting against one plain run per window, of a model with two outputs."""

    async def both() -> list[tuple[FloatArray, FloatArray]]:
        gateway = Gateway(Settings(bundles=bundles, engine="onnx"))
        await gateway.start()
        model = gateway.models["desk"]
        encoded = [model.encoder.encode(text) for text in ("好" * 90, "中国", "王学在北京。" * 9)]
        together = await gateway.classifier.infer(model, encoded)
        pairs = []
        for item, found in zip(encoded, together, strict=True):
            for number, row in enumerate(model.encoder.rows(item)):
                label, tokens = await gateway.engine.infer(model, row.ids[None], row.types[None])
                pairs.append((found.logits[number], label[0]))
                pairs.append((found.token_logits[number], tokens[0][row.content]))
        await gateway.stop()
        return pairs

    for left, right in asyncio.run(both()):
        np.testing.assert_allclose(left, right, atol=1e-5)
