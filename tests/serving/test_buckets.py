"""Length buckets in Triton: which window goes where, and the same answers as without them, on the real server.

The server from pip has no native backend. So the layout that is made for it is written in the python flavour, and the
script in it is replaced by one that does what the native backend does: it takes calls of one shape alone and computes
them as they come, padding and all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bundle.folder import Bundle, open_bundle
from export.to_triton import write_repository
from export.versions import keep
from serving.engines.triton_buckets import joined, split
from serving.keys import hash_of
from tests.serving.conftest import ROOT, Server, eventually, options
from tests.serving.tiny_bundle import make_bundle

# The names in which the replaced scripts note the shapes that they computed.
SEEN = "shapes.jsonl"
NATIVE = '''
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """As the native backend: the calls of a batch have one shape, the configured one, and are computed as they are."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs, self.outputs = ([item["name"] for item in config[side]] for side in ("input", "output"))
        self.dims = [int(axis) for axis in config["input"][0]["dims"]]
        self.log = Path(args["model_repository"]) / "SEEN"
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def execute(self, requests):
        named = pb_utils.get_input_tensor_by_name
        calls = [[named(call, name).as_numpy() for name in self.inputs] for call in requests]
        assert all(list(values.shape[1:]) == self.dims for call in calls for values in call), "another shape"
        batch = {name: np.concatenate([call[n] for call in calls]) for n, name in enumerate(self.inputs)}
        with self.log.open("a") as stream:
            stream.write(json.dumps(list(batch["input_ids"].shape)) + "\\n")
        found, answers, start = self.session.run(self.outputs, batch), [], 0
        for call in calls:
            rows = slice(start, start + len(call[0]))
            tensors = [pb_utils.Tensor(name, values[rows]) for name, values in zip(self.outputs, found)]
            answers.append(pb_utils.InferenceResponse(output_tensors=tensors))
            start = rows.stop
        return answers
'''.replace("SEEN", SEEN)


def test_a_window_goes_to_the_shortest_bucket_that_holds_it() -> None:
    ids = np.array([[2, 9, 3, 0, 0, 0], [2, 9, 9, 9, 9, 3], [2, 9, 9, 3, 0, 0]])
    types = (ids == 9).astype(np.int64)

    short, long = split(ids, types, 0, (4, 8))
    assert (short.tokens, short.rows.tolist(), long.tokens, long.rows.tolist()) == (4, [0, 2], 8, [1])
    assert short.input_ids.tolist() == [[2, 9, 3, 0], [2, 9, 9, 3]]
    assert long.input_ids.tolist() == [[2, 9, 9, 9, 9, 3, 0, 0]]
    assert long.token_type_ids.tolist() == [[0, 1, 1, 1, 1, 0, 0, 0]]
    (only,) = split(ids, types, 0, (6, 16))
    assert only.tokens == 6 and only.rows.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="a window has 6 tokens, the longest bucket 4"):
        split(ids, types, 0, (2, 4))


def test_outputs_come_back_in_the_order_and_at_the_length_of_the_call() -> None:
    ids = np.array([[2, 9, 3, 0, 0, 0], [2, 9, 9, 9, 9, 3]])
    parts = split(ids, ids * 0, 0, (4, 8))
    answers = [
        [np.full((1, 2), part.tokens, np.float32), np.full((1, part.tokens, 3), part.tokens, np.float32)]
        for part in parts
    ]
    labels, tokens = joined(parts, answers, 2, 6)
    assert labels.tolist() == [[4, 4], [8, 8]]
    assert tokens.shape == (2, 6, 3)
    assert tokens[:, :, 0].tolist() == [[4, 4, 4, 4, 0, 0], [8, 8, 8, 8, 8, 8]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, bundles: Path) -> Path:
    """The bundles' models with buckets of 12, 20 and 32 tokens, as the native backend would run them."""
    root = tmp_path_factory.mktemp("buckets")
    shutil.copytree(bundles, root / "artifacts")
    for name in ("news", "news-int8", "ner", "pairs", "topics", "desk"):
        bundle = opened(bundles, name)
        write_repository(bundle, root / "model_repository", buckets=() if name == "news-int8" else (12, 20))
    for script in (root / "model_repository").glob("*/1/model.py"):
        if not script.parents[1].name.startswith("news-int8"):
            script.write_text(NATIVE, encoding="utf-8")
    return root / "model_repository"


def opened(bundles: Path, name: str) -> Bundle:
    """The bundle of this name."""
    return open_bundle(bundles / name / "bundle")


@pytest.fixture(scope="module")
def bucketed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp("log"),
        *options(repository.parent / "artifacts", "triton"),
        SLIPWAY_DEFAULT_MODEL="news",
    ).until_ready()
    yield server
    assert server.stop() == 0, server.output
    assert "Traceback" not in server.output, server.output


def shapes(repository: Path, model: str) -> list[tuple[int, int]]:
    """What a model computed: windows and tokens of each batch, the warm-up's first."""
    lines = (repository / model / SEEN).read_text(encoding="utf-8").splitlines()
    return [(int(windows), int(tokens)) for windows, tokens in map(json.loads, lines)]


def asked(server: Server, model: str, inputs: object) -> Any:
    answer = httpx.post(f"{server.url}/v1/models/{model}/predict", json={"inputs": inputs}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


# One window of a few tokens, of some more, of many, and a text of several windows; tokens with the two special ones.
TEXTS = ["大跌", "我们在北京说你好", "大国新闻，股市增长。王学在北京", "他说你好！" * 30, "明天"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["news", "ner", "topics", "desk", "news-int8"])
def test_answers_are_those_of_the_other_engine(bucketed: Server, onnx_server: Server, model: str) -> None:
    found, wanted = (asked(server, model, TEXTS) for server in (bucketed, onnx_server))
    assert_alike(found, wanted)


@pytest.mark.slow
def test_pairs_keep_their_token_types(bucketed: Server, onnx_server: Server) -> None:
    pairs = [{"text": text, "pair": "你是我们国家的人"} for text in [*TEXTS[:3], "他说你好！" * 8]]
    assert_alike(asked(bucketed, "pairs", pairs), asked(onnx_server, "pairs", pairs))


def assert_alike(found: Any, wanted: Any) -> None:
    """Equal but for the last digits of numbers."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_alike(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            assert_alike(left, right)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-4)
    else:
        assert found == wanted


@pytest.mark.slow
def test_each_window_is_computed_by_the_bucket_of_its_length(bucketed: Server, repository: Path) -> None:
    models = {"news_12": 12, "news_20": 20, "news": 32}
    before = {model: len(shapes(repository, model)) for model in models}
    asked(bucketed, "news", TEXTS)
    new = {model: shapes(repository, model)[before[model] :] for model in models}
    for model, tokens in models.items():
        assert {length for _, length in new[model]} == {tokens}, "every bucket has the one shape, and was used"
    # The article's last window may be a short one.
    assert sum(windows for windows, _ in new["news_12"]) >= 3
    assert sum(windows for batches in new.values() for windows, _ in batches) >= len(TEXTS) + 4


@pytest.mark.slow
def test_buckets_are_counted_together(bucketed: Server) -> None:
    def windows() -> float:
        text = httpx.get(f"{bucketed.url}/metrics").text
        (found,) = re.findall(r'^slipway_triton_windows_total\{model="ner"\} (\S+)$', text, re.MULTILINE)
        return float(found)

    before = windows()
    short, long = (len(asked(bucketed, "ner", text)) for text in (TEXTS[:1], TEXTS[2:3]))
    assert (short, long) == (1, 1) and windows() - before == 2


@pytest.mark.slow
def test_a_triton_that_comes_back_has_its_buckets_again(bucketed: Server, repository: Path) -> None:
    wanted, killed = asked(bucketed, "news", TEXTS), bucketed.triton_pid
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: bucketed.triton_pid != killed)
    eventually(lambda: httpx.get(f"{bucketed.url}/health/ready").status_code == 200)
    assert_alike(asked(bucketed, "news", TEXTS), wanted)
    assert "news_12" in Path(f"/proc/{bucketed.triton_pid}/cmdline").read_text()


@pytest.mark.slow
def test_a_version_is_loaded_and_unloaded_with_its_buckets(tmp_path: Path) -> None:
    root = tmp_path / "artifacts" / "news"
    for number in (1, 2):
        version = keep(make_bundle(root / "bundle", "news", "single-label", seed=number, version=number))
        shutil.rmtree(root / "bundle")
        write_repository(version, tmp_path / "model_repository", buckets=(12,))
    (tmp_path / "artifacts" / "versions.json").write_text(json.dumps({"news": {"serving": 1}}))
    key = "the key of the administrator"
    server = Server(
        tmp_path, *options(tmp_path / "artifacts", "triton"), SLIPWAY_ADMIN_KEY_SHA256=hash_of(key)
    ).until_ready()
    try:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
            before = asked(server, "news", TEXTS)
            for path in ("versions/2:load", "versions/2:promote", "versions/1:unload"):
                answer = http.post(f"/v1/admin/models/news/{path}")
                assert answer.status_code == 200, answer.text
            after = asked(server, "news", TEXTS)
        assert after != before
        log = (tmp_path / "triton.log").read_text(encoding="utf-8", errors="replace")
        for name in ("news@2", "news@2_12"):
            assert f"successfully loaded '{name}'" in log
        eventually(lambda: "successfully unloaded 'news@1_12'" in (tmp_path / "triton.log").read_text(errors="replace"))
    finally:
        assert server.stop() == 0, server.output


def validated(bundle: Path, repository: Path, log: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", "validate", str(bundle), "--repository", str(repository)]
    environment = {**os.environ, "SLIPWAY_LOG_FOLDER": str(log)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_validate_proves_a_repository_with_buckets_and_refuses_one_that_lacks_a_bucket(
    bundles: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    write_repository(opened(bundles, "desk"), repository, buckets=(12, 20))
    proved = validated(bundles / "desk", repository, tmp_path)
    assert proved.returncode == 0, proved.stdout + proved.stderr
    assert "100.0% of the rows are answered as recorded" in proved.stdout

    shutil.rmtree(repository / "desk_12")
    refused = validated(bundles / "desk", repository, tmp_path)
    assert refused.returncode == 1 and "desk_12 does not hold version 1" in refused.stderr


@pytest.mark.slow
def test_a_repository_for_a_gpu_is_refused_where_there_is_none(bundles: Path, tmp_path: Path) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("a GPU is here")
    write_repository(opened(bundles, "news"), tmp_path / "repository", gpu=True)
    refused = validated(bundles / "news", tmp_path / "repository", tmp_path)
    assert refused.returncode == 1 and "GPU" in refused.stdout + refused.stderr
