"""What a person sees of a running training: a progress bar, and a line for each dev evaluation.

Every logged point also goes to ``history.jsonl`` in the run folder, from which the curve is drawn.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from paddlenlp.trainer import TrainerCallback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.prepare import Prepared, Say


class Watch(TrainerCallback):  # type: ignore[misc]
    """Shows step, loss, rate of tokens and time left; writes the history."""

    def __init__(self, run: Path, prepared: Prepared, tokens_per_batch: list[int], say: Say) -> None:
        self.history = run / "history.jsonl"
        self.metric = prepared.recipe.metric
        self.accumulate = prepared.recipe.train.accumulate
        self.tokens, self.say = tokens_per_batch, say
        self.started, self.first_step = time.monotonic(), 0
        self.loss = float("nan")
        self.progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        if self.history.is_file():
            # Points after the checkpoint that the run resumes from would be drawn twice.
            lines = [json.loads(line) for line in self.history.read_text().split("\n") if line]
            kept = [json.dumps(point) for point in lines if point["step"] <= state.global_step]
            self.history.write_text("".join(line + "\n" for line in kept))
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s  left"),
            TimeRemainingColumn(),
        )
        self.bar = self.progress.add_task("", total=state.max_steps, completed=state.global_step, loss=0.0, rate=0.0)
        self.progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        done = sum(self.tokens[self.first_step * self.accumulate : state.global_step * self.accumulate])
        rate = done / max(time.monotonic() - self.started, 1e-9)
        self.rate = rate
        if self.progress is not None:
            self.progress.update(self.bar, completed=state.global_step, rate=rate, loss=self.loss)
            tenth = max(1, state.max_steps // 10)
            if not self.progress.console.is_terminal and state.global_step % tenth == 0:
                # A log file shows no bar; a line for each tenth tells that the run is alive.
                left = (time.monotonic() - self.started) / max(state.global_step - self.first_step, 1)
                left *= state.max_steps - state.global_step
                self._print(
                    f"step {state.global_step:,}/{state.max_steps:,}: train loss {self.loss:.3f}, "
                    f"{rate:,.0f} tokens/s, about {left:.0f} s left"
                )

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

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
        if state.global_step < state.max_steps:
            self.say(
                f"stopped early at step {state.global_step:,} of {state.max_steps:,}: dev {self.metric} was no better "
                "for as many evaluations as train.patience allows"
            )

    def _print(self, sentence: str) -> None:
        if self.progress is not None:
            self.progress.console.print("  " + sentence, highlight=False, markup=False, soft_wrap=True)

    def _write(self, point: dict[str, float]) -> None:
        with self.history.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(point) + "\n")
