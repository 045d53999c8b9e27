"""What counts as wrong under chaos, and what counts as flat in a soak."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.callers import Callers, Outcome, read_asks, same
from loadtests.chaos import MODELS, STOPPED, TWICE, Blow
from loadtests.chaos_report import failures, figures_of, markdown
from loadtests.soak import judged, plot
from loadtests.texts import Ask
from loadtests.trend import trend
from tests.serving.tiny_bundle import make_bundle

ROOT = Path(__file__).parents[2]


def test_scores_may_differ_by_rounding_and_labels_may_not() -> None:
    right = {"label": "a", "score": 0.9, "labels": [{"label": "b", "score": 0.1}], "windows": 2}
    assert same(right, {**right, "score": 0.9004})
    assert not same(right, {**right, "score": 0.91})
    assert not same(right, {**right, "label": "b"})
    assert not same(right, {**right, "windows": 3})
    assert not same(right, {**right, "labels": []})
    assert not same(right, {key: value for key, value in right.items() if key != "labels"})


def blow(name: str, *outcomes: Outcome, **more: object) -> dict[str, object]:
    one = Blow(name, at=100.0, over=100.1, ready=[(99.9, True), (100.2, False), (102.0, True)], outcomes=[*outcomes])
    for key, value in more.items():
        setattr(one, key, value)
    return figures_of(one)


RIGHT = Outcome(103.0, 103.1, 200, "")


def test_a_blow_tells_when_it_showed_when_it_was_over_and_what_became_of_who_was_under_way() -> None:
    row = blow(
        "Triton is killed",
        Outcome(99.5, 104.0, 200, ""),
        Outcome(99.8, 100.3, 503, "", "Triton is restarting"),
        Outcome(101.0, 101.1, 503, "", "Triton is restarting"),
        RIGHT,
    )
    assert (row["not_ready_after_s"], row["ready_again_after_s"], row["answers_again_after_s"]) == (0.2, 2.0, 3.1)
    assert (row["under_way"], row["under_way_answered"], row["given_up"]) == (2, 1, 0)
    assert row["refused"] == {"503": 2}
    assert row["slowest_right_answer_s"] == 4.5
    assert failures([row]) == []


@pytest.mark.parametrize(
    ("name", "outcome", "sentence"),
    [
        ("x", Outcome(101, 101.1, 200, "wrong answer"), "1 wrong answers"),
        ("x", Outcome(101, 101.1, 500, "http 500"), "1 × http 500"),
        ("x", Outcome(101, 101.1, 503, "http 503 without Retry-After"), "without Retry-After"),
        ("x", Outcome(101, 101.1, 0, "ServerDisconnectedError"), "ServerDisconnectedError"),
        ("x", Outcome(101, 101.1, 0, "connection refused"), "connection refused"),
        ("x", Outcome(101, 109.0, 503, "", "engine-unavailable: x"), "let in and given up"),
        ("x", Outcome(101, 109.0, 429, "", "overloaded: x"), ""),
        (TWICE, Outcome(101, 109.0, 503, "", "engine-unavailable: x"), ""),
        (STOPPED, Outcome(101, 101.1, 0, "connection refused"), ""),
        (STOPPED, Outcome(101, 101.1, 0, "ServerDisconnectedError"), "ServerDisconnectedError"),
    ],
)
def test_what_must_not_happen_is_told(name: str, outcome: Outcome, sentence: str) -> None:
    found = failures([blow(name, RIGHT, outcome, notes={"exit_status": 0})])
    assert (len(found) == 1 and sentence in found[0]) if sentence else found == []


def test_a_gateway_that_stays_away_or_ends_badly_fails_the_run() -> None:
    assert "not ready again" in failures([blow("x", RIGHT, recovered=False)])[0]
    assert "ended with 1" in failures([blow(STOPPED, RIGHT, notes={"exit_status": 1})])[0]
    late = Outcome(101, 109.0, 503, "", "engine-unavailable: x")
    assert failures([blow(MODELS, RIGHT, late, notes={"triton_ended": False})])
    assert not failures([blow(MODELS, RIGHT, late, notes={"triton_ended": True})])


def test_the_page_has_a_row_for_each_blow_and_the_verdict() -> None:
    rows = [blow("Triton is killed", RIGHT), blow("callers hang up", RIGHT, recovered=False)]
    record = {
        "created": "2026-01-01T00:00:00+00:00",
        "commit": "abc",
        "hardware": {"cpu": "Abacus", "cores": 2},
        "load_before": 0.1,
        "model": {"name": "news", "format": "onnx_fp32"},
        "engine": "triton",
        "users": 8,
        "newcomers_per_second": 5.0,
        "texts": 3,
        "capacity_texts_per_second": 9.0,
        "blows": rows,
        "failures": failures(rows),
    }
    page = markdown(json.loads(json.dumps(record)))
    assert "| Triton is killed | 1 | 1 | 0 | 0 | 0 | 0 | 0 of 0 | 0.2 | 2.0 | 3.1 | 0.1 |" in page
    assert "- callers hang up: not ready again in time" in page


def test_noise_is_flat_growth_is_not_and_growth_too_small_to_matter_is() -> None:
    dice = random.Random(1)
    times = [10.0 * number for number in range(120)]
    noise = [100 + dice.random() for _ in times]
    assert trend(times, noise, 0.02)["flat"]
    # Ten MiB an hour of a hundred.
    leak = [value + 10 * time / 3600 for time, value in zip(times, noise, strict=True)]
    found = trend(times, leak, 0.02)
    assert not found["flat"] and abs(float(str(found["slope_share_per_hour"])) - 0.1) < 0.03
    assert trend(times, leak, 0.2)["flat"]
    assert trend(times, leak, 0.02, floor=4)["flat"] and not trend(times, leak, 0.02, floor=3)["flat"]
    assert trend(times, [200 - value for value in leak], 0.02)["flat"]
    assert trend(times, [100.0] * 120, 0.02)["flat"]


def test_a_soak_judges_what_comes_after_the_settling_and_says_where_it_is_too_short(tmp_path: Path) -> None:
    def sample(number: int, mib: float) -> dict[str, object]:
        return {"at_s": number * 10.0, "requests": 5, "refused": 0, "faulty": 0, "p50_ms": 1.0, "gateway_mib": mib}

    rising_first = [sample(n, 100 + min(n, 20) * 5) for n in range(100)]
    assert judged(rising_first)["flat"] is True
    rising = [sample(n, 100.0 + n) for n in range(100)]
    assert judged(rising)["flat"] is False and judged(rising)["trends"]["p50_ms"]["flat"]
    assert judged(rising[:9])["flat"] is None

    record = {"model": {"name": "news"}, "engine": "onnx", "rate_requests_per_second": 5, "samples": rising}
    plot(record | judged(rising), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_texts_come_from_the_test_split_or_from_the_golden_rows_that_every_bundle_has(tmp_path: Path) -> None:
    bundle = tmp_path / "news" / "bundle"
    (bundle / "splits").mkdir(parents=True)
    (bundle / "bundle.json").write_text("{}")
    (bundle / "golden.jsonl").write_text('{"text": "这是一个很好的例子。"}\n', encoding="utf-8")
    asks = read_asks(tmp_path, "news", None, pairs=False, max_chars=100, seed=1)
    assert {ask.text for ask in asks} == {"这是一个很好的例子。"}
    (bundle / "splits" / "test.jsonl").write_text('{"text": "股票和市场。"}\n', encoding="utf-8")
    assert {ask.text for ask in read_asks(tmp_path, "news", None, pairs=False, max_chars=9, seed=1)} == {"股票和市场。"}


@pytest.mark.slow
def test_callers_notice_a_refusal_without_retry_after_a_fault_and_no_answer(
    shared_gateway: str, start_gateway: Callable[..., str]
) -> None:
    async def ask(host: str, *texts: str) -> list[Outcome]:
        callers = Callers(host, "news", [Ask("short", 0, "好的。", None)], timeout=20, seed=1)
        await callers.learn()
        callers.asks += [Ask("short", 0, text, None) for text in texts]
        callers._truth += [None] * len(texts)
        async with callers.session() as session:
            for place in range(len(callers.asks)):
                await callers.ask(session, [place])
        await callers.open_loop(50, 0.1, 1)
        assert not callers.under_way
        return callers.outcomes

    good, busy, long = asyncio.run(ask(shared_gateway, "BUSY", "TOOLONG"))[:3]
    assert (good.status, good.fault) == (200, "")
    assert busy.refused and busy.said.endswith(": all places are taken")
    assert not long.refused and long.fault == "http 413"

    nowhere = Callers("http://127.0.0.1:9", "news", [Ask("short", 0, "好", None)], timeout=5, seed=1)
    (outcome,) = asyncio.run(nowhere.open_loop(1, 1, 1))
    assert outcome.fault == "connection refused"


# Enters a gateway of its own, says its process id, and waits to be ended.
ENDURES = """
import sys, time
from pathlib import Path
from loadtests.own_gateway import OwnGateway
with OwnGateway(["--engine", "onnx", "--bundles", sys.argv[1]], Path(sys.argv[2])) as gateway:
    print(gateway.pid, flush=True)
    time.sleep(300)
"""


@pytest.mark.slow
def test_whoever_ends_a_test_of_endurance_ends_its_gateway(tmp_path: Path) -> None:
    make_bundle(tmp_path / "artifacts" / "news" / "bundle", "news", "single-label")
    command = [sys.executable, "-c", ENDURES, str(tmp_path / "artifacts"), str(tmp_path / "logs")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        gateway = Path(f"/proc/{int(process.stdout.readline())}")
        assert gateway.exists()
        process.terminate()
        assert process.wait(60) == 143
    assert not gateway.exists()
