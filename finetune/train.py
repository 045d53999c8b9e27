"""Prepared rows → a trained PaddleNLP model: PaddleNLP's Trainer does the training.

This module puts a run together and starts it, or goes on with one that was interrupted. What is added to PaddleNLP's
Trainer is elsewhere: batches planned ahead (`finetune.batches`), the loss (`finetune.losses`), rates and schedules
(`finetune.schedules`), what is trained when (`finetune.freezing`), and a dev evaluation that pools windows exactly as
serving does (`finetune.trainer`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bundle.encode import Encoded
from bundle.errors import RecipeError
from bundle.predict import encode_rows
from finetune import parallel
from finetune.answers import predict_rows as predict_rows
from finetune.batches import Item
from finetune.curve.intervention import Controller, Hands, strategies
from finetune.curve.record import NAME, read_until
from finetune.curve.signals import Signals
from finetune.freezing import Freezer
from finetune.machine import quiet_paddle
from finetune.model.heads import draw_head
from finetune.prepare import Prepared, Say
from finetune.resume import checkpoint_of, had_stopped, read_history, spent_until, step_of
from finetune.windows import planned

# Called with the step, the steps planned and the dev scores by name.
OnEvaluation = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """A trained model and how it got there.

    Attributes:
        model: the PaddleNLP model, best dev checkpoint restored, in evaluation mode.
        steps: optimizer updates made, of ``planned``.
        seconds: of all processes that took part in turn, up to the checkpoints from which the next went on.
        history: every logged point: step, loss, learning rate, or a dev evaluation.
    """

    model: Any
    steps: int
    planned: int
    seconds: float
    best: float
    resumed_from: int
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    prepared: Prepared,
    run: Path,
    say: Say,
    watched: bool = True,
    on_evaluation: OnEvaluation | None = None,
    callbacks: Sequence[Any] = (),
) -> Trained:
    """Trains, or goes on with an interrupted training of the same recipe and data.

    Args:
        run: the run folder: checkpoints, VisualDL log, history.jsonl, curve.jsonl.
        watched: False trains without any of `finetune.curve`, to compare with.
        on_evaluation: called after each dev evaluation; what it raises ends the training.
        callbacks: more of PaddleNLP's, which only look.

    Raises:
        RecipeError: the recipe asks for what this model or machine has not.
        TrainingDiverged: the loss is no number any more.
    """
    quiet_paddle()
    import paddle

    from finetune.trainer import make_trainer
    from finetune.watch import Watch

    recipe, seed = prepared.recipe, prepared.recipe.train.seed
    on_gpu = paddle.device.get_device() != "cpu"
    parallel.check(recipe, on_gpu)
    own = run if parallel.rank() == 0 else run / f"process-{parallel.rank()}"
    own.mkdir(parents=True, exist_ok=True)
    if recipe.train.amp != "off" and not on_gpu:
        # Measured with 3.2.2: auto_cast computes on in fp32 with a warning, and `linear` has no other kernel here.
        reason = f"{recipe.train.amp} needs a GPU: Paddle {paddle.__version__} has no such kernels for a CPU"
        raise RecipeError(recipe.name, "train.amp", reason, ["off"])
    if recipe.train.unfreeze == "by-diagnosis" and not watched:
        raise RecipeError(recipe.name, "train.unfreeze", "by-diagnosis needs a training that is watched")
    random.seed(seed)
    np.random.seed(seed)
    paddle.seed(seed)
    encoded = encode_rows(prepared.lessons, prepared.encoder)
    batches = planned(prepared, encoded, recipe.train.epochs)
    tokens = sum(int(encoded[row].window_tokens[window]) + 2 for batch in batches for row, window in batch)
    say(
        f"{len(prepared.lessons):,} rows, {sum(len(item.windows) for item in encoded):,} windows; the run reads "
        f"{sum(map(len, batches)):,} of them, {tokens:,} tokens, in {len(batches):,} batches"
    )
    checkpoint = checkpoint_of(prepared, run, say)
    # The guard makes parameter names repeat, so that a second model in one process finds its optimizer state again.
    with paddle.utils.unique_name.guard():
        model = prepared.base.build(prepared.task, recipe.train.dropout)
        draw_head(model, recipe.train)
        freezer = Freezer(model, recipe, max(1, len(batches) // recipe.train.accumulate))
        freezer.apply(0)
        if told := freezer.says():
            say(told)
        signals = Signals(prepared, batches, own, freezer) if watched else None
        tokens_of = [_tokens(batch, encoded) for batch in batches]
        watch = Watch(own, prepared, tokens_of, say, signals, freezer, on_evaluation)
        trainer = make_trainer(model, prepared, encoded, batches, run, own, signals, freezer)
        for callback in (watch, *callbacks):
            trainer.add_callback(callback)
        if signals is not None and recipe.curve.control != "off":
            watch.hands = trainer.hands = _hands(trainer, prepared, signals, run, freezer)
        before, start = spent_until(checkpoint), time.monotonic()
        trainer.spent = lambda: before + time.monotonic() - start
        resumed = step_of(checkpoint)
        if checkpoint is not None:
            begun = 0
            if signals is not None:
                signals.load(checkpoint)
                begun = read_until(own / NAME, resumed).begun
            trainer.plan.length += begun * recipe.train.accumulate
            say(f"resuming at step {resumed:,} of {begun + len(batches) // recipe.train.accumulate:,}")
            if trainer.delay is not None:
                trainer.delay.load(checkpoint)
            if had_stopped(trainer, own, resumed, recipe.train.patience):
                # PaddleNLP forgets that a run had stopped; with nothing left in the plan it only restores the best.
                trainer.plan.length, trainer.plan.endless = resumed * recipe.train.accumulate, False
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            watch.close()
    model.eval()
    return Trained(
        model,
        trainer.state.global_step,
        trainer.state.max_steps,
        trainer.spent(),
        float(trainer.state.best_metric or 0.0),
        resumed,
        read_history(own / "history.jsonl"),
    )


def _hands(trainer: Any, prepared: Prepared, signals: Signals, run: Path, freezer: Freezer) -> Hands:
    recipe = prepared.recipe
    usual = prepared.base.config.get("hidden_dropout_prob", 0.1)
    found = strategies(
        recipe.curve,
        dropout=usual if recipe.train.dropout is None else recipe.train.dropout,
        decay=recipe.train.weight_decay,
        frozen=lambda: freezer.frozen,
        single=prepared.task.kind in ("single-label", "text-pair"),
    )
    return Hands(trainer, run, Controller(recipe.curve, signals.record, found, recipe.metric))


def _tokens(batch: list[Item], encoded: list[Encoded]) -> int:
    return sum(int(encoded[row].window_tokens[window]) + 2 for row, window in batch)
