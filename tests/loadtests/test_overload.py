"""Ten times too much, on a server that takes two requests at a time and refuses the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from loadtests.__main__ import app

pytestmark = pytest.mark.slow


def overload(host: str, texts: Path, *more: str | Path) -> Result:
    options = ("--users", "2", "--rounds", "1", "--seconds", "1", "--warmup", "0.2", "--min-ratio", "0")
    return CliRunner().invoke(app, ["overload", "--host", host, "--texts", str(texts), *options, *map(str, more)])


def test_what_is_kept_of_the_peak_is_told_and_written(
    start_gateway: Callable[..., str], articles: Path, tmp_path: Path
) -> None:
    published = tmp_path / "overload.json"
    result = overload(start_gateway("--places", "2"), articles, "--publish", published, "--min-ratio", "50")
    assert result.exit_code == 1, result.output
    assert "% of the peak is kept; asked for are 5000%" in result.output
    written = json.loads(published.read_text(encoding="utf-8"))
    assert written["schema"] == "slipway.overload/2"
    assert {"hardware", "versions", "commit", "load_before", "plan", "engine"} <= written.keys()
    (only,) = written["rounds"]
    came = only["overload"]["outcomes"]
    assert came["in time"] > 0 and came["http 429"] > came["in time"], "most of it was refused"
    assert only["offered_requests_per_second"] == pytest.approx(10 * only["peak"]["good_requests_per_second"], rel=0.01)
    assert written["goodput_ratio"]["tokens"] == pytest.approx(
        only["overload"]["good_tokens_per_second"] / only["peak"]["good_tokens_per_second"], abs=0.001
    )
    rows = only["overload"]["by_length"]
    assert sum(row["in_time"] for row in rows.values()) == came["in time"]
    assert sum(row["offered"] for row in rows.values()) == sum(came.values())
    # The generator's own work is told apart.
    left = [written["hardware"]["cores"] - only[kind]["generator_cpu_cores"] for kind in ("peak", "overload")]
    assert written["goodput_ratio_per_core_left"]["tokens"] == pytest.approx(
        written["goodput_ratio"]["tokens"] * left[0] / left[1], abs=0.002
    )
    assert only["overload"]["retry_after_seconds"] == {"p50": 1, "p99": 1, "max": 1}
    assert only["overload"]["refusals_without_retry_after"] == 0


def test_callers_who_come_back_when_they_are_told_to_are_a_load_of_their_own(
    start_gateway: Callable[..., str], articles: Path, tmp_path: Path
) -> None:
    published = tmp_path / "overload.json"
    result = overload(start_gateway("--places", "2"), articles, "--publish", published, "--obedient", "--seconds", "2")
    assert "20 users who wait keep" in result.output
    (only,) = json.loads(published.read_text(encoding="utf-8"))["rounds"]
    obedient = only["obedient"]["outcomes"]
    assert obedient["in time"] > 0
    # Nobody asks more often than once a second where all are told to wait for one.
    assert obedient.get("http 429", 0) < only["overload"]["outcomes"]["http 429"] / 5


def test_a_refusal_that_does_not_say_when_to_come_back_is_a_failure(
    start_gateway: Callable[..., str], articles: Path
) -> None:
    result = overload(start_gateway("--places", "2", "--mute"), articles)
    assert result.exit_code == 1
    assert "refusals did not say when to come back" in result.output


def test_a_server_that_answers_nothing_right_ends_the_test(
    shared_gateway: str, write_texts: Callable[..., Path]
) -> None:
    result = overload(shared_gateway, write_texts("这一句话的答案是 GARBAGE，没有别的。"))
    assert result.exit_code == 2
    assert "no answer was right and in time" in result.output
