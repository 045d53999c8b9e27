"""Every route under generated and mutated requests: whatever comes, the answer is one that the API's description names.

Two sources. Schemathesis reads our own OpenAPI and makes requests that follow it, and requests that break it. The byte
level mutates whole HTTP requests, headers and framing included, and sends them over raw sockets. Both are seeded:
`make test` sends the same small share each time, `make fuzz` (SLIPWAY_PROPERTIES=long) many more, other ones each time.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from serving.keys import hash_of
from tests.properties import PROFILE
from tests.serving.conftest import Server, options
from tests.serving.sockets import connect, request

pytestmark = pytest.mark.slow

LONG = PROFILE == "long"
# Generated requests of each route that follow the description, and as many that break it.
GENERATED = 50 if LONG else 4
# Mutated requests, in all.
MUTATED = 10_000 if LONG else 800
SEED = int(time.time()) if LONG else 1
MODELS = ("news", "news-int8", "ner", "pairs", "topics", "desk")
ADMIN_KEY = "the key of the administrator"
# The only faults that the API has: not now, and no answer in time.
ALLOWED_FAULTS = {503, 504}


@pytest.fixture(scope="module")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own: what is sent here may change whatever a request can change."""
    server = Server(
        tmp_path_factory.mktemp("log"),
        *options(bundles, "onnx"),
        SLIPWAY_DEFAULT_MODEL="news",
        SLIPWAY_ADMIN_KEY_SHA256=hash_of(ADMIN_KEY),
        SLIPWAY_VERSIONS_FILE=str(tmp_path_factory.mktemp("state") / "versions.json"),
        SLIPWAY_HEADER_SECONDS="0.3",
        SLIPWAY_BODY_SECONDS="0.3",
        SLIPWAY_STALL_SECONDS="0.3",
        SLIPWAY_KEEP_ALIVE_SECONDS="1",
    ).until_ready()
    yield server
    assert server.stop() == 0, server.output[-5000:]
    assert "Traceback" not in server.output, server.output[-5000:]


@pytest.fixture(autouse=True)
def alive(server: Server) -> Iterator[None]:
    """However it was treated, the server answers right, holds no request, and has had no fault."""
    yield
    assert httpx.post(f"{server.url}/v1/models/news/predict", json={"inputs": "好"}).status_code == 200
    assert 'status="500"' not in httpx.get(f"{server.url}/metrics").text


def test_generated_requests_get_only_answers_that_the_description_names(server: Server) -> None:
    load_all_checks()
    checks = [
        *CHECKS.get_by_names(["status_code_conformance", "content_type_conformance", "response_schema_conformance"]),
        no_fault,
    ]
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen: Counter[int] = Counter()
    operations = [item.ok() for item in schema.get_all_operations()]
    assert len(operations) > 20
    with requests.Session() as session:
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                _send_all(operation, mode, session, checks, seen)
    print(f"\nfuzz: {sum(seen.values()):,} generated requests to {len(operations)} routes (seed {SEED}): {told(seen)}")
    assert sum(seen.values()) >= GENERATED * len(operations)
    assert {200, 400, 404, 422} <= set(seen), "the requests reach the routes, and some are wrong"


def _send_all(
    operation: APIOperation,  # type: ignore[type-arg]
    mode: GenerationMode,
    session: requests.Session,
    checks: list[Callable[..., bool | None]],
    seen: Counter[int],
) -> None:
    if mode is GenerationMode.NEGATIVE and not operation.body.items:
        return  # a path is a string whatever it is, so there is nothing to break
    strategy = operation.as_strategy(generation_mode=mode)

    @seed(SEED)
    @settings(max_examples=GENERATED, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        case=strategy, model=st.sampled_from((*MODELS, "")), key=st.sampled_from((ADMIN_KEY, ADMIN_KEY, "wrong", ""))
    )
    def send(case: Case, model: str, key: str) -> None:
        # A made-up name is never a served one, and beyond a 404 there is nothing to see.
        if model and "model" in (case.path_parameters or {}):
            case.path_parameters["model"] = model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = case.call(session=session, headers=headers, timeout=60)
        seen[answer.status_code] += 1
        case.validate_response(answer, checks=checks)

    send()


@schemathesis.serializer("application/x-ndjson")
def _as_lines(context: object, value: object) -> bytes:
    """What is generated for the stream: one JSON value a line; a list gives one line for each of its items."""
    items = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def no_fault(context: object, response: schemathesis.Response, case: Case) -> None:
    """A check: no 5xx but the documented ones."""
    assert response.status_code < 500 or response.status_code in ALLOWED_FAULTS, response.text


def told(seen: Counter[int]) -> str:
    return ", ".join(f"{status or 'hung up'} × {count:,}" for status, count in sorted(seen.items()))


# The byte level: valid requests, and what is done to them.
BODIES: dict[str, list[bytes]] = {
    "/v1/models/news/predict": [
        '{"inputs": "大国新闻", "top_k": 2, "return_windows": true, "offset_unit": "utf16"}'.encode(),
        '{"inputs": ["好", {"text": "王明😀", "pair": null}], "truncate": true}'.encode(),
    ],
    "/v1/models/pairs/predict": ['{"inputs": [{"text": "好", "pair": "中国"}]}'.encode()],
    "/v1/models/ner/predict": ['{"inputs": "王明在北京", "offset_unit": "byte"}'.encode()],
    "/v1/models/topics/predict/stream?ordered=false&top_k=1": ['"好"\n{"text": "大", "id": 3}\n\n"中"'.encode()],
    "/v2/models/news/infer": [
        b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}], "id": "1"}',
        b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}'
        b"\x01\x00\x00\x00a",
    ],
    "/predict": [b'{"inputs": [["a"], ["b"]], "truncate": true}'],
    "/models/news/predict": [b'{"inputs": "a"}'],
    "/": [b'{"inputs": ["a"], "parameters": {"top_k": 1}}'],
    "/models/desk/pipeline/token-classification": [b'{"inputs": "a"}'],
    "/models/ner": [b'{"data": {"text": ["a"]}, "parameters": {"batch_size": 1}}'],
    "/taskflow/news": [b'{"data": {"text": "a"}}'],
    "/v1/admin/models/news/versions/1:promote": [b""],
    "/v1/admin/models/news:rollback": [b""],
}
GETS = (
    *("/", "/docs", "/playground/app.js", "/openapi.json", "/v1/models", "/v1/models/news", "/v2", "/v2/models/ner"),
    *("/v2/models/news/versions/1/ready", "/v1/admin/models/news/versions", "/info", "/models/news/info"),
    *("/health/ready", "/metrics"),
)
KEY = f"Authorization: Bearer {ADMIN_KEY}"
SEEDS: tuple[bytes, ...] = (
    *(request(path, body, "X-Request-Id: a-1", KEY) for path, bodies in BODIES.items() for body in bodies),
    *(request(path, b"", method="GET") for path in GETS),
    request("/v1/admin/models/news/canary", b'{"version": 1, "percent": 5}', KEY, method="PUT"),
    request("/v1/admin/models/news/shadow", b'{"version": 1}', KEY, method="PUT"),
    request("/v1/admin/models/news/canary", b"", KEY, method="DELETE"),
    request("/v2/models/news/infer", BODIES["/v2/models/news/infer"][1], "Inference-Header-Content-Length: 94"),
    b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    b'f\r\n{"inputs": "a"}\r\n0\r\n\r\n',
)
# What parsers stumble over.
SHARDS = (
    *(
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\\u0000",
        b"\xef\xbb\xbf",
        b"\xf0\x9f\x98\x80",
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
    ),
    *(b"NaN", b"-1", b"0", b"1e400", b"99999999999999999999", b"null", b"true", b"[]", b"{}", b'""', b"[[[[", b'{"":'),
    *(
        b"%00",
        b"%2e%2e/",
        b"%0a",
        b"?",
        b"#",
        b"*",
        b"; ",
        b",",
        b":",
        b"Content-Length: 3\r\n",
        b"Expect: 100-continue\r\n",
    ),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Range: bytes=0-1\r\n",
    ),
    *(b"X-Request-Timeout-Ms: 1\r\n", b"X-Priority: bulk\r\n", b"traceparent: 00-0-0-00\r\n"),
    *(b"Authorization: Bearer \xff\r\n", b"Inference-Header-Content-Length: -1\r\n", b"If-None-Match: *\r\n"),
)


def mutated(rng: random.Random) -> bytes:
    """A request after one to four mutations; where only its body was changed, the length is often set right."""
    whole = rng.choice(SEEDS)
    head, _, body = whole.partition(b"\r\n\r\n")
    if body and rng.random() < 0.8:
        body = _changed(body, rng)
        if rng.random() < 0.9:
            head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
        return head + b"\r\n\r\n" + body
    return _changed(whole, rng)


def _changed(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 4)):
        at, to = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        match rng.randrange(6):
            case 0:
                data = data[:at] + rng.choice(SHARDS) + data[at:]
            case 1:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case 2:
                data = data[:at] + data[min(to, at + 9) :]
            case 3:
                data = data[:to] + data[at:]
            case 4:
                data = data[:at] + rng.choice(SHARDS) * rng.choice((1, 7, 400)) + data[to:]
            case 5:
                other = rng.choice(SEEDS)
                data = data[:at] + other[rng.randint(0, len(other)) :]
    return data


def answered(url: str, data: bytes) -> list[int]:
    """Sends bytes and reads until the server hangs up, which its limits make it do: the statuses of its answers."""
    said = b""
    with connect(url) as raw, contextlib.suppress(ConnectionError):
        raw.sendall(data)
        while part := raw.recv(65536):
            said += part
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)] or [0]


def test_mutated_requests_never_make_a_fault_or_a_connection_that_hangs(server: Server) -> None:
    rng = random.Random(SEED)
    requests_ = [mutated(rng) for _ in range(MUTATED)]
    seen: Counter[int] = Counter()
    with ThreadPoolExecutor(48) as pool:  # most of them wait for the server to lose its patience
        for data, statuses in zip(requests_, pool.map(lambda data: answered(server.url, data), requests_), strict=True):
            seen.update(statuses)
            faults = [status for status in statuses if status >= 500 and status not in ALLOWED_FAULTS]
            assert not faults, f"seed {SEED}: {faults} for {data!r}"
    print(f"\nfuzz: {MUTATED:,} mutated requests (seed {SEED}): {told(seen)}")
    assert {200, 400, 404, 422} <= set(seen)
