"""What a person sees of a running training: progress, a sparkline of the losses, evaluations and the diagnosis.

Every logged point also goes to ``history.jsonl`` in the run folder, from which the curve is drawn; what
`finetune.curve` measures goes to ``curve.jsonl`` and to VisualDL.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paddlenlp.trainer import EarlyStoppingCallback, TrainerCallback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.curve.diagnosis import diagnose
from finetune.curve.intervention import Hands, deeds, knobs_of
from finetune.curve.record import Point
from finetune.curve.signals import Signals, square
from finetune.freezing import Freezer
from finetune.prepare import Prepared, Say

BARS = "▁▂▃▄▅▆▇█"


class Watch(TrainerCallback):  # type: ignore[misc]
    """Shows step, losses, rate of tokens and time left; writes the history; hands each step to the signals."""

    def __init__(
        self,
        run: Path,
        prepared: Prepared,
        tokens_per_batch: list[int],
        say: Say,
        signals: Signals | None,
        freezer: Freezer,
        on_evaluation: Callable[[int, int, dict[str, float]], None] | None = None,
    ) -> None:
        self.run, self.history = run, run / "history.jsonl"
        self.metric = prepared.recipe.metric
        self.accumulate = prepared.recipe.train.accumulate
        self.tokens, self.say, self.signals, self.freezer = tokens_per_batch, say, signals, freezer
        self.on_evaluation = on_evaluation
        self.started, self.first_step, self.tokens_read = time.monotonic(), 0, 0
        self.loss = float("nan")
        self.rate = 0.0
        self.ill: list[str] = []
        self.stopped_by = ""
        self.progress: Progress | None = None
        self.visualdl: Any = None
        self.hands: Hands | None = None
        self.patience: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.hands is not None:
            callbacks = self.hands.trainer.callback_handler.callbacks
            self.patience = next((one for one in callbacks if isinstance(one, EarlyStoppingCallback)), None)
        self.started, self.first_step = time.monotonic(), state.global_step
        if self.history.is_file():
            # Points after the checkpoint that the run resumes from would be drawn twice.
            lines = [json.loads(line) for line in self.history.read_text().split("\n") if line]
            kept = [json.dumps(point) for point in lines if point["step"] <= state.global_step]
            self.history.write_text("".join(line + "\n" for line in kept))
        if self.signals is not None:
            self.signals.begin(model, state.global_step)
        if self.hands is not None:
            self.hands.begin(state.global_step)
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[curve]} loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s  left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[ill]}"),
        )
        fields: dict[str, Any] = {"loss": 0.0, "rate": 0.0, "curve": "", "ill": ""}
        self.bar = self.progress.add_task("", total=state.max_steps, completed=state.global_step, **fields)
        self.progress.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.freezer.apply(state.global_step - self._begun(), self._turned())

    def on_optimizer_begin(self, args: Any, state: Any, control: Any, scaler: Any = None, **_: Any) -> None:
        if self.hands is not None:
            self._check_gradients(state.global_step + 1)
        if self.signals is not None:
            self.signals.gradients(state.global_step, 1.0 if scaler is None else float(scaler._scale))

    def on_optimizer_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.signals is not None:
            self.signals.updated()

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        places = range((state.global_step - 1) * self.accumulate, state.global_step * self.accumulate)
        self.tokens_read += sum(self.tokens[place % len(self.tokens)] for place in places)
        rate = self.tokens_read / max(time.monotonic() - self.started, 1e-9)
        self.rate = rate
        if self.signals is not None:
            point = self.signals.stepped(model, state.global_step, float(optimizer.get_lr()))
            if point is not None:
                self._draw(args, point)
                self._diagnose(args, state.global_step)
        if self.progress is not None:
            self.progress.update(
                self.bar, completed=state.global_step, total=state.max_steps, rate=rate, loss=self.loss
            )
            tenth = max(1, state.max_steps // 10)
            if not self.progress.console.is_terminal and state.global_step % tenth == 0:
                # A log file shows no bar; a line for each tenth tells that the run is alive.
                left = (time.monotonic() - self.started) / max(state.global_step - self.first_step, 1)
                left *= state.max_steps - state.global_step
                self._print(
                    f"step {state.global_step:,}/{state.max_steps:,}: train loss {self.loss:.3f}, "
                    f"{rate:,.0f} tokens/s, about {left:.0f} s left"
                )
        if begun := self._begun():
            # The evaluations of a run that began anew are counted from there.
            made = state.global_step - begun
            control.should_evaluate = control.should_save = made > 0 and made % args.eval_steps == 0
        if state.global_step == state.max_steps:
            # The interval rarely divides the run; without this the steps after the last evaluation would be lost.
            control.should_evaluate = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.loss = float(logs["loss"])
            self._write({"step": state.global_step, "loss": self.loss, "learning_rate": float(logs["learning_rate"])})

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        point = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
        point = {name: value for name, value in point.items() if isinstance(value, float)}
        self._write({"step": state.global_step, **{f"dev_{name}": value for name, value in point.items()}})
        scores = ", ".join(f"{name} {value:.4f}" for name, value in point.items())
        self._print(
            f"step {state.global_step:,}/{state.max_steps:,}: train loss {self.loss:.3f}; dev {scores} "
            f"({self.rate:,.0f} tokens/s)"
        )
        if self.signals is not None:
            self._draw(args, self.signals.record.history.of("dev")[-1])
            self._diagnose(args, state.global_step)
            if event := self.freezer.unfreeze(self.signals.record, self._turned()):
                layer = event["after"]["frozen"]
                self._print(f"step {state.global_step:,}: unfreezes layer {layer}: {event['reason']}")
        if self.on_evaluation is not None:
            self.on_evaluation(state.global_step, state.max_steps, point)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()
        if state.global_step < state.max_steps:
            if self.stopped_by:
                self.say(f"stopped early at step {state.global_step:,} of {state.max_steps:,}: {self.stopped_by}")
                return
            self.say(
                f"stopped early at step {state.global_step:,} of {state.max_steps:,}: dev {self.metric} was no better "
                "for as many evaluations as train.patience allows"
            )

    def close(self) -> None:
        """Ends the display, also where an error ended the training."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
        if self.visualdl is not None:
            self.visualdl.close()
            self.visualdl = None

    def _begun(self) -> int:
        """The step at which the run began, above 0 where it began anew."""
        return self.signals.record.history.begun if self.signals is not None else 0

    def _turned(self) -> int | None:
        """Lowest layers that an event froze; None where none did."""
        return knobs_of(self.signals.record.history).frozen if self.signals is not None else None

    def _diagnose(self, args: Any, step: int) -> None:
        """Shows what is wrong now, tells what is newly wrong, and lets the controller act."""
        assert self.signals is not None
        history = self.signals.record.history
        findings = diagnose(history)
        for finding in findings:
            if finding.name not in self.ill:
                self.signals.record.add("finding", step, name=finding.name, evidence=finding.evidence)
                self._print(f"step {step:,}: {finding.name}: {finding.sentence}")
        self.ill = [finding.name for finding in findings]
        if self.progress is not None:
            self.progress.update(self.bar, ill=", ".join(self.ill))
        event = self.hands.after_point(step) if self.hands is not None else None
        if event is None:
            return
        did = "would do" if event.get("dry_run") else "does"
        self._print(f"step {step:,}: {event['strategy']} {did}: {'; '.join(deeds(event)) or event['reason']}")
        if event.get("dry_run"):
            return
        if event["strategy"] == "early-stop":
            self.stopped_by = event["reason"]
        if "rollback" in event and self.patience is not None:
            self.patience.early_stopping_patience_counter = 0

    def _check_gradients(self, step: int) -> None:
        """Where the controller is on: noise on the gradient, and no update from one that is not a number."""
        import paddle

        assert self.hands is not None
        if not self.hands.controller.on:
            return
        gradients = [p.grad for p in self.hands.trainer.model.parameters() if p.grad is not None]
        squares = [square(gradient) for gradient in gradients]
        if not np.isfinite(sum(squares)):
            if self.hands.may_skip():
                if self.signals is not None:
                    self.signals.bad += 1
                # Without gradients the optimizer leaves weights and moments as they are.
                self.hands.trainer.optimizer.clear_grad(set_to_zero=False)
                self.hands.skip(step, "gradient")
            return
        if sigma := self.hands.controller.knobs.gradient_noise:
            with paddle.no_grad():
                for gradient in gradients:
                    gradient.add_(paddle.randn(gradient.shape) * (sigma * gradient.std()))

    def _draw(self, args: Any, point: Point) -> None:
        """A new point of the curve: to VisualDL, and to the sparkline."""
        assert self.signals is not None
        if self.visualdl is None:
            from visualdl import LogWriter

            # A folder of its own: PaddleNLP's callback holds the other one's writer.
            self.visualdl = LogWriter(logdir=str(Path(args.logging_dir) / "curve"))
        for name, value in scalars(point, self.signals.record.history.run):
            self.visualdl.add_scalar(name, value, point["step"])
        if self.progress is not None:
            losses = [item["loss"] for item in self.signals.record.history.of("train")]
            self.progress.update(self.bar, curve=sparkline(losses))

    def _print(self, sentence: str) -> None:
        if self.progress is not None:
            self.progress.console.print("  " + sentence, highlight=False, markup=False, soft_wrap=True)

    def _write(self, point: dict[str, float]) -> None:
        with self.history.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(point) + "\n")


def sparkline(values: Sequence[float | None], width: int = 16) -> str:
    """A curve in one line of text, newest at the right; what is not finite is an x."""
    if not values:
        return ""
    edges = [round(place * len(values) / width) for place in range(width + 1)] if len(values) > width else None
    groups = [values[a:b] for a, b in itertools.pairwise(edges)] if edges else [[value] for value in values]
    means = [None if None in group else sum(v for v in group if v is not None) / len(group) for group in groups]
    known = [mean for mean in means if mean is not None]
    if not known:
        return "x" * len(means)
    low, high = min(known), max(known)
    return "".join(
        "x" if mean is None else BARS[round((mean - low) / max(high - low, 1e-12) * (len(BARS) - 1))] for mean in means
    )


def scalars(point: Point, run: Point) -> list[tuple[str, float]]:
    """A point's numbers under the names that VisualDL groups them by, such as ``grad/layer.0``."""
    found: list[tuple[str, float]] = []
    for name, value in point.items():
        if name in ("kind", "step", "suspicious", "grad_spread"):
            continue
        group = f"curve/{point['kind']}" if not isinstance(value, list) else f"curve_{name}"
        if isinstance(value, dict):
            found += [(f"{group}_{key}", float(one)) for key, one in value.items() if one is not None]
        elif isinstance(value, list):
            if len(value) == len(run["layers"]):
                labels = run["layers"]
            else:
                labels = [str(place) for place in range(len(value))]
            for label, one in zip(labels, value, strict=True):
                one = sum(one) / len(one) if isinstance(one, list) else one  # a layer's heads
                if one is not None:
                    found.append((f"{group}/{label}", float(one)))
        elif isinstance(value, (int, float)):
            found.append((f"{group}_{name}", float(value)))
    return found
