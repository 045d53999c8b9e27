"""Each fault is found in a real training that has it, and nothing is found in healthy ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.curve.diagnosis import FINDINGS, diagnose, timeline
from finetune.curve.record import History, read
from finetune.curve.settings import Thresholds
from tests.finetune.faults import FAULTS, HEALTHY, train_case
from tests.finetune.short_training import RUN, run, write_recipe
from tests.tiny_base import mood_rows

pytestmark = pytest.mark.slow


def test_every_finding_has_a_training_that_shows_it() -> None:
    assert {case.finding for case in FAULTS.values()} == set(FINDINGS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_its_name(name: str, tmp_path: Path) -> None:
    history = read(train_case(FAULTS[name], tmp_path))
    spells = {spell.finding.name: spell for spell in timeline(history)}
    wanted = FAULTS[name].finding
    assert wanted in spells, f"found {sorted(spells)}"
    finding = spells[wanted].finding
    assert finding.evidence and len(finding.sentence.split()) > 8
    assert timeline(read(tmp_path / "run")) == timeline(history), "the record tells it again"


@pytest.mark.parametrize("name", ["as it should be", "5% of the labels wrong"])
def test_a_healthy_training_is_not_called_ill(name: str, tmp_path: Path) -> None:
    assert [spell.finding.name for spell in timeline(read(train_case(HEALTHY[name], tmp_path)))] == []


def test_rows_that_were_right_by_chance_cannot_be_forgotten() -> None:
    """The dev scores of a healthy run that was once called forgetful, and of one that truly forgets."""

    def found(right: list[float], forgotten: list[float]) -> list[str]:
        points = [
            {"kind": "dev", "step": 15 * place, "right": share, "forgotten": gone, "top_answer": 0.6, "suspects": None}
            | {"loss": 0.5, "train_loss": 0.5, "gap": 0.0}
            for place, (share, gone) in enumerate(zip(right, forgotten, strict=True), 1)
        ]
        return [finding.name for finding in diagnose(History(RUN, points))]

    assert found([0.5, 0.5, 0.775], [0.0, 1.0, 0.3]) == []
    assert found([0.85, 1.0, 0.5, 0.5], [0.1, 0.0, 0.5, 0.5]) == ["forgetting"]


def test_a_rate_that_was_lowered_is_still_too_high_where_train_stays_above_chance() -> None:
    """Not where it is at chance, as a healthy model's may be for long, nor where it comes down from far above."""
    assert lowered(0.9) and lowered(0.9, dev=[(0.7, 0.6)])
    assert not lowered(0.9, updates=19) and not lowered(0.8) and not lowered(0.8, first=4.0)
    assert not lowered(2.0, first=2.0), "it is as it began"
    assert not lowered(0.9, dev=[(0.6, 0.6)]), "dev was better than chance"
    assert not lowered(0.9, finding="forgetting") and not lowered(0.9, dry_run=True)


def test_a_rate_that_was_lowered_is_still_too_high_where_every_row_gets_the_same_answer_for_long() -> None:
    alike = [(0.7, 1.0), (0.69, 1.0)]
    assert lowered(0.7, updates=40, dev=alike)
    assert not lowered(0.7, updates=39, dev=alike) and not lowered(0.7, updates=40, dev=alike[:1])
    assert not lowered(0.7, updates=40, dev=[*alike, (0.69, 0.9)])
    assert not lowered(0.7, updates=40, dev=alike, task="multi-label")


def lowered(
    loss: float,
    updates: int = 20,
    *,
    first: float = 0.7,
    dev: Sequence[tuple[float, float]] = (),
    task: str = "single-label",
    **event: object,
) -> bool:
    """Whether a rate is found too high so many updates after it was lowered.

    Args:
        loss: of each of these updates but for the first of them.
        first: the loss of that, with the weights of the start.
        dev: loss and share of the most common answer of each evaluation since.
        event: what was else about the event that lowered it.
    """
    points: list[dict[str, object]] = [
        {"kind": "train", "step": 1, "rate": 1e-3, "loss": first, "travel": 1.0},
        {"kind": "event", "step": 8, "finding": "rate-too-high", "rollback": 0, **event},
    ]
    points += [
        {"kind": "dev", "step": 9, "loss": own, "train_loss": 0.7, "gap": 0.0, "right": 0.5, "top_answer": top}
        for own, top in dev
    ]
    points += [
        {"kind": "train", "step": step, "rate": 1e-4, "loss": loss if step > 9 else first, "travel": 1.0}
        for step in range(9, 9 + updates)
    ]
    return "rate-too-high" in {finding.name for finding in diagnose(History({**RUN, "task": task}, points))}


def test_an_empty_history_has_no_finding_and_a_threshold_can_be_changed() -> None:
    assert diagnose(History(RUN)) == []
    losses = [(0.3, 0.3), (0.25, 0.32), (0.2, 0.4), (0.1, 0.45)]
    points = [
        {"kind": "dev", "step": step, "train_loss": train, "loss": dev, "gap": (dev - train) / 0.7, "top_answer": 0.5}
        | {"right": 0.9, "suspects": None}
        for step, (train, dev) in enumerate(losses, 1)
    ]
    assert [finding.name for finding in diagnose(History(RUN, points))] == ["overfitting"]
    assert diagnose(History(RUN, points), Thresholds(gap=0.6)) == []


def test_a_model_that_learns_among_windows_that_tell_nothing_is_not_called_stagnant(tmp_path: Path) -> None:
    """Half of the windows are best answered evenly, at the loss of chance; what is recorded leaves them out."""
    (tmp_path / "neutral.txt").write_text(
        "今天北京上海广州人民日报记者张三李四王五在去来了说是不的一大中国" * 3, encoding="utf-8"
    )
    recipe = write_recipe(
        tmp_path,
        rows=[row for row in mood_rows(400) if len(row[0]) < 40],
        train={"epochs": "8", "windows": '"random"', "eval_every": "0.25", "watch_rows": "40"},
        data='neutral = "neutral.txt"\nneutral_share = 1.0\nneutral_telling = 0.5',
        curve="thresholds = { unlearned = 0.3, flat = 0.9 }",
    )
    run(recipe, tmp_path / "run")
    history = read(tmp_path / "run")
    assert history.of("dev")[-1]["train_loss"] < 0.2 * history.run["chance"]
    assert "stagnation" not in {finding.name for finding in diagnose(history)}
