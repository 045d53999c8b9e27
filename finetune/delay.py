"""Gradients that come late, as in asynchronous training, and the compensation of their delay.

Workers of an asynchronous training compute a gradient with weights that others have moved since. Here that is simulated
in one process with a fixed delay: each gradient is computed with the weights of ``delay`` updates ago and then applied
to those of now. So a run is repeatable, resumes, and its loss curve can be laid over that of an ordinary one.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from paddlenlp.trainer import TrainerCallback

STATE = "delay.pdparams"


class Delay(TrainerCallback):  # type: ignore[misc]
    """Puts the weights of then into the model for a step, and those of now back before its update.

    With a compensation λ the gradient becomes g + λ g⊙g⊙(w_now − w_then), the first order of what it would have been at
    the weights of now, with g⊙g in the place of the Hessian (DC-ASGD, Zheng et al. 2017, equation 10).

    Args:
        steps: updates between the weights that a gradient is computed with and those that it is applied to.
        compensation: λ; 0 applies the gradient as it came.
    """

    def __init__(self, model: Any, steps: int, compensation: float) -> None:
        self.model, self.compensation = model, compensation
        # Of each update, the weights before it; newest last.
        self.past: deque[dict[str, Any]] = deque(maxlen=steps + 1)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.past.append({name: parameter.clone() for name, parameter in self._trained()})
        # What was unfrozen since is not delayed at first.
        self._put({**self.past[-1], **self.past[0]})

    def on_optimizer_begin(self, args: Any, state: Any, control: Any, scaler: Any = None, **_: Any) -> None:
        import paddle

        now, then = self.past[-1], self.past[0]
        self._put(now)
        if not self.compensation:
            return
        factor = self.compensation / (1.0 if scaler is None else float(scaler._scale))
        with paddle.no_grad():
            for name, parameter in self._trained():
                if parameter.grad is not None and name in then:
                    gradient = parameter.grad
                    gradient.add_(gradient * gradient * (now[name] - then[name]) * factor)

    def save(self, folder: Path) -> None:
        """Writes the weights of the past into a checkpoint's folder."""
        import paddle

        paddle.save(list(self.past), str(folder / STATE))

    def load(self, folder: Path) -> None:
        import paddle

        self.past.extend(paddle.load(str(folder / STATE)))

    def _trained(self) -> list[tuple[str, Any]]:
        return [(name, parameter) for name, parameter in self.model.named_parameters() if not parameter.stop_gradient]

    def _put(self, weights: dict[str, Any]) -> None:
        for name, parameter in self._trained():
            if name in weights:
                parameter.set_value(weights[name])
