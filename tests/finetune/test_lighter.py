"""What makes a training lighter, or its gradients late, changes what it says and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.machine import quiet_paddle
from tests.finetune.short_training import run, weights, write_recipe
from tests.tiny_base import tiny_base

pytestmark = pytest.mark.slow
SHORT = {"epochs": "1", "eval_every": "0.5", "watch_rows": "20", "dropout": "0.1"}


def test_recomputing_activations_gives_the_same_weights_with_dropout_too(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    found = [
        weights(run(write_recipe(tmp_path / name, base=base, train={**SHORT, **more}), tmp_path / name / "run"))
        for name, more in (("plain", {}), ("recompute", {"recompute": "true"}))
    ]
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("compensation", [0.0, 0.5])
def test_a_late_gradient_is_that_of_the_weights_of_then_with_its_compensation(compensation: float) -> None:
    """Against the formula of DC-ASGD in numpy: SGD on a quadratic, two updates late."""
    quiet_paddle()
    import paddle

    from finetune.delay import Delay

    slope, rate, late = np.array([1.0, 3.0], dtype=np.float32), 0.2, 2
    model = paddle.nn.Linear(2, 1, bias_attr=False)
    model.weight.set_value(np.array([[1.0], [-2.0]], dtype=np.float32))
    optimizer = paddle.optimizer.SGD(rate, parameters=model.parameters())
    delay = Delay(model, late, compensation)
    expected = [np.array([1.0, -2.0], dtype=np.float32)]
    for update in range(8):
        delay.on_step_begin(None, None, None)
        (paddle.to_tensor(slope[:, None]) * model.weight**2 / 2).sum().backward()
        delay.on_optimizer_begin(None, None, None)
        optimizer.step()
        optimizer.clear_grad()
        now, then = expected[-1], expected[max(0, update - late)]
        gradient = slope * then
        expected.append(now - rate * (gradient + compensation * gradient * gradient * (now - then)))
        np.testing.assert_allclose(model.weight.numpy()[:, 0], expected[-1], rtol=1e-5)
    assert not np.allclose(expected[-1], [(1 - rate * a) ** 8 * w for a, w in zip(slope, [1.0, -2.0], strict=True)])


def test_a_training_with_late_gradients_is_another_one_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    train = {**SHORT, "delay": "3", "delay_compensation": "0.04"}
    recipe = write_recipe(tmp_path, base=base, train=train)
    whole = run(recipe, tmp_path / "run")
    wanted = last_checkpoint(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"checkpoint-{whole.steps}")
    resumed = run(recipe, tmp_path / "run")
    assert 0 < resumed.resumed_from < whole.steps
    found = last_checkpoint(tmp_path / "run")
    plain = run(write_recipe(tmp_path / "plain", base=base, train=SHORT), tmp_path / "plain" / "run")
    assert any(not np.allclose(value, wanted[name], atol=1e-3) for name, value in weights(plain).items())
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)


def last_checkpoint(run_folder: Path) -> dict[str, Any]:
    from finetune.model.paddle_weights import read_paddle_state

    last = max((run_folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    return read_paddle_state(last / "model_state.pdparams")
