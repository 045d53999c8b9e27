"""What is done about a finding, without a person: strategies, and the controller that fires them.

A strategy has a condition, an action, a cool-down and a budget. What has fired is read from the record, and so is how
the knobs stand after it: a run resumed from a checkpoint decides and trains as an uninterrupted one. Strategies only
turn knobs and restore checkpoints; the trainer stays PaddleNLP's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetune.curve.diagnosis import Finding, diagnose
from finetune.curve.record import History, Point, Record
from finetune.curve.settings import Curve, Firing

START = "start.pdparams"


@dataclass(frozen=True)
class Knobs:
    """What strategies turn.

    Attributes:
        rate: factor on every learning rate.
        dropout: of every dropout layer; None is as the model was built.
        decay: weight decay; None is the recipe's.
        smoothing: label smoothing, 0 to 1 (Szegedy et al. 2016).
        r_drop: weight of the divergence of two passes with different dropout (Liang et al. 2021).
        fgm: length of the adversarial step on the word embeddings (Miyato et al. 2017).
        gradient_noise: as a share of each gradient's standard deviation (after Neelakantan et al. 2015).
        frozen: lowest encoder layers that are not trained, embeddings included; None is as the recipe plans it.
    """

    rate: float = 1.0
    dropout: float | None = None
    decay: float | None = None
    smoothing: float = 0.0
    r_drop: float = 0.0
    fgm: float = 0.0
    gradient_noise: float = 0.0
    frozen: int | None = None


@dataclass(frozen=True)
class Move:
    """What a strategy wants done.

    Attributes:
        knobs: how the knobs shall stand.
        rollback: restore the best checkpoint that had learned something, else the start.
        restart: from the start the run begins anew.
        weight_noise: standard deviation, as a share of each weight matrix's own (after NoisyTune, Wu et al. 2022).
        stop: end the training.
    """

    knobs: Knobs
    rollback: bool = False
    restart: bool = False
    weight_noise: float = 0.0
    stop: bool = False


@dataclass(frozen=True)
class Strategy:
    """One way to intervene.

    Attributes:
        firing: how often and how soon again.
        cures: the findings that are its condition.
        action: from knobs and recipe to what shall be done; None where there is nothing left to turn.
    """

    name: str
    firing: Firing
    cures: tuple[str, ...]
    action: Callable[[Knobs], Move | None]

    def reason(self, findings: list[Finding]) -> Finding | None:
        for finding in findings:
            # One bad batch is left out and forgotten; several in a row mean that the weights are lost.
            if finding.name in self.cures and finding.evidence.get("batches", 3) >= 3:
                return finding
        return None

    def ready(self, history: History, dry_run: bool) -> bool:
        """Whether budget is left and the cool-down is over; firings of a dry run count in a dry run."""
        fired = [e for e in history.of("event") if e["strategy"] == self.name and bool(e.get("dry_run")) == dry_run]
        if len(fired) >= self.firing.budget:
            return False
        return not fired or history.step - fired[-1]["step"] >= self.firing.cool_down * history.run["steps"]


def strategies(
    settings: Curve, dropout: float, decay: float, frozen: Callable[[], int], single: bool
) -> list[Strategy]:
    """The strategies that a recipe uses, in the order in which they are tried.

    Args:
        dropout, decay: how the recipe has them.
        frozen: lowest layers that the recipe's own plan does not train now.
        single: whether the task has one label a row; the others have no label smoothing and no R-Drop.
    """
    s = settings

    def dropout_of(knobs: Knobs) -> float:
        return dropout if knobs.dropout is None else knobs.dropout

    def raised_dropout(knobs: Knobs) -> Move | None:
        return Move(replace(knobs, dropout=s.dropout.to)) if dropout_of(knobs) < s.dropout.to else None

    def divergence(knobs: Knobs) -> Move | None:
        # Without dropout both passes are the same one.
        able = not knobs.r_drop and dropout_of(knobs) > 0
        return Move(replace(knobs, r_drop=s.r_drop.alpha)) if able else None

    def raised_decay(knobs: Knobs) -> Move:
        now = decay if knobs.decay is None else knobs.decay
        return Move(replace(knobs, decay=max(now, 0.001) * s.weight_decay.factor))

    def frozen_more(knobs: Knobs) -> Move:
        now = frozen() if knobs.frozen is None else knobs.frozen
        return Move(replace(knobs, frozen=now + s.freeze.layers))

    def frozen_less(knobs: Knobs) -> Move | None:
        now = frozen() if knobs.frozen is None else knobs.frozen
        return Move(replace(knobs, frozen=max(0, now - s.unfreeze.layers))) if now else None

    def noise(knobs: Knobs) -> Move:
        if s.noise.on == "weights":
            return Move(knobs, weight_noise=s.noise.sigma)
        return Move(replace(knobs, gradient_noise=s.noise.sigma))

    def backed_off(knobs: Knobs) -> Move:
        lower = replace(knobs, rate=knobs.rate * s.back_off.factor)
        return Move(lower, rollback=s.back_off.rollback, restart=s.back_off.restart)

    overfits = ("overfitting",)
    known: list[tuple[str, Firing, tuple[str, ...], Callable[[Knobs], Move | None]]] = [
        ("back-off", s.back_off, ("rate-too-high", "not-finite", "forgetting"), backed_off),
        ("early-stop", s.early_stop, (), lambda knobs: Move(knobs, stop=True)),
        ("dropout", s.dropout, overfits, raised_dropout),
        ("weight-decay", s.weight_decay, overfits, raised_decay),
        ("freeze", s.freeze, (*overfits, "forgetting"), frozen_more),
        ("fgm", s.fgm, overfits, lambda knobs: None if knobs.fgm else Move(replace(knobs, fgm=s.fgm.epsilon))),
        ("unfreeze", s.unfreeze, ("stagnation",), frozen_less),
        ("noise", s.noise, ("stagnation",), noise),
    ]
    if single:
        smoothing = s.label_smoothing
        known += [
            (
                "label-smoothing",
                smoothing,
                (*overfits, "label-noise"),
                lambda knobs: None if knobs.smoothing else Move(replace(knobs, smoothing=smoothing.epsilon)),
            ),
            ("r-drop", s.r_drop, overfits, divergence),
        ]
    return [Strategy(*one) for one in known if one[1].use]


class Controller:
    """Watches the record and fires strategies.

    Args:
        loop: what carries out a move in the running training; None only decides.
    """

    def __init__(self, settings: Curve, record: Record, found: list[Strategy], metric: str) -> None:
        self.settings, self.record, self.strategies, self.metric = settings, record, found, metric
        self.dry_run = settings.control == "dry-run"
        self.on = settings.control == "on"

    @property
    def knobs(self) -> Knobs:
        """As the last event left them."""
        return knobs_of(self.record.history)

    def decide(self) -> tuple[Strategy, Finding, Move] | None:
        """The first strategy whose condition holds now."""
        if self.settings.control == "off":
            return None
        history = self.record.history
        findings = diagnose(history, self.settings.thresholds)
        for strategy in self.strategies:
            if not strategy.ready(history, self.dry_run):
                continue
            finding = self._stalled() if strategy.name == "early-stop" else strategy.reason(findings)
            move = strategy.action(self.knobs) if finding is not None else None
            if finding is not None and move is not None:
                return strategy, finding, move
        return None

    def note(self, step: int, strategy: str, reason: Finding, before: Knobs, after: Knobs, **more: Any) -> Point:
        """Writes an event: only the knobs that changed stand in ``before`` and ``after``."""
        old, new = asdict(before), asdict(after)
        changed = [name for name in new if old[name] != new[name]]
        return self.record.add(
            "event",
            step,
            strategy=strategy,
            finding=reason.name,
            reason=reason.sentence,
            before={name: old[name] for name in changed},
            after={name: new[name] for name in changed},
            **({"dry_run": True} if self.dry_run else {}),
            **more,
        )

    def _stalled(self) -> Finding | None:
        """Early stopping with a tolerance, on the loss or the metric (Prechelt 1998, Early Stopping: But When?)."""
        limits, history = self.settings.early_stop, self.record.history
        points = [point for point in history.of("dev") if point["step"] > history.begun]
        if limits.watch == "loss":
            values = [-(point["loss"] if point["loss"] is not None else float("inf")) for point in points]
        else:
            values = [point["scores"][self.metric] for point in points]
        if len(values) <= limits.patience:
            return None
        best, recent = max(values[: -limits.patience]), max(values[-limits.patience :])
        if recent > best + limits.min_delta:
            return None
        sentence = (
            f"dev {limits.watch} was better by no more than {limits.min_delta:g} in {limits.patience} evaluations"
        )
        return Finding("no-progress", history.step, sentence)


def knobs_of(history: History) -> Knobs:
    """How the knobs stand after the events of a history; those of a dry run turned nothing."""
    values: dict[str, Any] = {}
    for event in history.of("event"):
        if not event.get("dry_run"):
            values |= event["after"]
    return Knobs(**values)


def deeds(event: Point) -> list[str]:
    """What an event did or, of a dry run, would have done, in words."""
    done = [f"{name} {event['before'][name]} → {value}" for name, value in event["after"].items()]
    if "rollback" in event:
        done.append(f"back to step {event['rollback']:,}" if event["rollback"] else "back to the start")
    if event.get("restart"):
        done.append("the run begins anew")
    return done


class Hands:
    """Carries out moves in a running training.

    Args:
        trainer: PaddleNLP's, with model, optimizer and schedule.
        run: the run folder.
        dropouts: read when the training begins: what each layer had.
    """

    def __init__(self, trainer: Any, run: Path, controller: Controller) -> None:
        self.trainer, self.run, self.controller = trainer, run, controller
        self.peak = float(trainer.lr_scheduler.base_lr)
        self.factor = trainer.lr_scheduler.lr_lambda
        self.dropouts = [(layer, name, getattr(layer, name)) for layer, name in _dropouts(trainer.model)]

    def begin(self, step: int) -> None:
        """Before the first step: the start is kept, or a resumed run's knobs are turned to where they stood."""
        import paddle

        if not step and self.controller.on:
            paddle.save(self.trainer.model.state_dict(), str(self.run / START))
        self.apply(self.controller.knobs)

    def after_point(self, step: int) -> Point | None:
        """After each recorded point: decides, acts and returns the event, if any."""
        decided = self.controller.decide()
        if decided is None:
            return None
        strategy, finding, move = decided
        before = self.controller.knobs
        more: dict[str, Any] = {}
        if move.rollback:
            more["rollback"] = self._target()
            if move.restart and not more["rollback"]:
                more["restart"] = True
        if move.weight_noise:
            more["weight_noise"] = move.weight_noise
        if self.controller.on:
            if move.rollback:
                self._restore(more["rollback"])
                # What the last step of the plan or the patience said was said of weights that are gone.
                self.trainer.control.should_training_stop = step >= self.trainer.state.max_steps
            if move.weight_noise:
                self._shake(move.weight_noise)
            if move.stop:
                self.trainer.control.should_training_stop = True
        event = self.controller.note(step, strategy.name, finding, before, move.knobs, **more)
        if self.controller.on:
            if "restart" in event:
                self.trainer.state.max_steps = self.controller.record.history.planned
                self.trainer.control.should_training_stop = False
            self.apply(move.knobs)
        return event

    def skip(self, step: int, what: str) -> None:
        """A batch whose loss or gradient is no number is left out; under AMP the scale of the loss is halved.

        In a dry run and beyond the budget nothing is skipped.
        """
        knobs = self.controller.knobs
        scaler = getattr(self.trainer, "scaler", None)
        more: dict[str, Any] = {}
        if scaler is not None and self.trainer.do_grad_scaling:
            state = scaler.state_dict()
            state["scale"] = state["scale"] / 2
            scaler.load_state_dict(state)
            more["scale"] = float(state["scale"].item())
        finding = Finding("not-finite", step, f"the {what} of a batch was not a number; the batch is left out")
        self.controller.note(step, "skip-bad-batch", finding, knobs, knobs, **more)

    def may_skip(self) -> bool:
        firing = self.controller.settings.skip_bad_batch
        fired = [e for e in self.controller.record.history.of("event") if e["strategy"] == "skip-bad-batch"]
        return self.controller.on and firing.use and len(fired) < firing.budget

    def apply(self, knobs: Knobs) -> None:
        """Turns the knobs of model, optimizer and schedule; the loss and `finetune.freezing` ask for the others."""
        scheduler, begun = self.trainer.lr_scheduler, self.controller.record.history.begun
        if scheduler.base_lr != self.peak * knobs.rate:
            scheduler.base_lr = self.peak * knobs.rate
            scheduler.lr_lambda = lambda done: self.factor(done - begun)
            scheduler.last_lr = scheduler.get_lr()
        for layer, name, usual in self.dropouts:
            setattr(layer, name, usual if knobs.dropout is None else knobs.dropout)
        if knobs.decay is not None:
            for group in self.trainer.optimizer._param_groups:
                group["weight_decay"] = knobs.decay

    def _target(self) -> int:
        """The step to roll back to: of the best checkpoint if it had learned something, else 0, the start."""
        best = self.trainer.state.best_model_checkpoint
        if best is None:
            return 0
        step = int(Path(best).name.rpartition("-")[2])
        history = self.controller.record.history
        limit = self.controller.settings.thresholds.unlearned * history.run["dev_chance"]
        point = next((point for point in history.of("dev") if point["step"] == step), None)
        return step if point is not None and point["loss"] is not None and point["loss"] < limit else 0

    def _restore(self, step: int) -> None:
        """Weights and moments of a step."""
        import paddle

        trainer = self.trainer
        folder = Path(trainer.state.best_model_checkpoint) if step else None
        state = paddle.load(str(self.run / START if folder is None else folder / "model_state.pdparams"))
        trainer.model.set_state_dict(state)
        moments = trainer.optimizer.state_dict()
        saved = paddle.load(str(folder / "optimizer.pdopt")) if folder is not None else {}
        for name, tensor in moments.items():
            if name == "LR_Scheduler":
                continue
            if name in saved:
                tensor.set_value(saved[name])
            elif "_beta" in name:
                tensor.set_value(paddle.full_like(tensor, 0.9 if "_beta1" in name else 0.999))
            else:
                tensor.set_value(paddle.zeros_like(tensor))

    def _shake(self, sigma: float) -> None:
        """Noise on the trained weight matrices. It comes from Paddle's generator, whose state a checkpoint keeps."""
        import paddle

        with paddle.no_grad():
            for parameter in self.trainer.model.parameters():
                if not parameter.stop_gradient and parameter.ndim > 1:
                    parameter.add_(paddle.randn(parameter.shape) * (sigma * parameter.std()))


def _dropouts(model: Any) -> list[tuple[Any, str]]:
    """Every place that holds a dropout rate: dropout layers, and the attention of Paddle's encoder."""
    found = []
    for layer in model.sublayers():
        kind = type(layer).__name__
        if kind == "Dropout":
            found.append((layer, "p"))
        elif kind == "MultiHeadAttention":
            found.append((layer, "dropout"))
    return found
