"""``python -m export plan`` with real ONNX Runtime on tiny graphs: what is measured, chosen, kept and told."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bundle.errors import ExportError
from bundle.folder import Bundle, open_bundle
from bundle.machine import cores
from bundle.manifest import Plan, Setup
from bundle.plan import this_machine
from bundle.rows import Row, write_rows
from export.__main__ import app
from export.journal import Journal
from export.plan import Board, Wish, candidates, layouts, plan
from export.to_triton import write_repository
from export.traffic import Lap, Track
from tests.serving.tiny_bundle import CHARACTERS, elsewhere, make_bundle, rebind, with_plan

BRIEF = Wish("brief", clients=4, paddle=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return with_dev(make_bundle(tmp_path / "news" / "bundle", "news", "single-label"))


def with_dev(bundle: Bundle, rows: int = 12) -> Bundle:
    """The bundle with dev rows of one to a few windows."""
    dice = random.Random(3)
    texts = ["".join(dice.choices(CHARACTERS, k=dice.choice((4, 20, 60, 120)))) for _ in range(rows)]
    write_rows(bundle.root / "dev.jsonl", [Row(text, "正面") for text in texts])
    return bundle.save(bundle.manifest.model_copy(update={"splits": {"dev": bundle.refer("dev.jsonl")}}))


def told(bundle: Bundle, wish: Wish = BRIEF, *, force: bool = False) -> tuple[Bundle, str]:
    """Plans, and returns the bundle and what a person reads."""
    words = io.StringIO()
    made = plan(bundle, Journal(bundle.root / "export.log", Console(file=words, width=100)), wish, force=force)
    return made, words.getvalue()


def of(bundle: Bundle) -> Plan:
    assert bundle.manifest.plan is not None
    return bundle.manifest.plan


def test_the_choice_the_table_and_the_machine_are_written_to_the_manifest(bundle: Bundle) -> None:
    _, text = told(bundle)
    made = of(open_bundle(bundle.root))

    here = this_machine()
    assert made.machine == here and "onnxruntime" in made.machine.versions
    assert made.artifacts == {"onnx_fp32": bundle.manifest.artifacts["onnx_fp32"].identity}
    assert made.defaults == Setup(artifact="onnx_fp32", threads=cores(), sessions=1, windows=1)
    measured = {trial.setup: trial for trial in made.table}
    assert {made.latency, made.throughput, made.defaults} <= set(measured)
    assert {setup.windows for setup in measured} == {1, 8}
    assert {setup.by_length for setup in measured} == {True, False}
    for trial in made.table:
        assert trial.requests and trial.p50_ms and trial.p99_ms and trial.p50_ms <= trial.p99_ms
        assert trial.loaded_requests and trial.texts_per_second and trial.throughput_ratio
    assert measured[made.defaults].speedup == measured[made.defaults].throughput_ratio == 1
    for words in ("latency (lowest p50", f"throughput (most texts/s under the p99 limit): {made.throughput}", here.cpu):
        assert words in text.replace("\n", " ")


@pytest.mark.slow
def test_what_is_planned_is_not_measured_again_unless_asked_to(bundle: Bundle) -> None:
    bundle, _ = told(bundle)
    again, text = told(bundle)
    assert "up to date: brief plan" in text
    assert again.manifest == bundle.manifest

    forced, text = told(bundle, force=True)
    assert " 0 rounds were measured now" not in text
    assert of(forced).table != of(bundle).table


def test_an_interrupted_search_goes_on_from_its_last_whole_round(bundle: Bundle) -> None:
    planned, _ = told(bundle)
    file = bundle.root.parent / "plan.json"
    assert [path.name for path in bundle.root.parent.iterdir() if path.name.startswith(".")] == []
    interrupted = planned.save(planned.manifest.model_copy(update={"plan": None}))
    same, text = told(interrupted)
    assert " 0 rounds were measured now" in text
    assert (of(same).throughput, of(same).table) == (of(planned).throughput, of(planned).table)

    # As if it had been killed in the last round: one candidate of it is missing.
    kept = json.loads(file.read_text(encoding="utf-8"))
    (machine,) = kept["machines"].values()
    (form,) = machine["forms"].values()
    laps = next(laps for laps in form.values() if any("throughput/4/brief 3/1" in name for name in laps))
    del laps[next(name for name in laps if "throughput/4/brief 3/1" in name)]
    file.write_text(json.dumps(kept), encoding="utf-8")
    _, text = told(interrupted)
    assert " 1 rounds were measured now" in text


def rounds(text: str) -> int:
    """How many were measured."""
    found = re.search(r"(\d+) rounds were measured now", text.replace("\n", " "))
    assert found, text
    return int(found[1])


def interrupted(bundle: Bundle, wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that was to measure anew, and was stopped after twenty laps."""
    drive, laps = Track.drive, 0

    def some(track: Track, *lap: Any) -> Any:
        nonlocal laps
        laps += 1
        if laps > 20:
            raise KeyboardInterrupt
        return drive(track, *lap)

    with monkeypatch.context() as patch:
        patch.setattr(Track, "drive", some)
        with pytest.raises(KeyboardInterrupt):
            told(bundle, wish, force=True)


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_a_search_that_measures_anew_and_is_interrupted_goes_on(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    planned, text = told(bundle)
    whole = rounds(text)
    interrupted(planned, BRIEF, monkeypatch)
    again, text = told(planned, force=force)
    assert "up to date" not in text and 0 < rounds(text) < whole
    assert "up to date" in told(again)[1]


@pytest.mark.slow
def test_a_better_plan_is_not_given_up_for_a_brief_one_where_its_repetition_was_interrupted(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Wish("quick", clients=4, paddle=False, openvino=False)
    planned, _ = told(bundle, quick)
    interrupted(planned, quick, monkeypatch)
    same, text = told(planned, BRIEF)
    assert "up to date: quick plan" in text and same.manifest == planned.manifest
    _, text = told(planned, quick)
    assert "up to date" not in text


@pytest.mark.parametrize("place", ["/dev/null/folder/plan.json", "."])
def test_a_results_file_that_cannot_be_written_is_told_before_anything_is_measured(bundle: Bundle, place: str) -> None:
    result = CliRunner().invoke(app, ["plan", str(bundle.root.parent), "--out", place])
    assert result.exit_code == 1 and "cannot be written: " in result.output.replace("\n", " ")
    assert not (bundle.root.parent / "plan.json").exists()


def test_kept_measurements_that_are_broken_are_measured_anew(bundle: Bundle) -> None:
    (bundle.root.parent / "plan.json").write_text('{"schema": "slipway', encoding="utf-8")
    made, text = told(bundle)
    assert made.manifest.plan and " 0 rounds were measured now" not in text


@pytest.mark.slow
def test_another_graph_or_machine_asks_for_a_new_plan(bundle: Bundle, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", "other", "single-label", seed=1)
    changed = rebind(told(bundle)[0], other.path("onnx_fp32/model.onnx"))
    assert changed.manifest.plan is None
    remade, text = told(changed)
    assert of(remade).artifacts == {"onnx_fp32": changed.manifest.artifacts["onnx_fp32"].identity}
    assert " 0 rounds were measured now" not in text

    foreign, text = told(with_plan(remade, elsewhere()))
    assert "up to date" not in text
    assert of(foreign).machine.cpu == this_machine().cpu


def test_a_graph_that_depends_on_its_batch_runs_one_window_at_a_time(tmp_path: Path) -> None:
    made, _ = told(with_dev(make_bundle(tmp_path / "b", "b", "single-label", precision="int8")))
    assert {trial.setup.windows for trial in of(made).table} == {1}


@pytest.mark.slow
def test_the_exhaustive_search_drives_everything_and_judges_the_quick_one(bundle: Bundle) -> None:
    made, text = told(bundle, Wish("exhaustive", clients=2, paddle=False, openvino=False))
    rounds = {trial.loaded_rounds for trial in of(made).table}
    assert len(of(made).table) == len(layouts(cores())) * 9
    assert min(rounds) >= 6
    assert text.count("behind the exhaustive best") == 2
    assert of(made).search == "exhaustive"
    # Where the choice is not the defaults themselves, it is set against them.
    if of(made).throughput != of(made).defaults:
        (duel,) = of(made).vs_defaults
        assert duel.against == of(made).defaults and duel.lowest <= duel.ratio <= duel.highest


@pytest.mark.slow
def test_an_exported_model_is_set_against_its_defaults_the_plain_graph_and_paddle(
    copied: Callable[[str], Bundle],
) -> None:
    made, text = told(copied("bert-classes"), Wish("quick", clients=2, openvino=False))
    forms = {trial.setup.artifact for trial in of(made).table}
    assert forms >= set(made.manifest.servable) >= {"onnx_fp32", "onnx_fused"}
    assert of(made).throughput.artifact in made.manifest.servable
    rivals = {(duel.against.runtime, duel.against.artifact): duel for duel in of(made).vs_defaults}
    paddle = rivals["paddle-inference", "paddle_static"]
    assert paddle.ratio > 0 and paddle.requests > 0
    # It stands in the table beside the others, and cannot be chosen.
    (trial,) = [trial for trial in of(made).table if trial.setup.runtime == "paddle-inference"]
    assert trial.setup.artifact == "paddle_static" and trial.p50_ms
    assert trial.texts_per_second and trial.throughput_ratio
    assert "Paddle" in text and "ONNX RT" in text
    if of(made).throughput.artifact != "onnx_fp32":
        plain = [duel.against for duel in of(made).vs_defaults if duel.against.artifact == "onnx_fp32"]
        assert plain[0].sessions == 1 and plain[0].threads == cores()
        # Beside the runtime's defaults, the best that was seen of that graph; one and the same where the defaults won.
        seen = {trial.setup: trial.throughput_ratio or 0.0 for trial in of(made).table}
        of_plain = {setup: ratio for setup, ratio in seen.items() if setup.artifact == "onnx_fp32"}
        assert of_plain[plain[-1]] == max(of_plain.values())


def test_a_bundle_without_dev_rows_or_publication_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no dev rows"):
        told(make_bundle(tmp_path / "a", "a", "single-label"))
    with pytest.raises(ExportError, match="nothing is published"):
        told(with_dev(make_bundle(tmp_path / "b", "b", "single-label", published=False)))


@pytest.mark.slow
def test_the_command_plans_and_writes_tritons_files_anew(bundle: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_repository(bundle, repository)
    before = (repository / "news" / "config.pbtxt").read_text(encoding="utf-8")
    assert "plan_cpu" not in before
    options = ["--no-paddle", "--clients", "2", "--p99-ms", "1000", "--repository", str(repository)]
    options += ["--out", str(tmp_path / "results" / "plan-news.json")]
    result = CliRunner().invoke(app, ["plan", str(bundle.root.parent), *options])
    assert result.exit_code == 0, result.output
    made = of(open_bundle(bundle.root))
    assert (made.search, made.clients, made.p99_limit_ms) == ("quick", 2, 1000)
    config = (repository / "news" / "config.pbtxt").read_text(encoding="utf-8")
    assert f"count: {made.throughput.sessions} " in config and "plan_cpu" in config
    record = json.loads((tmp_path / "results" / "plan-news.json").read_text(encoding="utf-8"))
    assert record["throughput"]["told"] == str(made.throughput) and record["bundle"] == "news"
    assert [duel["ratio"] for duel in record["vs_defaults"]] == [duel.ratio for duel in made.vs_defaults]
    assert record["hardware"]["cpu"] == made.machine.cpu and record["commit"] == made.commit
    assert str(tmp_path) not in json.dumps(record)


def test_layouts_use_all_cores() -> None:
    assert layouts(1) == [(1, 1)]
    assert layouts(2) == [(1, 2), (2, 1)]
    assert layouts(6) == [(1, 6), (1, 4), (3, 2), (6, 1)]
    assert all(sessions * threads <= 64 for sessions, threads in layouts(64))


def test_sessions_that_do_not_fit_into_memory_are_left_out(bundle: Bundle) -> None:
    found = candidates(bundle.manifest, ["onnx_fp32"], 8, [1], free_bytes=0)
    # One session fits always, and sessions of one thread share their weights.
    assert {(setup.sessions, setup.threads) for setup in found} == {(1, 8), (8, 1)}


def lap(rate: float, slowest: float = 10.0) -> Lap:
    """100 texts at this rate; the slowest took so many milliseconds."""
    return Lap(100 / rate, (*[slowest / 2] * 98, slowest, slowest))


SLOW, FAST, LATE = (Setup(artifact="a", threads=1, sessions=1, windows=windows) for windows in (1, 4, 8))


def test_the_ratio_is_taken_within_a_round_so_that_drift_does_not_count() -> None:
    board = Board("throughput", SLOW, 0.0)
    # The machine is ten times slower in the second round; FAST was only in that one.
    board.rounds = [{SLOW: lap(100), LATE: lap(150)}, {SLOW: lap(10), FAST: lap(20)}]
    assert board.ratio(FAST, board.shared([FAST])) == pytest.approx(2.0)
    assert board.ratio(LATE, board.shared([LATE])) == pytest.approx(1.5)


def test_the_most_throughput_is_not_taken_where_it_breaks_the_limit() -> None:
    rounds = [{SLOW: lap(100, 50), FAST: lap(130, 60), LATE: lap(200, 400)}]
    free, bound = Board("throughput", SLOW, 1000.0, rounds), Board("throughput", SLOW, 0.0, rounds)
    assert free.best([SLOW, FAST, LATE], rounds) == LATE
    assert bound.limit(rounds) == 100
    assert bound.best([SLOW, FAST, LATE], rounds) == FAST
    nobody = Board("throughput", SLOW, 1.0, rounds)
    assert nobody.best([SLOW, FAST, LATE], rounds) == SLOW, "then the one that breaks it least"


def test_of_equals_the_one_with_the_smallest_computations_is_taken() -> None:
    rounds = [{SLOW: lap(100), FAST: lap(200), LATE: lap(201)}]
    assert Board("throughput", SLOW, 1000.0, rounds).best([SLOW, LATE, FAST], rounds) == FAST
