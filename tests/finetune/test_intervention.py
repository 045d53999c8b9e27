"""The controller mends a bad run, turns every knob it has, only talks in a dry run, and survives a kill."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finetune.curve.intervention import Controller, Knobs, Move, knobs_of, strategies
from finetune.curve.record import NAME, History, Record, read
from finetune.curve.settings import BackOff, Curve, EarlyStop, RaiseDropout, RDrop
from finetune.model.paddle_weights import read_paddle_state
from finetune.recipe import load
from finetune.report.page import write_page
from finetune.report.source import open_run
from finetune.train import Trained
from tests.finetune.short_training import RUN, run, weights, write_recipe
from tests.tiny_base import mood_rows

ROOT = Path(__file__).parents[2]
FEW = {"eval_every": "0.25", "epochs": "4", "watch_rows": "40"}
# A rate that starts again, and layers that are unfrozen one after the other.
STAGED = {
    "schedule": '"cosine"',
    "floor": "0.1",
    "restarts": "2",
    "layer_decay": "0.9",
    "unfreeze": '"by-schedule"',
    "head_first": "0.1",
    "unfreeze_until": "0.3",
}
# Any rise of dev counts as overfitting and nothing has to cool down, so that one short run fires one after the other.
EAGER = """
level = 2
layers_every = 1
control = "on"
early_stop = { use = true, patience = 12, min_delta = 0.5 }
back_off = { use = false }
dropout = { use = true, cool_down = 0, to = 0.2 }
weight_decay = { use = true, cool_down = 0 }
freeze = { use = true, cool_down = 0 }
fgm = { use = true, cool_down = 0, epsilon = 0.1 }
label_smoothing = { use = true, cool_down = 0 }
r_drop = { use = true, cool_down = 0 }
unfreeze = { use = true, cool_down = 0 }
[curve.thresholds]
gap = 0.000001
rises = 1
"""


def controller(settings: Curve, folder: Path, **usual: Any) -> Controller:
    record = Record(folder / "curve.jsonl")
    record.begin(RUN, 0)
    own = {"dropout": 0.1, "decay": 0.01, "frozen": lambda: 0, "single": True} | usual
    return Controller(settings, record, strategies(settings, **own), "macro_f1")


def lost(found: Controller, step: int) -> None:
    found.record.add(
        "dev", step, loss=1.4, train_loss=1.2, gap=0.3, top_answer=1.0, right=0.5, scores={"macro_f1": 0.3}
    )


def killed_and_resumed(recipe: Path, folder: Path, step: int) -> Trained:
    """Trains in a process of its own, which is killed once the record has the step; then to the end in this one."""
    command = [sys.executable, "-m", "tests.finetune.short_training", str(recipe), str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    # The record is there a moment before its first line is.
    while not (folder / NAME).is_file() or not (folder / NAME).stat().st_size or read(folder).step < step:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return run(recipe, folder)


def test_a_strategy_keeps_to_its_cool_down_and_budget(tmp_path: Path) -> None:
    found = controller(Curve(control="on", back_off=BackOff(cool_down=0.1, budget=2, rollback=False)), tmp_path)
    fired = []
    for step in range(2, 60, 2):
        lost(found, step)
        if decided := found.decide():
            strategy, finding, move = decided
            found.note(step, strategy.name, finding, found.knobs, move.knobs)
            fired.append(step)
    assert fired == [4, 14]
    assert found.knobs.rate == pytest.approx(0.01)


def test_a_dry_run_says_what_it_would_do_and_turns_nothing(tmp_path: Path) -> None:
    found = controller(Curve(control="dry-run"), tmp_path)
    lost(found, 2)
    lost(found, 4)
    decided = found.decide()
    assert decided is not None
    strategy, finding, move = decided
    event = found.note(4, strategy.name, finding, found.knobs, move.knobs)
    assert event["dry_run"] and event["before"] == {"rate": 1.0} and event["after"] == {"rate": 0.1}
    assert found.knobs == Knobs()


def test_off_decides_nothing_and_an_unused_strategy_is_not_there(tmp_path: Path) -> None:
    found = controller(Curve(), tmp_path)
    lost(found, 2)
    lost(found, 4)
    assert found.decide() is None
    assert [one.name for one in found.strategies] == ["back-off"]


def test_dropout_is_only_raised(tmp_path: Path) -> None:
    settings = Curve(control="on", dropout=RaiseDropout(use=True, to=0.3))
    for usual, wanted in ((0.1, 0.3), (0.4, None)):
        strategy = next(s for s in strategies(settings, usual, 0.01, lambda: 0, True) if s.name == "dropout")
        move = strategy.action(Knobs())
        assert (move.knobs.dropout if move else None) == wanted


@pytest.mark.parametrize(("usual", "fires"), [(0.1, True), (0.0, False)])
def test_r_drop_needs_dropout(usual: float, fires: bool) -> None:
    settings = Curve(control="on", r_drop=RDrop(use=True, alpha=2.0))
    strategy = next(one for one in strategies(settings, usual, 0.01, lambda: 0, True) if one.name == "r-drop")
    assert strategy.action(Knobs()) == (Move(Knobs(r_drop=2.0)) if fires else None)
    assert strategy.action(Knobs(dropout=0.3)) == Move(Knobs(dropout=0.3, r_drop=2.0))


@pytest.mark.parametrize(("delta", "stops"), [(0.0, False), (0.02, True)])
def test_early_stopping_has_a_tolerance(tmp_path: Path, delta: float, stops: bool) -> None:
    settings = Curve(control="on", early_stop=EarlyStop(use=True, patience=2, min_delta=delta))
    found = controller(settings, tmp_path)
    for step, score in enumerate((0.5, 0.9, 0.9, 0.91), 1):
        found.record.add(
            "dev", step, loss=0.3, train_loss=0.3, gap=0.0, top_answer=0.5, right=score, scores={"macro_f1": score}
        )
    decided = found.decide()
    assert (decided is not None and decided[2].stop) == stops


def test_a_controller_that_may_interfere_makes_another_run(tmp_path: Path) -> None:
    plain = write_recipe(tmp_path, base=tmp_path)
    before = load(str(plain)).checksum()
    write_recipe(tmp_path, base=tmp_path, curve='control = "dry-run"')
    assert load(str(plain)).checksum() == before
    write_recipe(tmp_path, base=tmp_path, curve='control = "on"')
    assert load(str(plain)).checksum() != before


@pytest.mark.slow
def test_a_rate_100_times_too_high_is_saved_to_within_two_points_of_the_good_recipe(tmp_path: Path) -> None:
    good = write_recipe(tmp_path / "good", train=FEW)
    base, bad = tmp_path / "good" / "base", {**FEW, "learning_rate": "0.3"}
    saved = run(write_recipe(tmp_path / "bad", base=base, train=bad, curve='control = "on"'), tmp_path / "saved")
    left = run(
        write_recipe(tmp_path / "left", base=base, train=bad, curve='control = "dry-run"'), tmp_path / "left-run"
    )
    assert saved.best >= run(good, tmp_path / "good-run").best - 0.02
    assert left.best < saved.best - 0.3, "without the controller the run is lost"
    events = read(tmp_path / "saved").of("event")
    assert [event["after"] for event in events] == [{"rate": 0.1}, {"rate": 0.01}]
    assert all(event["finding"] == "rate-too-high" and event["rollback"] == 0 for event in events)
    dry = read(tmp_path / "left-run")
    assert dry.of("event") and all(event["dry_run"] for event in dry.of("event"))
    assert all(point["rate"] > 1e-3 for point in dry.of("train")[20:60]), "a dry run turns nothing"


# As with a pretrained encoder, for which a step below the limit may be far too large: a tenth of the rate is not found
# by the size of its steps.
BLIND = 'control = "on"\nthresholds = { step = 0.5 }'


@pytest.fixture(scope="module", params=["1", "2"])
def lowered_twice(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Trained]:
    """The recipe, the run folder and the result of a run whose rate is lowered once, and again by what it did."""
    folder = tmp_path_factory.mktemp("lowered")
    train = {"eval_every": "0.05", "epochs": "8", "watch_rows": "40", "learning_rate": "1.0", "seed": request.param}
    recipe = write_recipe(folder, train=train, curve=BLIND)
    return recipe, folder / "run", run(recipe, folder / "run")


@pytest.mark.slow
def test_a_rate_that_is_still_too_high_after_it_was_lowered_is_lowered_again(
    lowered_twice: tuple[Path, Path, Trained], tmp_path: Path
) -> None:
    recipe, folder, saved = lowered_twice
    seed = str(load(str(recipe)).train.seed)
    good = write_recipe(tmp_path, base=recipe.parent / "base", train={**FEW, "seed": seed})
    assert saved.best >= run(good, tmp_path / "good-run").best - 0.02
    first, second = read(folder).of("event")
    assert (first["after"], second["after"]) == ({"rate": 0.1}, {"rate": 0.01})
    assert "one update moves" in first["reason"] and f"was lowered at step {first['step']}, and" in second["reason"]
    # Which of the two comes first differs from processor to processor.
    assert any(symptom in second["reason"] for symptom in ("every row gets the same answer", "the train loss is above"))
    assert first["rollback"] == second["rollback"] == 0, "no checkpoint in between had learned anything"
    assert second["step"] >= first["step"] + 20


@pytest.mark.slow
def test_a_run_that_goes_back_to_the_start_begins_anew_with_warm_up_and_all_of_its_updates(
    lowered_twice: tuple[Path, Path, Trained],
) -> None:
    _, folder, saved = lowered_twice
    history = read(folder)
    begun = history.of("event")[-1]["step"]
    assert history.begun == begun and saved.steps == saved.planned == history.planned == begun + 200
    rates = {point["step"] - begun: point["rate"] for point in history.of("train")}
    # A tenth of the run warms up to the lowered rate, the rest falls to 0.
    assert rates[20] == pytest.approx(0.01) and rates[10] == pytest.approx(0.005)
    assert rates[110] == pytest.approx(0.005) and rates[200] < 1e-4
    evaluated = [point["step"] - begun for point in history.of("dev") if point["step"] > begun]
    assert evaluated == list(range(10, 201, 10))
    page = write_page([open_run(folder)], folder / "report.html")[0].read_text(encoding="utf-8")
    assert "the run begins anew" in page and f"At step {begun} it began anew" in page


@pytest.mark.slow
@pytest.mark.parametrize(("every", "patience", "shows"), [(20, 2, 3), (100, 99, 2)], ids=["patience", "last step"])
def test_an_end_that_was_called_for_does_not_outlive_a_rollback_in_the_same_evaluation(
    every: int, patience: int, shows: int, tmp_path: Path
) -> None:
    """By the thresholds a lost run shows first at its third evaluation, the second without progress, or at its last."""
    train = {"epochs": "8", "watch_rows": "40", "learning_rate": "3.0", "schedule": '"constant"'}
    train |= {"eval_every": str(every / 200), "patience": str(patience)}
    limits = f"thresholds = {{ step = 1000.0, rise = 1.001, patience = {shows} }}"
    curve = f'control = "on"\nback_off = {{ factor = 0.001 }}\n{limits}'
    saved = run(write_recipe(tmp_path, train=train, curve=curve), tmp_path / "run")
    (event,) = read(tmp_path / "run").of("event")
    step = every * shows
    assert event["step"] == step and event["restart"]
    assert saved.planned == step + 200 and saved.steps > step + 40 and saved.best > 0.9


@pytest.mark.slow
def test_a_run_killed_between_two_back_offs_ends_with_the_same_weights(
    lowered_twice: tuple[Path, Path, Trained], tmp_path: Path
) -> None:
    recipe, folder, whole = lowered_twice
    first, second = (event["step"] for event in read(folder).of("event"))
    # After the first checkpoint of the run that began anew.
    resumed = killed_and_resumed(recipe, tmp_path, first + 12)
    assert first < resumed.resumed_from < second and resumed.planned == whole.planned
    for name, value in weights(resumed).items():
        np.testing.assert_allclose(value, weights(whole)[name], atol=1e-6, err_msg=name)
    assert read(tmp_path).of("event") == read(folder).of("event")


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, np.ndarray[Any, Any]]]:
    """The recipe, the run folder and the weights of a run in which one strategy after the other fires."""
    folder = tmp_path_factory.mktemp("eager")
    train = {"epochs": "16", "batch": "8", "eval_every": "0.0625", "watch_rows": "40", **STAGED}
    recipe = write_recipe(folder, rows=mood_rows(32), train=train, curve=EAGER)
    return recipe, folder / "run", weights(run(recipe, folder / "run"))


@pytest.mark.slow
def test_every_knob_is_turned_in_a_real_training(eager: tuple[Path, Path, Any]) -> None:
    history = read(eager[1])
    fired = {event["strategy"] for event in history.of("event")}
    # Strategies take turns while the finding lasts; how long that is differs a little from machine to machine.
    assert {"dropout", "weight-decay", "freeze", "early-stop"} <= fired and len(fired) >= 5
    turned: dict[str, Any] = {}
    for event in history.of("event"):
        turned |= event["after"]
    knobs = vars(knobs_of(history))
    assert len(turned.keys() & knobs.keys()) >= 4
    assert {name: knobs[name] for name in turned if name in knobs} == pytest.approx(
        {name: value for name, value in turned.items() if name in knobs}
    )
    last = history.of("event")[-1]
    assert last["strategy"] == "early-stop" and last["step"] == history.step < history.run["steps"]


@pytest.mark.slow
def test_layers_are_unfrozen_by_schedule_in_a_real_training_and_the_rate_starts_again(
    eager: tuple[Path, Path, Any],
) -> None:
    history = read(eager[1])
    train = {point["step"]: point for point in history.of("train")}

    def moving(step: int) -> set[str]:
        pairs = zip(history.run["layers"], train[step]["grad_spread"], strict=True)
        return {layer for layer, own in pairs if own is not None}

    assert moving(1) == moving(6) == {"pooler", "head"}
    assert moving(8) == moving(13) == {"layer.1", "pooler", "head"}
    assert moving(15) == moving(20) == set(history.run["layers"])
    rates = [train[step]["rate"] for step in sorted(train)]
    assert rates[44] > 5 * rates[43] and rates[43] == pytest.approx(0.1 * max(rates), rel=0.3)


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_ends_with_the_same_weights_interventions_and_stages_included(
    eager: tuple[Path, Path, dict[str, np.ndarray[Any, Any]]], tmp_path: Path
) -> None:
    recipe, whole, wanted = eager
    seed = random.randrange(1 << 16)
    step = random.Random(seed).randrange(6, 47)  # the first checkpoint is at 4, the run stops itself at about 52
    print(f"seed {seed}: killed at step {step}")
    resumed = killed_and_resumed(recipe, tmp_path, step)
    assert resumed.resumed_from > 0
    for name, value in weights(resumed).items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-6, err_msg=name)
    # Not only the best checkpoint, which is restored at the end, but also the last.
    last = [
        max(folder.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name[11:]))
        for folder in (whole, tmp_path)
    ]
    states = [read_paddle_state(folder / "model_state.pdparams") for folder in last]
    assert last[0].name == last[1].name
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, atol=1e-6, err_msg=name)
    events = [read(folder).of("event") for folder in (whole, tmp_path)]
    assert events[0] == events[1]


def broken_recipe(tmp_path: Path) -> Path:
    """One row's word has an infinite embedding: whatever batch it is in has no loss."""
    import paddle

    from tests.tiny_base import PIECES, tiny_base

    base = tiny_base(tmp_path / "base")
    path = base / "model_state.pdparams"
    state = paddle.load(str(path))
    broken = state["embeddings.word_embeddings.weight"].numpy()
    broken[PIECES.index("b")] = np.inf
    state["embeddings.word_embeddings.weight"] = paddle.to_tensor(broken)
    paddle.save(state, str(path))
    rows = mood_rows(96)
    rows[6] = ("b" + rows[6][0], rows[6][1])  # a short one, whose only window every pass reads
    return write_recipe(
        tmp_path / "p", rows=rows, base=base, train={"epochs": "2", "eval_every": "1.0"}, curve='control = "on"'
    )


@pytest.mark.slow
def test_a_batch_that_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    recipe = broken_recipe(tmp_path)
    trained = run(recipe, tmp_path / "run")
    history = read(tmp_path / "run")
    assert [event["strategy"] for event in history.of("event")] == ["skip-bad-batch"] * 2  # once in each pass
    assert trained.steps == trained.planned
    assert np.isfinite(weights(trained)["classifier.weight"]).all()
    assert isinstance(history, History)


@pytest.mark.slow
def test_such_a_batch_halves_the_scale_of_the_loss_under_amp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle's scaler, switched on: a CPU has its kernels, though no half precision that would need it."""
    import paddle

    from finetune import trainer

    made = []

    def scaled(*given: Any) -> Any:
        found = usual(*given)
        with monkeypatch.context() as here:
            place = SimpleNamespace(is_gpu_place=lambda: True)
            here.setattr("paddle.amp.grad_scaler._dygraph_tracer", lambda: SimpleNamespace(_expected_place=place))
            found.scaler = paddle.amp.GradScaler(init_loss_scaling=1024.0, use_dynamic_loss_scaling=False)
        found.do_grad_scaling, found.amp_dtype = True, "float16"
        made.append(found)
        return found

    usual = trainer.make_trainer
    monkeypatch.setattr(trainer, "make_trainer", scaled)
    trained = run(broken_recipe(tmp_path), tmp_path / "run")
    events = read(tmp_path / "run").of("event")
    assert [event["strategy"] for event in events] == ["skip-bad-batch"] * 2
    assert [event["scale"] for event in events] == [512, 256]
    assert float(made[0].scaler._scale) == 256
    assert trained.steps == trained.planned and np.isfinite(weights(trained)["classifier.weight"]).all()


# Recipes in which a finding is sure to come, healthy as they are: a dev that rises at all, a train loss that falls by
# less than a hundred times chance.
RISES = "thresholds = { gap = 0.000001, rises = 1 }"
STANDS = "thresholds = { unlearned = 0.001, flat = 100.0, rise = 100.0 }"
READ_OFTEN = {"epochs": "16", "batch": "8", "eval_every": "0.0625", "watch_rows": "40"}
ALONE = {
    "fgm": ("fgm = { use = true, epsilon = 0.5 }", RISES, READ_OFTEN, {"fgm": 0.5}),
    "r-drop": ("r_drop = { use = true, alpha = 2.0 }", RISES, {**READ_OFTEN, "dropout": "0.1"}, {"r_drop": 2.0}),
    "label-smoothing": ("label_smoothing = { use = true }", RISES, READ_OFTEN, {"smoothing": 0.1}),
    "noise": ('noise = { use = true, on = "gradients", sigma = 0.1 }', STANDS, FEW, {"gradient_noise": 0.1}),
    "noise on weights": ("noise = { use = true, sigma = 0.05 }", STANDS, FEW, {}),
    "unfreeze": ("unfreeze = { use = true }", STANDS, {**FEW, "freeze_layers": "1"}, {"frozen": 0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_a_strategy_changes_a_real_training_from_its_firing_on_and_nothing_before(name: str, tmp_path: Path) -> None:
    line, thresholds, train, after = ALONE[name]
    rows, base = mood_rows(32 if thresholds is RISES else 160), None
    curves, ends = {}, {}
    for control in ("off", "on"):
        recipe = write_recipe(
            tmp_path / control,
            rows=rows,
            base=base,
            train=train,
            curve=f'every = 1\ncontrol = "{control}"\nback_off = {{ use = false }}\n{line}\n{thresholds}',
        )
        base = tmp_path / "off" / "base"
        ends[control] = run(recipe, tmp_path / control / "run")
        curves[control] = read(tmp_path / control / "run")
    (event,) = curves["on"].of("event")
    assert event["strategy"] == name.split()[0] and event["after"] == after
    assert event.get("weight_noise") == (0.05 if name == "noise on weights" else None)
    losses = {control: {p["step"]: p["loss"] for p in curve.of("train")} for control, curve in curves.items()}
    same = {step: losses["off"][step] == loss for step, loss in losses["on"].items()}
    assert all(equal for step, equal in same.items() if step <= event["step"])
    assert not all(equal for step, equal in same.items() if step > event["step"])
    assert all(np.isfinite(value).all() for value in weights(ends["on"]).values())
    assert ends["on"].best > ends["off"].best - 0.1, "a healthy training stays one"
