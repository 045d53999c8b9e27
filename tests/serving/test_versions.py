"""Versions of a model while it serves, on both engines: no request is lost, and what is broken is refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.keys import hash_of
from tests.serving.conftest import Server, eventually, free_port, options
from tests.serving.versions_tree import BROKEN, make_versions

pytestmark = pytest.mark.slow

ADMIN = {"Authorization": "Bearer the key of the administrator"}
NEWS = "/v1/admin/models/news"
TEXTS = [f"{first}{second}大国新闻" for first in "股市涨跌增长人民" for second in "好坏明北"]


class Admin:
    """An administrator's client of a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, timeout=60)

    def change(self, method: str, path: str, status: int = 200, body: object = None) -> Any:
        answer = self.http.request(method, NEWS + path, json=body, headers=ADMIN)
        assert answer.status_code == status, answer.text
        return answer.json()

    def versions(self) -> Any:
        return self.change("GET", "/versions")

    def predicted(self, text: str) -> tuple[int, Any]:
        """The version that answered, as the body and the header say, and the answer."""
        answer = self.http.post("/v1/models/news/predict", json={"inputs": text})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert answer.headers["x-model-version"] == str(body["version"])
        return body["version"], body["predictions"][0]

    def by_version(self, text: str, version: int) -> Any:
        """What one version says, asked for by its number."""
        asked = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}
        answer = self.http.post(f"/v2/models/news/versions/{version}/infer", json=asked)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model_version"] == str(version)
        assert answer.headers["x-model-version"] == str(version)
        said = {item["name"]: item["data"] for item in answer.json()["outputs"]}
        return said["label"][0], said["scores"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_versions(tmp_path_factory.mktemp("versions"))


# Where a test does not say so, the engine is ONNX Runtime: what it looks at is the same with both.
BOTH = pytest.mark.parametrize("server", ["onnx", "triton"], indirect=True)
TRITON = pytest.mark.parametrize("server", ["triton"], indirect=True)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = served(bundles, tmp_path_factory.mktemp("log"), *options(bundles, getattr(request, "param", "onnx")))
    yield server
    assert server.stop() == 0, server.output
    assert "Traceback" not in server.output, server.output


def served(bundles: Path, log: Path, *options: str, **environment: str) -> Server:
    """A gateway with its own file of decisions and an administrator's key."""
    shutil.copy(bundles / "versions.json", log)
    key = hash_of(ADMIN["Authorization"].removeprefix("Bearer "))
    decisions = str(log / "versions.json")
    environment = {"SLIPWAY_ADMIN_KEY_SHA256": key, "SLIPWAY_VERSIONS_FILE": decisions, **environment}
    return Server(log, *options, **environment).until_ready()


@pytest.fixture
def admin(server: Server) -> Iterator[Admin]:
    """The server with version 1 serving and nothing else loaded."""
    admin = Admin(server)
    yield admin
    admin.change("POST", "/versions/1:promote")
    admin.change("DELETE", "/canary")
    admin.change("DELETE", "/shadow")
    for item in admin.versions()["versions"]:
        if item["state"] == "loaded":
            admin.change("POST", f"/versions/{item['version']}:unload")
    admin.http.close()


@BOTH
def test_promoting_under_steady_traffic_loses_no_request_and_every_answer_is_of_one_version(admin: Admin) -> None:
    admin.change("POST", "/versions/2:load")
    expected = {version: {text: admin.by_version(text, version)[0] for text in TEXTS} for version in (1, 2)}
    assert expected[1] != expected[2], "this test cannot tell the versions apart"
    answers: list[httpx.Response] = []
    done = threading.Event()

    def traffic(start: int) -> None:
        with httpx.Client(base_url=admin.server.url, timeout=60) as http:
            number = start
            while not done.is_set():
                text = TEXTS[number % len(TEXTS)]
                answer = http.post(
                    "/v1/models/news/predict", json={"inputs": text}, headers={"X-Request-Id": str(number)}
                )
                answers.append(answer)
                number += 5

    threads = [threading.Thread(target=traffic, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    try:
        for change, serving in (
            ("/versions/2:promote", 2),
            (":rollback", 1),
            ("/versions/3:promote", 3),  # loaded on the way
            ("/versions/1:promote", 1),
        ):
            seen = len(answers)
            eventually(lambda seen=seen: len(answers) > seen + 12)
            assert admin.change("POST", change)["serving"] == serving
            # What is asked from here on is answered by the version that serves.
            assert admin.predicted(TEXTS[0])[0] == serving
    finally:
        done.set()
        for thread in threads:
            thread.join()

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["version"] for answer in answers} == {1, 2, 3}
    for answer in answers:
        text = TEXTS[int(answer.headers["x-request-id"]) % len(TEXTS)]
        version = answer.json()["version"]
        # Version 3 has the weights of version 1.
        assert answer.json()["predictions"][0]["label"] == expected[2 if version == 2 else 1][text]


@BOTH
@pytest.mark.parametrize("number", BROKEN, ids=[wrong for wrong, _ in BROKEN.values()])
def test_a_version_that_is_broken_is_refused_and_the_old_one_goes_on(admin: Admin, number: int) -> None:
    before = admin.predicted(TEXTS[0])
    problem = admin.change("POST", f"/versions/{number}:{'load' if number % 2 else 'promote'}", 409)
    assert problem["type"].endswith("version-refused")
    assert BROKEN[number][1] in problem["detail"]
    assert "/artifacts/news/versions" not in problem["detail"], "the server's folders are its own"
    assert admin.predicted(TEXTS[0]) == before
    assert admin.http.get("/v2/models/news").json()["versions"] == ["1"]
    assert admin.http.get("/health/ready").status_code == 200


@BOTH
def test_a_rollback_serves_the_version_before_and_loads_it_if_need_be(admin: Admin) -> None:
    first = admin.predicted(TEXTS[1])
    assert admin.change("POST", "/versions/2:promote")["previous"] == 1
    assert admin.predicted(TEXTS[1])[0] == 2
    admin.change("POST", "/versions/1:unload")
    assert [item["state"] for item in admin.versions()["versions"][:2]] == ["kept", "serving"]

    rolled = admin.change("POST", ":rollback")
    assert (rolled["serving"], rolled["previous"]) == (1, 2)
    assert admin.predicted(TEXTS[1]) == first


@BOTH
def test_a_canary_answers_its_share_and_the_same_request_always_gets_the_same_version(admin: Admin) -> None:
    said = admin.change("PUT", "/canary", body={"version": 2, "percent": 25})
    assert said["canary"] == {"version": 2, "percent": 25}
    answers = [admin.predicted(text) for text in TEXTS]

    assert [admin.predicted(text) for text in TEXTS] == answers
    # Which ones is fixed by a hash, so this share is as well; 8 of 32 would be exactly a quarter.
    assert 3 <= sum(version == 2 for version, _ in answers) <= 14
    for text, (version, answer) in zip(TEXTS, answers, strict=True):
        assert answer["label"] == admin.by_version(text, version)[0]
    # The other dialects choose in the same way, and say so in the header.
    hugging = [admin.http.post("/models/news", json={"inputs": text}) for text in TEXTS[:24]]
    assert {answer.headers["x-model-version"] for answer in hugging} == {"1", "2"}
    roles = {item["version"]: item["roles"] for item in admin.http.get("/v1/models/news").json()["versions"]}
    assert "serving" in roles[1] and "canary" in roles[2]

    admin.change("PUT", "/canary", body={"version": 2, "percent": 100})
    assert {admin.predicted(text)[0] for text in TEXTS[:8]} == {2}
    admin.change("DELETE", "/canary")
    assert {admin.predicted(text)[0] for text in TEXTS[:8]} == {1}


@BOTH
def test_a_shadow_is_compared_and_never_answers(admin: Admin) -> None:
    admin.change("PUT", "/shadow", body={"version": 2})
    # A stream is compared as well.
    lines = "\n".join(f'"{text}"' for text in TEXTS[16:])
    for text in TEXTS[:16]:
        assert admin.predicted(text)[0] == 1
    streamed = admin.http.post("/v1/models/news/predict/stream", content=lines.encode())
    assert streamed.headers["x-model-version"] == "1"

    eventually(lambda: admin.versions()["shadow"]["texts"] == len(TEXTS))
    seen = admin.versions()["shadow"]
    pairs = [(admin.by_version(text, 1), admin.by_version(text, 2)) for text in TEXTS]
    same = sum(one[0] == other[0] for one, other in pairs)
    largest = max(abs(here - there) for one, other in pairs for here, there in zip(one[1], other[1], strict=True))
    assert 0 < same < len(TEXTS)
    assert (seen["same"], seen["share"]) == (same, same / len(TEXTS))
    assert seen["max_score_difference"] == pytest.approx(largest, abs=1e-4)
    assert (seen["dropped"], seen["failed"]) == (0, 0)
    metrics = admin.http.get("/metrics").text
    counted = re.search(r'slipway_shadow_texts_total\{model="news",result="same",version="2"\} ([0-9.]+)', metrics)
    assert counted and float(counted[1]) >= same

    admin.change("PUT", "/shadow", body={"version": 3})
    for text in TEXTS[:8]:
        admin.predicted(text)
    eventually(lambda: admin.versions()["shadow"]["texts"] == 8)
    assert admin.versions()["shadow"]["share"] == 1.0
    assert admin.versions()["shadow"]["max_score_difference"] < 1e-4


@BOTH
def test_a_version_that_serves_or_is_on_trial_is_not_unloaded(admin: Admin) -> None:
    assert "it is serving" in admin.change("POST", "/versions/1:unload", 409)["detail"]
    admin.change("PUT", "/canary", body={"version": 2, "percent": 1})
    assert "it is canary" in admin.change("POST", "/versions/2:unload", 409)["detail"]
    admin.change("DELETE", "/canary")
    admin.change("PUT", "/shadow", body={"version": 2})
    assert "it is shadow" in admin.change("POST", "/versions/2:unload", 409)["detail"]
    admin.change("DELETE", "/shadow")

    admin.change("POST", "/versions/2:unload")
    assert admin.http.get("/v2/models/news/versions/2").status_code == 404
    assert "loaded: 1" in admin.change("POST", "/versions/2:unload", 404)["detail"]
    assert admin.predicted(TEXTS[0])[0] == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/versions/99:load", 404),
        ("/versions/0:promote", 422),
        ("/versions/-1:promote", 422),
        ("/versions/1e0:load", 422),
        ("/versions/bundle:load", 422),
        ("/versions/..%2F..%2Fbundle:load", 404),
        ("/versions/2%2F..%2F2:load", 404),
        ("%2F..%2Fother/versions/2:load", 404),
        ("/../../v1/admin/models/..%2Fnews/versions/2:load", 404),
        ("/versions/99999999999999999999:load", 404),
    ],
)
def test_a_version_that_is_no_number_of_a_kept_one_is_refused(admin: Admin, path: str, status: int) -> None:
    admin.change("POST", path, status)
    assert [item["version"] for item in admin.versions()["versions"] if item["state"] != "kept"] == [1]


def test_the_log_says_who_changed_what(admin: Admin) -> None:
    admin.change("POST", "/versions/2:promote")
    admin.change("POST", ":rollback")
    told = (
        r"news: version 2 is promoted, 1 stays for a rollback, by key environment-admin, request [0-9a-f]{16}\b",
        r"news: version 1 is promoted, 2 stays for a rollback, by key environment-admin, request [0-9a-f]{16}\b",
    )
    eventually(lambda: all(re.search(line, admin.server.output) for line in told))


@TRITON
def test_a_triton_that_is_started_anew_has_the_versions_that_were_loaded(server: Server, admin: Admin) -> None:
    admin.change("POST", "/versions/2:promote")
    killed = server.triton_pid
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: server.triton_pid != killed)
    eventually(lambda: admin.http.get("/health/ready").status_code == 200)

    assert admin.predicted(TEXTS[0])[0] == 2
    assert admin.change("POST", ":rollback")["serving"] == 1
    assert admin.predicted(TEXTS[0])[0] == 1


@pytest.fixture
def fixed_triton(server: Server, bundles: Path, tmp_path: Path) -> Iterator[str]:
    """A Triton of its own that has the versions 1 and 2 and takes no others; its host and port."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("news@1", "news@2"):
        (repository / name).symlink_to(bundles.parent / "model_repository" / name)
    # As the supervised one was started, but for its models and its ports.
    known = Path("/proc") / str(server.triton_pid)
    program, *given = known.joinpath("cmdline").read_bytes().decode().rstrip("\0").split("\0")
    kept = [item for item in given if not re.match(r"--(model-|load-|backend-config|\w+-port)", item)]
    ports = [free_port() for _ in range(3)]
    command = [program, *kept, f"--model-repository={repository}", "--model-control-mode=none"]
    command += [f"--{kind}-port={port}" for kind, port in zip(("grpc", "http", "metrics"), ports, strict=True)]
    environment = dict(item.partition("=")[::2] for item in known.joinpath("environ").read_text().split("\0") if item)
    with (tmp_path / "triton.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield f"127.0.0.1:{ports[0]}"
    process.terminate()
    process.wait(timeout=60)


@TRITON
def test_a_triton_that_takes_no_models_serves_the_versions_that_it_has_and_the_rest_is_refused(
    server: Server, fixed_triton: str, bundles: Path, tmp_path: Path
) -> None:
    elsewhere = served(bundles, tmp_path, "--engine", "triton", "--bundles", str(bundles), TRITON_URL=fixed_triton)
    admin = Admin(elsewhere)
    assert admin.change("POST", "/versions/2:promote")["serving"] == 2
    assert admin.predicted(TEXTS[0])[0] == 2
    refused = admin.change("POST", "/versions/3:promote", 409)["detail"]
    assert "--model-control-mode=explicit" in refused and "news@3" in refused
    # What it had by itself it keeps.
    admin.change("POST", "/versions/1:unload")
    assert admin.change("POST", ":rollback")["serving"] == 1
    assert admin.predicted(TEXTS[0])[0] == 1
    admin.http.close()
    assert elsewhere.stop() == 0, elsewhere.output
