"""What an enemy sends, over raw sockets: each is refused in words where that is possible, and the server serves on."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.keys import hash_of
from serving.settings import Settings
from tests.serving.conftest import Server, eventually, options
from tests.serving.sockets import connect, dripped, heard, request, sent

pytestmark = pytest.mark.slow

PREDICT = "/v1/models/news/predict"
GOOD = json.dumps({"inputs": "好"}).encode()
CONNECTIONS = 24
HEADER_BYTES = 8192
ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def strict(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little patience."""
    server = Server(
        tmp_path_factory.mktemp("log"),
        *options(bundles, "onnx"),
        SLIPWAY_DEFAULT_MODEL="news",
        SLIPWAY_MAX_CONNECTIONS=str(CONNECTIONS),
        SLIPWAY_MAX_HEADER_BYTES=str(HEADER_BYTES),
        SLIPWAY_HEADER_SECONDS="0.5",
        SLIPWAY_BODY_SECONDS="0.5",
        SLIPWAY_STALL_SECONDS="0.5",
        SLIPWAY_KEEP_ALIVE_SECONDS="1",
        SLIPWAY_CORS_ORIGINS=f"{ORIGIN}, http://localhost:3000",
        SLIPWAY_ADMIN_KEY_SHA256=hash_of("the key of the administrator"),
        SLIPWAY_VERSIONS_FILE=str(tmp_path_factory.mktemp("state") / "versions.json"),
    ).until_ready()
    yield server
    assert server.stop() == 0, server.output
    assert "Traceback" not in server.output, server.output


@pytest.fixture(scope="module")
def client(strict: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=strict.url, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def alive(client: httpx.Client) -> Iterator[None]:
    """Whatever was sent, the next request is answered, and none was a fault of the server."""
    yield
    assert client.post(PREDICT, content=GOOD).status_code == 200
    assert 'status="500"' not in client.get("/metrics").text


def is_problem(answer: object, kind: str) -> None:
    assert answer["type"] == f"urn:slipway:problem:{kind}"  # type: ignore[index]


# Slow senders and readers


def test_headers_that_never_end_are_told_so_and_the_connection_is_closed(strict: Server) -> None:
    answer = sent(strict.url, b"POST / HTTP/1.1\r\nHost: x\r\nX-A: ")
    assert answer.status == 408
    is_problem(answer.json, "headers-too-slow")


def test_headers_that_come_byte_by_byte_gain_no_time(strict: Server) -> None:
    said = dripped(strict.url, b"GET /health/live HTTP/1.1\r\n", b"X")
    assert said.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("start", [b"", b"\r\n"], ids=["nothing", "an empty line"])
def test_a_connection_that_asks_nothing_is_closed_without_an_answer(strict: Server, start: bytes) -> None:
    assert sent(strict.url, start).raw == b""


def test_the_second_request_of_a_connection_gets_no_more_time(strict: Server) -> None:
    answer = sent(strict.url, request(PREDICT, GOOD, close=False), b"POST / HT")
    assert answer.raw.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in answer.raw


def test_an_idle_connection_is_closed(strict: Server) -> None:
    answer = sent(strict.url, request(PREDICT, GOOD, close=False))
    assert answer.status == 200 and answer.raw.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("path", [PREDICT, "/predict", "/v2/models/news/infer", "/models/news", "/"])
def test_a_body_that_stops_is_408_in_every_dialect(strict: Server, path: str) -> None:
    head = request(path, b"", close=False).replace(b"Content-Length: 0", b"Content-Length: 100")
    answer = sent(strict.url, head, b'{"inp')
    assert answer.status == 408
    assert "0.5 s" in json.dumps(answer.json)


def test_a_body_that_comes_byte_by_byte_gains_no_time(strict: Server) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    said = dripped(strict.url, head, b"1\r\n \r\n")
    assert said.startswith(b"HTTP/1.1 408")


def test_the_rest_of_a_refused_body_is_not_taken_for_ever(strict: Server) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".encode()
    said = dripped(strict.url, head, b" ")
    assert said.startswith(b"HTTP/1.1 413")


def test_a_stream_that_stands_still_is_broken_off(strict: Server) -> None:
    head = f"POST {PREDICT}/stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    answer = sent(strict.url, head, b'6\r\n"\\u597d"\n\r\n'.replace(b"6", b"9"))
    assert answer.status == 200
    assert b'"index":0' in answer.raw
    assert not answer.raw.endswith(b"0\r\n\r\n"), "a stream that was cut off must not look complete"


def test_a_caller_who_does_not_read_is_hung_up_on(strict: Server, client: httpx.Client) -> None:
    """The answers of a stream fill the buffers of both sides; then nothing moves until the server gives up."""
    line = b'"' + b"abc 123 " * 8 + b'"\n'
    chunk = line * 400
    head = f"POST {PREDICT}/stream?return_windows=true HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(strict.url) as raw:
        raw.sendall(head.encode())
        with pytest.raises(ConnectionError):
            while True:
                raw.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    gauge = "slipway_requests_in_flight 1.0"  # the scrape itself
    eventually(lambda: gauge in client.get("/metrics").text)


# Sizes


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: 1\r\n" * 5_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d:\r\n" % number for number in range(2_000)) + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"a" * 1_000_000,
    ],
    ids=["path", "value", "the same line", "many names", "a name without an end"],
)
def test_a_head_above_the_limit_is_431(strict: Server, head: bytes) -> None:
    with connect(strict.url) as raw:
        with contextlib.suppress(ConnectionError):
            raw.sendall(head)
        answer = heard(raw)
    # Where the server hung up while more was on its way, the system may throw the answer away.
    assert answer.status in ((431, 0) if len(head) > 65536 else (431,))
    if answer.status:
        is_problem(answer.json, "headers-too-large")


def test_a_head_just_below_the_limit_is_answered(strict: Server) -> None:
    head = request(PREDICT, GOOD, "X-A: " + "a" * (HEADER_BYTES - 200))
    assert sent(strict.url, head).status == 200


@pytest.mark.parametrize("tail", [b"X-T: " + b"a" * 40_000, b"X-T: a\r\n" * 4_000, b"1;" + b"x" * 40_000])
def test_endless_trailers_and_chunk_extensions_are_cut_off(strict: Server, tail: bytes) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    last = b"0\r\n" if tail.startswith(b"X") else b""
    with connect(strict.url) as raw:
        with contextlib.suppress(ConnectionError):
            raw.sendall(head + b"%x\r\n%b\r\n" % (len(GOOD), GOOD) + last)
            for _ in range(50):
                raw.sendall(tail)
        answer = heard(raw)
    assert answer.status in (0, 431, 400), "the server read on"


def test_more_connections_than_the_limit_are_told_to_come_back(strict: Server) -> None:
    opened = [connect(strict.url) for _ in range(CONNECTIONS)]
    try:
        for raw in opened:
            raw.sendall(b"POST / HTTP/1.1\r\n")
        answers = [sent(strict.url, request(PREDICT, GOOD)) for _ in range(3)]
        refused = [answer for answer in answers if answer.status == 503]
        assert refused, "one more than the limit was served"
        is_problem(refused[0].json, "too-many-connections")
        assert b"retry-after: 1" in refused[0].raw.lower()
    finally:
        for raw in opened:
            raw.close()
    eventually(lambda: sent(strict.url, request(PREDICT, GOOD)).status == 200)


def test_a_flood_of_pipelined_requests_is_cut_off(strict: Server) -> None:
    one = request(PREDICT, GOOD, close=False)
    assert sent(strict.url, one * 2_000).raw.count(b"HTTP/1.1 200") < 100


def test_some_pipelined_requests_are_answered_in_order(strict: Server) -> None:
    parts = [request(PREDICT, GOOD, f"X-Request-Id: nr-{number}", close=number == 9) for number in range(10)]
    answer = sent(strict.url, b"".join(parts))
    assert re.findall(rb"x-request-id: nr-(\d)", answer.raw) == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("path", [PREDICT, "/predict", "/v2/models/news/infer", "/models/news", "/taskflow/news"])
@pytest.mark.parametrize(
    "deep", [b"[" * 200_000, b'{"a":' * 200_000, b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"]
)
def test_deep_json_is_refused(strict: Server, path: str, deep: bytes) -> None:
    assert sent(strict.url, request(path, deep)).status in (400, 422)


def test_numbers_without_an_end_are_refused(strict: Server) -> None:
    for number in (b"9" * 300_000, b"1e999999", b"-" + b"9" * 5_000):
        body = b'{"inputs": "a", "top_k": ' + number + b"}"
        assert sent(strict.url, request(PREDICT, body)).status in (400, 422)


@pytest.mark.parametrize("path", [PREDICT, "/v2/models/news/infer", "/predict"])
def test_a_gzip_bomb_is_not_unpacked(strict: Server, path: str) -> None:
    bomb = gzip.compress(b'{"inputs": "' + b"a" * 50_000_000 + b'"}')
    assert len(bomb) < 100_000
    answer = sent(strict.url, request(path, bomb, "Content-Encoding: gzip"))
    assert answer.status in (400, 415, 422)


# Places


NAMES = (
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cetc",
    "%00",
    "news%00",
    "news/../news-int8",
    "%2fetc%2fpasswd",
    "....//",
    "%ff%fe",
    "a" * 5_000,
)


@pytest.mark.parametrize(
    "pattern",
    [
        *("/v1/models/{}/predict", "/v1/models/{}/predict/stream", "/v1/models/{}", "/v2/models/{}/infer"),
        *("/v2/models/news/versions/{}/infer", "/models/{}", "/models/{}/predict", "/taskflow/{}"),
        *("/playground/{}", "/docs/{}"),
    ],
)
def test_a_name_never_leaves_its_folder(strict: Server, pattern: str) -> None:
    for name in NAMES:
        for method, body in (("GET", b""), ("POST", GOOD)):
            answer = sent(strict.url, request(pattern.format(name), body, method=method))
            assert answer.status in (400, 404, 405), (name, answer.raw[:200])
            assert b"root:" not in answer.raw and b"Traceback" not in answer.raw


def test_two_lengths_or_a_length_and_chunks_are_no_request(strict: Server) -> None:
    """Where two servers in a row read such a request differently, one smuggles a second past the first."""
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    for lines in (
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Content-Length: 4\r\nContent-Length: 44",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: +4",
    ):
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n".encode()
        answer = sent(strict.url, head, smuggled)
        assert answer.status == 400, lines
        assert b"slipway_requests" not in answer.raw


@pytest.mark.parametrize(
    "line",
    [b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET http://[::1 HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
     b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
     b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
     b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_http_is_told_so(strict: Server, line: bytes) -> None:
    answer = sent(strict.url, line)
    assert answer.status in (400, 404, 405), answer.raw
    assert b"Traceback" not in answer.raw


def test_an_offer_to_speak_another_protocol_is_answered_in_this_one(strict: Server) -> None:
    for protocol in ("h2c", "websocket"):
        offer = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n"
        answer = sent(strict.url, f"{offer}Content-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD)
        assert answer.status == 200 and b"upgrade:" not in answer.raw.lower()


# Who may ask, and from where


@pytest.mark.parametrize(
    ("key", "kind"), [("", "key-missing"), ("Basic YTpi", "key-missing"), ("Bearer wrong", "key-unknown")]
)
def test_no_admin_route_opens_without_the_key(client: httpx.Client, key: str, kind: str) -> None:
    asked = 0
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        if "/admin" not in path:
            continue
        for method in methods:
            place = path.replace("{model}", "news").replace("{version}", "1")
            body = {"version": 1, "percent": 100.0} if "canary" in place else {"version": 1}
            headers = {"Authorization": key} if key else {}
            answer = client.request(method, place, headers=headers, json=body)
            assert answer.status_code == 401, (method, path, answer.text)
            is_problem(answer.json(), kind)
            assert answer.headers["www-authenticate"] == "Bearer"
            asked += 1
    assert asked >= 9


def test_without_an_admin_key_the_admin_routes_are_off(http: httpx.Client) -> None:
    answer = http.post("/v1/admin/models/news:rollback", headers={"Authorization": "Bearer anything"})
    assert answer.status_code == 403
    is_problem(answer.json(), "not-allowed")


def test_only_the_named_origins_may_read_answers(client: httpx.Client) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for origin, allowed in (
        (ORIGIN, True),
        ("http://localhost:3000", True),
        ("https://app.example.evil", False),
        ("https://evil-app.example", False),
        ("http://app.example", False),
        ("null", False),
    ):
        preflight = client.options(PREDICT, headers={"Origin": origin, **ask})
        assert (preflight.headers.get("access-control-allow-origin") == origin) is allowed
        for answer in (
            client.post(PREDICT, content=GOOD, headers={"Origin": origin}),
            client.post(PREDICT, content=b"{", headers={"Origin": origin}),
            client.get("/nix", headers={"Origin": origin}),
        ):
            assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
            assert "access-control-allow-credentials" not in answer.headers


def test_no_origin_is_allowed_unless_one_is_named(http: httpx.Client) -> None:
    answer = http.post(PREDICT, content=GOOD, headers={"Origin": ORIGIN})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    ask = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    assert http.options(PREDICT, headers=ask).status_code == 405


@pytest.mark.parametrize("origins", ["*", "app.example", "https://app.example/", "https://a.example,*"])
def test_what_is_no_origin_is_no_setting(origins: str) -> None:
    with pytest.raises(ValueError, match="scheme://host"):
        Settings(cors_origins=origins)
