"""The stage bench, with a tiny model: what it counts, not how quick anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.errors import BundleError
from serving.stages.__main__ import measure
from serving.stages.report import Round, summary
from serving.stages.steps import steps
from tests.serving.conftest import ROOT


@pytest.mark.slow
def test_a_report_is_written_for_bare_engine_gateway_and_plain_loop(bundles: Path, tmp_path: Path) -> None:
    words = ["--engines", "onnx", "--rounds", "1", "--shorts", "3", "--clients", "2", "--out", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "serving.stages", str(bundles / "news" / "bundle"), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr

    found = json.loads((tmp_path / "stages-news.json").read_text(encoding="utf-8"))
    assert set(found["candidates"]) == {"bare", "gateway, onnx", "plain FastAPI"}
    for item in found["candidates"].values():
        assert item["wrong"] == 0 and item["texts_per_second"]["median"] > 0
        assert item["short_text_ms"]["median"] > 0 and item["server_cpu_ms_per_text"]["median"] >= 0
    assert found["candidates"]["bare"]["of_bare"]["median"] == 1.0
    stages = found["candidates"]["gateway, onnx"]["stages_ms"]
    parts = stages["tokenize"] + stages["infer"] + stages["decode"]
    # Each is rounded to a microsecond.
    assert 0 < parts <= stages["total"] + 0.002 and stages["total"] <= stages["whole request"] + 0.002
    assert found["commit"] and found["hardware"]["cores"] and found["versions"]["onnxruntime"]
    page = (tmp_path / "stages-news.md").read_text(encoding="utf-8")
    assert "| gateway, onnx |" in page and "Aims for the embedded engine" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stages-news.json", "stages-news.md"]


def round_of(rate: float, short: float) -> Round:
    return Round(rate, [1.0, 2.0, 3.0, 4.0], short, 5.0, 0.1, 0.2, 0, {})


def test_ratios_are_taken_within_a_round() -> None:
    found = summary(
        [
            {"bare": round_of(100, 5), "gateway, onnx": round_of(90, 6)},
            {"bare": round_of(10, 50), "gateway, onnx": round_of(9.5, 52)},
            {"bare": round_of(100, 5), "gateway, onnx": round_of(80, 6.5)},
        ]
    )["candidates"]["gateway, onnx"]

    assert found["of_bare"] == {"median": 0.9, "least": 0.8, "most": 0.95}
    assert found["added_ms_at_p50_of_a_short_text"]["median"] == 1.5
    assert found["ms"] == {"p50": 2.0, "p90": 4.0, "p99": 4.0}


def test_the_stages_of_a_request_come_from_what_gateway_and_triton_counted() -> None:
    route, model = '{route="/v1/models/{model}/predict"}', 'model="news"'
    counters = {
        f"slipway_request_seconds_sum{route}": 0.2,
        f"slipway_request_seconds_count{route}": 10.0,
        f'slipway_stage_seconds_sum{{{model},stage="total"}}': 0.18,
        f'slipway_stage_seconds_count{{{model},stage="total"}}': 10.0,
        f"slipway_texts_total{{{model}}}": 10.0,
        f"slipway_triton_calls_total{{{model}}}": 20.0,
        f"slipway_triton_windows_total{{{model}}}": 40.0,
        f"slipway_triton_computations_total{{{model}}}": 16.0,
        f'slipway_triton_seconds_total{{{model},part="compute"}}': 0.15,
    }
    one = Round(10.0, [1.0], 5.0, 5.0, 0.1, 0.2, 0, counters)
    found = summary([{"bare": round_of(20, 4), "gateway, triton": one}])["candidates"]["gateway, triton"]["stages_ms"]

    assert found["whole request"] == 20.0 and found["total"] == 18.0 and found["HTTP, JSON, routing"] == 2.0
    assert found["Triton compute"] == 15.0 and found["windows in a computation"] == 2.5


def test_every_step_of_a_request_is_timed(bundles: Path) -> None:
    from serving.stages.bare import served

    found = steps(served(bundles / "news", "news"), json.dumps({"inputs": "好"}))

    assert {"parse JSON", "tokenize", "decode", "metrics", "write JSON"} <= set(found)
    assert all(value > 0 for value in found.values())


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json: no such file"):
        measure(tmp_path, tmp_path, ["onnx"], 1, 1, 1, 1, 1)
