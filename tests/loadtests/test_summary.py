"""Rows → figures, answers → kinds of error, rows → CSV and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtests.answers import check
from loadtests.plan import Plan
from loadtests.sent import Sent, from_csv, to_csv
from loadtests.summary import summarise

PLAN = Plan(host="http://127.0.0.1:1", model="news", texts=Path("x"), seconds=10, warmup=2)
ROW = Sent(
    user=0, number=0, intended=3.0, start=3.0, kind="short", place=0, chars=9, tokens=10, windows=1, status=200,
    error="", latency_ms=100.0, tokenize_ms=10.0, infer_ms=50.0, decode_ms=5.0, total_ms=80.0, warmup=False,
)  # fmt: skip
RIGHT: dict[str, Any] = {
    "predictions": [{"label": "a", "score": 0.9, "tokens": 5, "windows": 1, "truncated": False}],
    "timing_ms": {"tokenize": 0.1, "infer": 0.2, "decode": 0.1, "total": 0.5},
}


def test_quantiles_are_latencies_that_requests_really_had() -> None:
    rows = [replace(ROW, number=n, latency_ms=float(n)) for n in range(1, 101)]
    figures = summarise(rows, PLAN)["latency"]["all"]
    assert (figures["p50_ms"], figures["p95_ms"], figures["p99_ms"], figures["max_ms"], figures["n"]) == (
        50.0, 95.0, 99.0, 100.0, 100,
    )  # fmt: skip


def test_warm_up_is_not_counted() -> None:
    rows = [ROW, replace(ROW, intended=1.0, start=1.0, latency_ms=900.0, warmup=True)]
    summary = summarise(rows, PLAN)
    assert (summary["requests"], summary["requests_in_warmup"]) == (1, 1)
    assert summary["latency"]["all"]["max_ms"] == 100.0


def test_throughput_counts_right_answers_that_ended_in_the_measured_time() -> None:
    early = replace(ROW, intended=1.95, start=1.95, warmup=True)  # ends at 2.05
    late = replace(ROW, intended=11.95, start=11.95)  # ends at 12.05
    failed = replace(ROW, error="http 503", status=503)
    summary = summarise([ROW, early, late, failed], PLAN)
    assert summary["throughput"] == {"requests_per_second": 0.2, "tokens_per_second": 2.0}
    assert summary["measured_seconds"] == 10


def test_a_run_cut_short_by_its_count_is_measured_until_its_last_answer() -> None:
    plan = PLAN.model_copy(update={"max_requests": 2})
    summary = summarise([replace(ROW, intended=2.0, start=2.0), replace(ROW, intended=3.9, start=3.9)], plan)
    assert summary["measured_seconds"] == 2.0
    assert summary["throughput"]["requests_per_second"] == 1.0


def test_errors_are_counted_by_kind_and_do_not_make_the_server_look_fast() -> None:
    fast = [replace(ROW, error=kind, latency_ms=1.0) for kind in ("http 429", "http 429", "truncated")]
    summary = summarise([ROW, *fast], PLAN)
    assert summary["errors"] == {"count": 3, "share": 0.75, "by_kind": {"http 429": 2, "truncated": 1}}
    assert summary["latency"]["all"]["p50_ms"] == 100.0


def test_stage_shares_are_of_the_callers_time_and_sum_to_one() -> None:
    stages = summarise([ROW, ROW], PLAN)["stages"]
    assert stages == {"tokenize": 0.1, "infer": 0.5, "decode": 0.05, "gateway_other": 0.15, "outside": 0.2}
    assert sum(stages.values()) == pytest.approx(1)


def test_short_and_long_requests_are_told_apart() -> None:
    latency = summarise([ROW, replace(ROW, kind="long", latency_ms=300.0, tokens=700, windows=6)], PLAN)["latency"]
    assert (latency["short"]["p50_ms"], latency["long"]["p50_ms"]) == (100.0, 300.0)
    assert (latency["long"]["median_tokens"], latency["long"]["median_windows"]) == (700, 6)


def test_a_run_without_requests_has_a_summary_of_nothing() -> None:
    summary = summarise([], PLAN)
    assert (summary["requests"], summary["errors"]["share"], summary["stages"]) == (0, 0.0, {})
    assert summary["latency"]["all"]["p50_ms"] is None


def test_rows_survive_the_csv_file(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, number=1, intended=3.123456, warmup=True, error="http 503", status=503)]
    file = tmp_path / "requests.csv"
    file.write_text(to_csv(reversed(rows)), encoding="utf-8")
    assert from_csv(file) == rows


def test_a_right_answer_is_read() -> None:
    answer = check(200, json.dumps(RIGHT).encode())
    assert (answer.error, answer.tokens, answer.windows, answer.stages) == ("", 5, 1, RIGHT["timing_ms"])


def test_a_taggers_answer_is_right_without_entities() -> None:
    prediction = {"entities": [], "tokens": 5, "windows": 1, "truncated": False}
    assert check(200, json.dumps({**RIGHT, "predictions": [prediction]}).encode()).error == ""


def _with(**changes: object) -> bytes:
    prediction = {key: value for key, value in {**RIGHT["predictions"][0], **changes}.items() if value is not None}
    return json.dumps({**RIGHT, "predictions": [prediction]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "error", "detail"),
    [
        (429, b'{"title": "full", "detail": "all places are taken"}', "http 429", "all places are taken"),
        (500, b"<html>", "http 500", "<html>"),
        (502, b"\xff\xfe", "http 502", "\ufffd\ufffd"),
        (200, b"hello", "not JSON", "hello"),
        (200, b"[]", "not JSON", "[]"),
        (200, b"{}", "missing predictions", ""),
        (200, json.dumps({**RIGHT, "predictions": []}).encode(), "missing predictions", ""),
        (200, _with(label=None), "missing label", ""),
        (200, _with(tokens=None), "missing tokens", ""),
        (200, _with(windows=0), "missing windows", ""),
        (200, _with(truncated=None), "missing truncated", ""),
        (200, _with(truncated=True), "truncated", ""),
        (200, json.dumps({**RIGHT, "timing_ms": {"total": 1}}).encode(), "missing timing_ms", ""),
    ],
)
def test_every_wrong_answer_has_a_kind(status: int, body: bytes, error: str, detail: str) -> None:
    answer = check(status, body)
    assert answer.error == error
    assert detail in answer.detail
