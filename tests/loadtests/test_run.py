"""Real Locust against a real HTTP server, through the command line and the function behind it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loadtests.__main__ import app
from loadtests.plan import is_loopback
from loadtests.sent import Sent, from_csv

FINE = "这是一个很好的句子，讲的是股票。"


def loadtest(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def brief(host: str, texts: Path, out: Path, *more: str | Path) -> Result:
    """A run of about a second with two users; later options win."""
    options = ("--seconds", "1", "--warmup", "0.3", "--users", "2", "--max-requests", "400")
    return loadtest("--host", host, "--texts", texts, "--out", out, *options, *more)


def summary_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return found


def sequences(rows: list[Sent]) -> dict[int, list[tuple[str, int]]]:
    found: dict[int, list[tuple[str, int]]] = {}
    for row in sorted(rows, key=lambda row: row.number):
        found.setdefault(row.user, []).append((row.kind, row.place))
    return found


@pytest.mark.slow
def test_a_run_writes_rows_reports_and_a_summary_that_agree(
    shared_gateway: str, articles: Path, tmp_path: Path
) -> None:
    out, published = tmp_path / "out", tmp_path / "docs" / "loadtest-news.json"
    result = brief(shared_gateway, articles, out, "--max-requests", "9999", "--publish", published)
    assert result.exit_code == 0, result.output
    rows, summary = from_csv(out / "requests.csv"), summary_of(out)
    measured = [row for row in rows if not row.warmup]
    assert summary["requests"] == len(measured) > 0
    assert summary["requests_in_warmup"] == len(rows) - len(measured) > 0
    assert summary["errors"] == {"count": 0, "share": 0.0, "by_kind": {}}
    assert {row.kind for row in rows} == {"short", "long"}
    assert all(row.tokens > 0 and row.total_ms == 0.5 and row.start == row.intended for row in rows)
    assert summary["model"] == {"name": "news", "task": "single-label", "format": "onnx_int8"}
    assert {"hardware", "versions", "commit", "plan"} <= summary.keys()
    with (out / "locust_stats.csv").open(encoding="utf-8") as stream:
        locust = {row["Name"]: int(row["Request Count"]) for row in csv.DictReader(stream)}
    assert locust["Aggregated"] == len(measured)
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    assert json.loads(published.read_text(encoding="utf-8")) == summary
    assert result.output.splitlines()[-1].startswith(f"results are in {out}")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_a_rerun_sends_the_same_requests_in_the_same_order(shared_gateway: str, articles: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        assert brief(shared_gateway, articles, tmp_path / name, "--max-requests", "60", "--warmup", "0").exit_code == 0
        runs.append(sequences(from_csv(tmp_path / name / "requests.csv")))
    assert runs[0].keys() == runs[1].keys() == {0, 1}
    for user, sequence in runs[0].items():
        common = min(len(sequence), len(runs[1][user]))
        assert common > 0
        assert sequence[:common] == runs[1][user][:common]


@pytest.mark.slow
def test_the_count_bounds_a_run(shared_gateway: str, articles: Path, tmp_path: Path) -> None:
    result = brief(
        shared_gateway, articles, tmp_path / "out", "--max-requests", "25", "--warmup", "0", "--seconds", "600"
    )
    assert result.exit_code == 0, result.output
    assert len(from_csv(tmp_path / "out" / "requests.csv")) == 25


@pytest.mark.slow
def test_wrong_answers_are_counted_by_kind_and_fail_the_run(
    shared_gateway: str, write_texts: Callable[..., Path], tmp_path: Path
) -> None:
    faults = ("BUSY", "TRUNCATED", "GARBAGE", "NOTIMING")
    texts = write_texts(FINE, *(fault + FINE for fault in faults), FINE * 10)
    out = tmp_path / "out"
    result = brief(shared_gateway, texts, out, "--short-share", "0", "--warmup", "0", "--seconds", "5")
    assert result.exit_code == 1, result.output
    assert "of the requests failed; allowed are 1.00%" in result.output
    rows, errors = from_csv(out / "requests.csv"), summary_of(out)["errors"]
    assert errors["by_kind"].keys() == {"http 429", "truncated", "not JSON", "missing timing_ms"}
    assert sum(errors["by_kind"].values()) == errors["count"] == sum(bool(row.error) for row in rows)
    assert {row.status for row in rows if row.error == "http 429"} == {429}
    with (out / "locust_failures.csv").open(encoding="utf-8") as stream:
        assert sum(int(row["Occurrences"]) for row in csv.DictReader(stream)) == errors["count"]
    assert brief(shared_gateway, texts, out, "--warmup", "0", "--max-error-share", "1").exit_code == 0


@pytest.mark.slow
def test_open_loop_latency_counts_from_the_intended_start(
    start_gateway: Callable[..., str], articles: Path, tmp_path: Path
) -> None:
    # Two requests try the gateway out; some time later it stands still for a second.
    host, out = start_gateway("--stall", "30", "1.0"), tmp_path / "out"
    result = brief(host, articles, out, "--rate", "40", "--users", "3", "--seconds", "3", "--warmup", "0")
    assert result.exit_code == 0, result.output
    rows, summary = sorted(from_csv(out / "requests.csv"), key=lambda row: row.number), summary_of(out)
    # No arrival is left out because the server was slow …
    assert [row.number for row in rows] == list(range(120))
    assert [row.intended for row in rows] == pytest.approx([number / 40 for number in range(120)], abs=1e-5)
    # … and all that should have started during the stall waited for its end, not only the three on the wire.
    stalled = max(rows, key=lambda row: row.latency_ms)
    assert stalled.latency_ms > 900
    during = [row for row in rows if stalled.intended <= row.intended < stalled.end - 0.1]
    assert len(during) > 30
    assert all(row.end >= stalled.end - 0.1 for row in during)
    assert (summary["mode"], summary["waited_for_connection_ms"]["p99_ms"] > 100) == ("open", True)


@pytest.mark.slow
def test_requests_that_time_out_or_are_never_sent_are_errors(
    start_gateway: Callable[..., str], articles: Path, tmp_path: Path
) -> None:
    host, out = start_gateway("--stall", "8", "600"), tmp_path / "out"
    result = brief(host, articles, out, "--rate", "40", "--users", "1", "--timeout", "2", "--warmup", "0")
    assert result.exit_code == 1, result.output
    rows, errors = from_csv(out / "requests.csv"), summary_of(out)["errors"]
    assert len(rows) == 40
    assert errors["by_kind"].keys() == {"timeout", "unsent"}
    assert {row.status for row in rows if row.error} == {0}


@pytest.mark.slow
def test_pairs_are_sent_to_a_model_that_compares_two_texts(
    start_gateway: Callable[..., str], write_texts: Callable[..., Path], tmp_path: Path
) -> None:
    host = start_gateway("--task", "text-pair")
    texts, out = write_texts(FINE * 3, pair=FINE), tmp_path / "out"
    result = brief(host, texts, out, "--model", "reviews", "--max-requests", "40", "--warmup", "0")
    assert result.exit_code == 0, result.output
    assert {row.tokens for row in from_csv(out / "requests.csv")} == {2 * len(FINE), 4 * len(FINE)}


@pytest.mark.slow
def test_a_text_that_the_gateway_refuses_ends_the_run_before_any_load(
    shared_gateway: str, write_texts: Callable[..., Path], tmp_path: Path
) -> None:
    result = brief(shared_gateway, write_texts(FINE, FINE * 5 + "TOOLONG"), tmp_path / "out")
    assert result.exit_code == 2
    assert "longest text" in result.output
    assert "http 413 (9 windows; the limit is 8; pass a smaller --max-chars" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_that_is_not_served_is_named_with_those_that_are(
    shared_gateway: str, articles: Path, tmp_path: Path
) -> None:
    result = brief(shared_gateway, articles, tmp_path / "out", "--model", "weather")
    assert result.exit_code == 2
    assert "does not serve 'weather'; it serves news, reviews" in result.output


@pytest.mark.slow
def test_a_gateway_that_is_not_ready_is_not_loaded(
    start_gateway: Callable[..., str], articles: Path, tmp_path: Path
) -> None:
    result = brief(start_gateway("--not-ready"), articles, tmp_path / "out")
    assert result.exit_code == 2
    assert "/health/ready answers 503" in result.output


@pytest.mark.slow
def test_the_test_split_of_the_served_bundle_is_read_by_default(
    shared_gateway: str, articles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--host", shared_gateway, "--seconds", "1", "--max-requests", "5", "--warmup", "0")
    result = loadtest(*arguments)
    assert result.exit_code == 2
    assert "artifacts/news/bundle/splits/test.jsonl: no such file" in result.output
    assert "pass --texts" in result.output
    folder = tmp_path / "artifacts" / "news" / "bundle"
    (folder / "rows").mkdir(parents=True)
    articles.rename(folder / "rows" / "test.jsonl")
    (folder / "bundle.json").write_text('{"splits": {"test": {"file": "rows/test.jsonl"}}}', encoding="utf-8")
    result = loadtest(*arguments)
    assert result.exit_code == 0, result.output
    assert "reads   artifacts/news/bundle/rows/test.jsonl" in result.output


def test_a_server_that_is_not_there_is_named_with_the_way_to_start_one(articles: Path, tmp_path: Path) -> None:
    result = brief("http://127.0.0.1:9", articles, tmp_path / "out")
    assert result.exit_code == 2
    assert "no gateway at http://127.0.0.1:9" in result.output
    assert "`make serve`" in result.output


@pytest.mark.parametrize("host", ["http://example.com", "http://10.0.0.7:8000", "https://127.0.0.1.example.com"])
def test_another_machine_is_not_loaded_unless_told(host: str, articles: Path, tmp_path: Path) -> None:
    result = brief(host, articles, tmp_path / "out")
    assert result.exit_code == 2
    assert f"{host} is not this machine" in result.output
    assert "--allow-remote" in result.output


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "http://", "ftp://127.0.0.1", "http://127.0.0.1/v1", "http://[::1"])
def test_an_address_that_is_none_is_refused(host: str, articles: Path, tmp_path: Path) -> None:
    result = brief(host, articles, tmp_path / "out", "--allow-remote")
    assert result.exit_code == 2
    assert f"--host {host}:" in result.output


def test_loopback_has_several_names() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "localhost.example.com", "192.168.0.1", "::")))
