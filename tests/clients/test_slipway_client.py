"""The Python client against a real gateway, and against a socket that fails on demand."""

from __future__ import annotations

import asyncio
import email.utils
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
import pytest
from slipway_client import (
    Answer,
    AsyncClient,
    Client,
    ClientError,
    Line,
    Model,
    Refused,
    Retries,
    StreamAnswer,
    Unreachable,
)
from slipway_client.retries import Patience

from tests.serving.conftest import Server, free_port

pytestmark = pytest.mark.slow

LONG = "大国新闻，股市增长，他们都说好。明天王学北京到上海。" * 3


class Both:
    """The two clients as one: each call is made by both, and they must agree."""

    def __init__(self, url: str, retries: Retries | None = None) -> None:
        self._url, self._retries = url, retries

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            found, awaited = [
                self._outcome(self._waiting, name, args, options),
                self._outcome(self._awaited, name, args, options),
            ]
            assert _bare(found) == _bare(awaited)
            if isinstance(found, Exception):
                raise found
            return found

        return call

    def _outcome(self, ask: Callable[..., Any], *what: Any) -> Any:
        try:
            return ask(*what)
        except ClientError as error:
            return error

    def _waiting(self, name: str, args: Any, options: Any) -> Any:
        with Client(self._url, retries=self._retries) as client:
            found = getattr(client, name)(*args, **options)
            return list(found) if name == "stream" else found

    def _awaited(self, name: str, args: Any, options: Any) -> Any:
        async def ask() -> Any:
            async with AsyncClient(self._url, retries=self._retries) as client:
                found = getattr(client, name)(*args, **options)
                return [item async for item in found] if name == "stream" else await found

        return asyncio.run(ask())


def _bare(found: Any) -> str:
    """What two answers to one question have in common: all but the timing and the ids."""
    if isinstance(found, Answer):
        return str([asdict(item) for item in found.predictions])
    if isinstance(found, Refused):
        return f"{found.problem.kind} {found.problem.field} {found.problem.limit}"
    if isinstance(found, list):
        return str(
            [(item.index, item.id, item.prediction) if isinstance(item, StreamAnswer) else item for item in found]
        )
    return type(found).__name__


@pytest.fixture(scope="module")
def both(onnx_server: Server) -> Both:
    return Both(onnx_server.url)


def test_every_field_of_the_servers_answer_is_in_the_typed_one(both: Both, onnx_server: Server) -> None:
    for model, inputs in (("news", LONG), ("topics", LONG), ("ner", LONG), ("desk", LONG), ("pairs", [(LONG, "好")])):
        found = both.predict(model, inputs, return_windows=True)
        body = {"inputs": inputs if model != "pairs" else [{"text": LONG, "pair": "好"}], "return_windows": True}
        raw = httpx.post(f"{onnx_server.url}/v1/models/{model}/predict", json=body).json()
        assert (found.model, found.version, found.format) == (raw["model"], raw["version"], raw["format"])
        said = json.loads(json.dumps(asdict(found.prediction)))
        (wanted,) = raw["predictions"]
        for name, value in wanted.items():
            left = (
                [_only(item, like) for item, like in zip(said[name], value, strict=True)]
                if isinstance(value, list)
                else said[name]
            )
            assert left == value, name
        assert found.timing_ms.total >= found.timing_ms.infer > 0


def _only(item: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """What the server left out is None or empty in the typed answer."""
    assert all(not value for name, value in item.items() if name not in like)
    return {
        name: [_only(one, other) for one, other in zip(item[name], value, strict=True)]
        if isinstance(value, list)
        else item[name]
        for name, value in like.items()
    }


def test_options_travel(both: Both) -> None:
    assert len(both.predict("news", "好", top_k=1).prediction.scores) == 1
    assert both.predict("news", "大国" * 1000, truncate=True).prediction.truncated is True
    units = {
        unit: both.predict("ner", "😀" + LONG, offset_unit=unit).prediction for unit in ("codepoint", "utf16", "byte")
    }
    starts = [tuple(item.start for item in prediction.entities) for prediction in units.values()]
    assert len(set(starts)) == 3
    several = both.predict("news", ["好", "坏"])
    assert len(several.predictions) == 2
    with pytest.raises(ValueError, match="too many values"):
        _ = several.prediction


def test_models_are_typed(both: Both, onnx_server: Server) -> None:
    found: list[Model] = both.models()
    raw = httpx.get(f"{onnx_server.url}/v1/models").json()["models"]
    assert json.loads(json.dumps([asdict(item) for item in found])) == raw


def test_a_stream_of_many_groups_keeps_its_order_ids_and_errors(both: Both) -> None:
    texts = [Line(f"好{n % 7}" if n != 200 else " ", id=f"id-{n}") for n in range(300)]
    found = both.stream("news", [*texts, "坏"], top_k=1)
    assert [item.index for item in found] == list(range(301))
    assert [item.id for item in found] == [*(f"id-{n}" for n in range(300)), None]
    assert [item.index for item in found if item.error] == [200]
    assert found[200].error and (found[200].error.kind, found[200].error.field) == ("invalid-text", "line.text")
    assert all(len(item.prediction.scores) == 1 for item in found if item.prediction)
    assert [item.prediction is None for item in both.stream("pairs", [("好", "坏"), Line("好", "坏"), "好"])] == [
        False,
        False,
        True,
    ]
    assert both.stream("news", []) == []


def test_a_stream_reads_its_lines_as_answers_come(onnx_server: Server) -> None:
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield "好"

    with Client(onnx_server.url) as client:
        answers = client.stream("news", lines())
        next(answers)
        answers.close()  # type: ignore[attr-defined]
    assert taken < 1000


def test_lines_may_come_asynchronously(onnx_server: Server) -> None:
    async def lines() -> AsyncIterator[str]:
        for number in range(150):
            yield f"好{number % 5}"

    async def ask() -> list[StreamAnswer]:
        async with AsyncClient(onnx_server.url) as client:
            return [item async for item in client.stream("news", lines())]

    found = asyncio.run(ask())
    assert [item.index for item in found] == list(range(150)) and all(item.prediction for item in found)


def test_what_the_server_refuses_is_typed(both: Both) -> None:
    with pytest.raises(Refused, match="there is no model 'nix'") as refused:
        both.predict("nix", "好")
    assert (refused.value.problem.status, refused.value.problem.kind) == (404, "model-unknown")
    with pytest.raises(Refused) as refused:
        both.predict("news", ["好", "大" * 1000])
    problem = refused.value.problem
    assert (problem.kind, problem.field, problem.limit) == ("text-too-long", "inputs[1]", 8)
    with pytest.raises(Refused, match="404"):
        both.predict("../nix", "好")
    with pytest.raises(Refused, match="there is no model 'nix'"):
        both.stream("nix", ["好"])


def test_nobody_listening_is_unreachable_after_the_tries() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    nobody = Both(url, Retries(attempts=2, first_seconds=0.01))
    for ask in (lambda: nobody.models(), lambda: nobody.stream("news", ["好"])):
        with pytest.raises(Unreachable, match=url):
            ask()


class Moody(BaseHTTPRequestHandler):
    """Answers what the script says next: a status with headers, or "break" in the middle of an answer."""

    protocol_version = "HTTP/1.1"
    script: ClassVar[list[tuple[int, dict[str, str]] | str]]
    asked: ClassVar[list[bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(body)
        step = self.script.pop(0) if self.script else (200, {})
        lines = [
            json.dumps(
                {"index": n, "prediction": {"tokens": len(line), "windows": 1, "covered": 1.0, "truncated": False}}
            )
            for n, line in enumerate(body.decode().splitlines())
        ]
        if step == "break":
            self._send(200, {"Content-Length": "9999"}, f"{lines[0]}\n")
            self.close_connection = True
            return
        assert isinstance(step, tuple)
        text = (
            "\n".join(lines) + "\n"
            if step[0] == 200
            else '{"type": "urn:slipway:problem:engine-unavailable", "status": 503, "title": "t", "detail": "busy"}'
        )
        if step[0] == 200 and not self.path.endswith("/stream"):
            text = json.dumps({"model": "m", "version": 1, "format": "f", "predictions": [], "more": 1,
                               "timing_ms": {"tokenize": 1, "infer": 1, "decode": 1, "total": 3}})  # fmt: skip
        self._send(step[0], {"Content-Length": str(len(text)), **step[1]}, text)

    def _send(self, status: int, headers: dict[str, str], text: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def moody() -> Iterator[tuple[str, type[Moody]]]:
    handler = type("Handler", (Moody,), {"script": [], "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


BUSY: tuple[int, dict[str, str]] = (503, {"Retry-After": "0"})


def test_a_busy_server_is_asked_again(moody: tuple[str, type[Moody]]) -> None:
    url, handler = moody
    handler.script = [BUSY, (429, {"Retry-After": "0"}), (200, {}), BUSY, BUSY, (200, {})]
    assert Both(url, Retries(first_seconds=0.01)).predict("m", "好").model == "m"
    assert len(handler.asked) == 6


def test_it_is_given_up_after_the_last_try_and_at_once_where_the_pause_is_too_long(
    moody: tuple[str, type[Moody]],
) -> None:
    url, handler = moody
    handler.script = [BUSY] * 4
    with pytest.raises(Refused, match="503 engine-unavailable: busy"):
        Both(url, Retries(attempts=2)).predict("m", "好")
    assert len(handler.asked) == 4
    handler.script = [(503, {"Retry-After": "3600"})] * 2
    with pytest.raises(Refused, match="busy"):
        Both(url).predict("m", "好")
    assert len(handler.asked) == 6
    handler.script = [(500, {}), (500, {}), (504, {}), (504, {})]
    for _ in range(2):
        with pytest.raises(Refused):
            Both(url).predict("m", "好")
    assert len(handler.asked) == 10, "a fault and a deadline are not asked again"


def test_a_stream_that_breaks_goes_on_with_the_lines_that_have_no_answer(moody: tuple[str, type[Moody]]) -> None:
    url, handler = moody
    handler.script = [BUSY, "break", "break", (200, {})] * 2
    found = Both(url, Retries(attempts=2, first_seconds=0.01)).stream("m", ["a", "bb", "ccc", "dddd"])
    assert [item.index for item in found] == [0, 1, 2, 3]
    assert [item.prediction.tokens for item in found if item.prediction] == [3, 4, 5, 6]
    assert [body.count(b"\n") for body in handler.asked[:4]] == [4, 4, 3, 2]


def test_the_pause_is_the_servers_or_grows() -> None:
    def busy(after: str) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": after})

    retries = Retries(attempts=5, first_seconds=1.0, most_seconds=20.0)
    assert Patience(retries).pause(busy("7")) == 7.0
    assert Patience(retries).pause(busy("21")) is None
    at = email.utils.formatdate(time.time() + 15, usegmt=True)
    named = Patience(retries).pause(busy(at))
    assert named is not None and 5 < named <= 15
    patience = Patience(retries)
    pauses = [patience.pause(busy("soon")) for _ in range(5)]
    for pause, most in zip(pauses[:4], (1, 2, 4, 8), strict=True):
        assert pause is not None and most / 2 <= pause <= most
    assert pauses[4] is None
