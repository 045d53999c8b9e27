"""README's tables come from results files, and a stale one is noticed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load()
MACHINE = {"cpu": "Some CPU", "cores": 2, "isa": ["avx2"]}
BENCH = {
    "bundle": "news",
    "command": "make bench",
    "created": "2026-11-24T10:00:00+00:00",
    "commit": "abc",
    "hardware": MACHINE,
    "threads": 2,
    "reference": "onnx_fp32",
    "published": "onnx_int8",
    "pictures": ["latency-news-by-accuracy.png"],
    "settings": {"warmups": 2},
    "peak_gops": {"fp32": 150.2, "int8": 601.0},
    "texts": {"texts": 40, "windows": 377},
    "versions": {"onnxruntime": "1.32.0"},
    "reference_versions": {"torch": {"torch": "2.13.0"}},
    "candidates": {
        "onnx_fp32": {"bytes": 95_844_452, "load_seconds": 0.31, "resident_mib": 240.4, "environment": None},
        "onnx_int8": {
            "bytes": 58_252_832,
            "load_seconds": 0.2,
            "resident_mib": 190.0,
            "environment": None,
            "quality": {"rows": 100, "metrics": {"accuracy": 0.79, "macro_f1": 0.7}, "agreement": 0.99},
        },
        "transformers_fp32": {"environment": "torch", "about": "transformers, PyTorch"},
    },
    "cells": [
        {
            "label": "1×32",
            "batch": 1,
            "tokens": 32,
            "results": {
                "onnx_fp32": {"median_ms": 4.04, "p99_ms": 5.0, "n": 30, "speedup": 1.0, "texts_per_second": 247.5},
                "onnx_int8": {
                    "median_ms": 2.02, "p99_ms": 3.0, "n": 30, "speedup": 2.0, "texts_per_second": 495.0,
                    "share_of_peak": 0.25,
                },
            },
        },
        {
            "label": "32×512",
            "batch": 32,
            "tokens": 512,
            "results": {"onnx_int8": {"median_ms": 1234.5, "p99_ms": 2000, "n": 5, "speedup": None}},
        },
        {
            "label": "many texts",
            "texts": 31,
            "batch": 0,
            "tokens": 0,
            "results": {
                "onnx_int8": {
                    "median_ms": 90.0, "p99_ms": 100.0, "n": 9, "speedup": 2.5, "texts_per_second": 33.31,
                    "tokens_per_second": 12345.6, "share_of_peak": 0.3,
                }
            },
        },
    ],
    "skipped": [{"label": "32×512", "candidate": "onnx_fp32", "reason": "slow"}],
    "left_out": {"paddle_dygraph": "the bundle has no artifact 'paddle'"},
}  # fmt: skip
LOADTEST = {
    "command": "make loadtest",
    "created": "2026-11-24T10:00:00+00:00",
    "commit": "abc",
    "hardware": MACHINE,
    "mode": "open",
    "model": {"name": "news", "format": "onnx_int8"},
    "plan": {"rate": 40, "seconds": 30, "seed": 13, "short_share": 0.7},
    "requests": 1200,
    "errors": {"count": 3},
    "throughput": {"requests_per_second": 39.9, "tokens_per_second": 12345.6},
    "latency": {
        "all": {"p50_ms": 10, "p95_ms": 20, "p99_ms": 30},
        "short": {"p99_ms": 15},
        "long": {"p99_ms": 31},
    },
}
RESULT = {
    "recipe": "news",
    "form": "quick",
    "rows": 999,
    "model": {"accuracy": 0.7712, "macro_f1": 0.7},
    "int8": None,
    "agreement": 0.9949,
    "train_seconds": 340,
    "commit": "abc",
    "hardware": "Some CPU",
}
BASELINE = {
    "tfidf": {"accuracy": 0.757, "macro_f1": 0.658},
    "tfidf_balanced": {"accuracy": 0.7561, "macro_f1": 0.7},
}
EMPTY = "".join(
    f"# {name}\n<!-- table:{name} -->\n<!-- /table:{name} -->\n"
    for name in ("bench", "bench-shapes", "plan", "results", "loadtest")
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"Before.\n{EMPTY}After.\n", encoding="utf-8")
    return tmp_path


def put(project: Path, file: str, record: Any) -> None:
    path = project / "docs" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")


def run(project: Path, *options: str) -> int:
    status: int = tables.main([*options, "--root", str(project)])
    return status


def readme(project: Path) -> str:
    return (project / "README.md").read_text(encoding="utf-8")


PLAN = {
    "bundle": "news",
    "command": "make plan RECIPE=news",
    "created": "2026-11-24T10:00:00+00:00",
    "commit": "abc",
    "hardware": MACHINE,
    "versions": {"openvino": "2026.4.1"},
    "clients": 8,
    "windows_per_text": 12.7,
    "tokens_per_text": 1436.2,
    "warmup": 4,
    "latency": {"told": "onnx_int8 1×2, 1 window"},
    "latency_speedup": 1.444,
    "throughput": {"told": "onnx_qdq on OpenVINO 2×1, ≤ 4 windows, by length"},
    "vs_defaults": [
        {
            "told": "onnx_fp32 1×2, 1 window",
            "ratio": 4.44,
            "lowest": 4.321,
            "highest": 5.6,
            "rounds": 8,
            "requests": 128,
        }
    ],
}


def fill(project: Path) -> str:
    put(project, "bench/plan-news.json", PLAN)
    put(project, "bench/latency-news.json", BENCH)
    put(project, "bench/loadtest-news-triton.json", LOADTEST)
    put(project, "results/news.json", RESULT)
    put(project, "results/baseline/news.json", BASELINE)
    assert run(project) == 0
    return readme(project)


def test_int8_that_is_not_served_is_marked(project: Path) -> None:
    put(project, "results/news.json", RESULT | {"int8": {"f1": 0.8}, "published": "onnx_fused"})
    assert run(project) == 0
    assert "F1 0.800 (refused by the gate: fp32 is served)" in readme(project)


def test_every_figure_stands_in_its_table_with_the_command_that_printed_it(project: Path) -> None:
    content = fill(project)
    assert (
        "| **`onnx_int8`** | 2.0 (3.0) | — | 33.3 | 12,346 | 2.50× | 30% | 58.3 | 0.20 | 190 | 0.790 | 99.0% |"
        in content
    )
    assert "| `onnx_fp32` | 4.0 (5.0) | — | — | — | — | — | 95.8 | 0.31 | 240 | — | — |" in content
    assert "| ↗ `transformers_fp32` | — |" in content
    assert "Timed were — (one text) and 31 (many texts) of 40 dev texts with 377 windows" in content
    assert "150 GFLOP/s in float32, for INT8 forms 601 GOP/s" in content
    assert "5 to 30 rounds after 2 that do not count" in content
    # Every shape, in milliseconds and in texts a second.
    assert "| **`onnx_int8`** | 2.0 (3.0) 2.00× | 1,234.5 (2,000.0) | 90.0 (100.0) 2.50× |" in content
    assert "| `onnx_fp32` | 4.0 (5.0) | — | — |" in content
    assert "| **`onnx_int8`** | 495.0 (25%) | — | 33.3 (30%) |" in content
    assert "Versions: onnxruntime 1.32.0, torch 2.13.0." in content
    assert "- `transformers_fp32`: transformers, PyTorch" in content
    assert "![Accuracy against speed of `news`](latency-news-by-accuracy.png)" in content
    assert "by-length" not in content
    assert "| onnx_fp32 1×2, 1 window | 4.44× | 4.32–5.60 | 8 rounds, 128 requests |" in content
    assert (
        "onnx_qdq on OpenVINO 2×1, ≤ 4 windows, by length; for latency: onnx_int8 1×2, 1 window (1.44 times" in content
    )
    assert "Printed by `make plan RECIPE=news`, 2026-11-24, commit abc, Some CPU, 2 cores (avx2); openvino" in content
    assert "Left out as too slow: 32×512: `onnx_fp32`." in content
    assert "Not timed: `paddle_dygraph` (the bundle has no artifact 'paddle')." in content
    assert "Printed by `make bench`, 2026-11-24, commit abc, Some CPU, 2 cores (avx2)." in content
    assert (
        "| `news` (quick) | 999 | accuracy 0.771, macro-F1 0.700 | accuracy 0.757, macro-F1 0.658 "
        "| accuracy 0.756, macro-F1 0.700 | — | 99.49% "
        "| 5 min 40 s |"
    ) in content
    assert "- `make evaluate`, commit abc, Some CPU" in content
    assert (
        "| news-triton | open, 40/s, 30 s | 39.9 | 12,346 | 10.0 | 20.0 | 30.0 | 15.0 | 31.0 | 3 of 1,200 |" in content
    )
    assert "- news-triton: onnx_int8, seed 13, 70% short; `make loadtest`, 2026-11-24" in content


def test_text_around_the_tables_stays_and_a_second_run_changes_nothing(project: Path) -> None:
    content = fill(project)
    assert content.startswith("Before.\n# bench\n")
    assert content.endswith("<!-- /table:loadtest -->\nAfter.\n")
    assert run(project) == 0
    assert readme(project) == content
    assert run(project, "--check") == 0


def test_check_notices_a_stale_table_and_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = fill(project)
    put(project, "results/news.json", {**RESULT, "rows": 1000})
    assert run(project, "--check") == 1
    assert "stale: README.md; run `python docs/tables.py`" in capsys.readouterr().err
    assert readme(project) == content
    assert run(project) == 0
    assert run(project, "--check") == 0


def test_a_figure_typed_by_hand_is_stale(project: Path) -> None:
    content = fill(project)
    (project / "README.md").write_text(content.replace("0.771", "0.871"), encoding="utf-8")
    assert run(project, "--check") == 1
    assert run(project) == 0
    assert readme(project) == content


def test_documents_under_docs_are_filled_too(project: Path) -> None:
    page = project / "docs" / "decisions" / "0001.md"
    page.parent.mkdir()
    page.write_text("<!-- table:results -->\nold\n<!-- /table:results -->\n", encoding="utf-8")
    fill(project)
    assert "accuracy 0.771" in page.read_text(encoding="utf-8")


def test_without_results_a_table_says_which_command_writes_them(project: Path) -> None:
    assert run(project) == 0
    assert "No figures yet: `make bench` writes them." in readme(project)


def test_missing_keys_are_dashes(project: Path) -> None:
    for file in ("bench/latency-x.json", "bench/loadtest-x.json", "results/x.json"):
        put(project, file, {})
    assert run(project) == 0
    assert "| `—` | — | — | — | — | — | — |" in readme(project)


def bucket(name: str, rows: int, served: float, p_value: float) -> dict[str, Any]:
    scores = {"head": {"accuracy": 0.5}, "lead": {"accuracy": served}}
    return {"name": name, "rows": rows, "scores": scores, "only_served": 4, "only_head": 1, "p_value": p_value}


LONG: dict[str, Any] = {
    "recipe": "news", "form": "quick", "max_tokens": 128, "artifact": "onnx_int8", "pooling": "lead", "served": "lead",
    "command": "python -m export.evaluate", "commit": "abc", "hardware": MACHINE,
    "buckets": [bucket("1", 9, 0.5, 1.0), bucket("> 1", 7, 0.75, 0.375), bucket("all", 16, 0.625, 0.375)],
}  # fmt: skip


def test_long_texts_have_a_column_for_each_length_and_bold_for_what_is_served() -> None:
    made = tables.long_table([("news", LONG)])
    assert "| read | 1 (9) | > 1 (7) | all (16) |" in made
    assert "| **lead** | 0.500 | 0.750 | 0.625 |" in made and "| head | 0.500 | 0.500 | 0.500 |" in made
    assert "| p (exact McNemar) | 1.000 | 0.375 | 0.375 |" in made


def test_texts_that_all_have_one_window_make_no_table() -> None:
    assert tables.long_table([("x", LONG | {"buckets": LONG["buckets"][::2]})]) == ""


def test_late_sentences_and_joined_documents_are_shown() -> None:
    scores = {"precision": 0.5, "recall": 0.25, "f1": 0.333}
    late = {
        "documents": 500, "mean_windows": 6.5, "accuracy": {"short": 0.8, "head": 0.45, "lead": 0.78},
        "fitted": {"pooling": "learned", "accuracy": 0.79},
    }  # fmt: skip
    found = {
        "documents": 50, "sentences": 240, "mean_characters": 2000.0,
        "scores": {"sentences": scores, "context": scores}, "served_minus_sentences": -0.25, "entities": 3805,
        "naive_cut": 41, "naive_cut_rate": 0.01077, "no_window_holds": 0,
    }  # fmt: skip
    made = tables.long_table([("x", LONG | {"late": late, "documents": found, "stitching": "context"})])
    assert "| the short text alone | 0.800 |" in made and "| **lead** | 0.780 |" in made
    assert "| chosen on such documents of dev: learned | 0.790 |" in made
    assert "| **windows, context** | 0.5000 | 0.2500 | 0.3330 |" in made
    assert "-0.25 points of F1" in made and "41 (1.08%) are cut" in made


def test_a_taggers_quality_is_precision_recall_and_f1(project: Path) -> None:
    put(project, "results/ner.json", {"recipe": "ner", "model": {"precision": 0.9, "recall": 0.8, "f1": 0.847}})
    assert run(project) == 0
    assert "| `ner` | — | P 0.900, R 0.800, F1 0.847 |" in readme(project)


def test_a_busy_machine_is_told(project: Path) -> None:
    put(project, "bench/latency-news.json", {**BENCH, "load_before": 3.5})
    assert run(project) == 0
    assert "busy with other work before (load 3.5)" in readme(project)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x\n<!-- table:weather -->\n<!-- /table:weather -->\n", "README.md:2: no table 'weather'"),
        ("<!-- table:bench -->\n", "README.md: table 'bench' is never closed"),
        ("<!-- /table:bench -->\n", "README.md:1: marker of table 'bench' without its partner"),
        ("<!-- table:bench -->\n<!-- table:results -->\n", "README.md:2: marker of table 'results'"),
    ],
)
def test_wrong_markers_are_named_with_file_and_line(
    project: Path, content: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "README.md").write_text(content, encoding="utf-8")
    assert run(project) == 2
    assert words in capsys.readouterr().err
    assert readme(project) == content


def test_a_results_file_that_is_no_object_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(project, "results/broken.json", [1])
    assert run(project) == 2
    assert "broken.json: not a JSON object" in capsys.readouterr().err


def test_readmes_settings_table_is_what_the_gateway_prints() -> None:
    root = Path(__file__).parent.parent
    printed = subprocess.run(
        [sys.executable, "-m", "serving", "settings", "--markdown"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.count("SLIPWAY_") >= 15
    assert printed.strip() in (root / "README.md").read_text(encoding="utf-8")
