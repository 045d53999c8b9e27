"""Two real processes on the CPU train as one does, with and without a share of the optimizer's state each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.errors import RecipeError
from finetune import parallel
from finetune.curve.record import read
from finetune.model.paddle_weights import read_paddle_state
from finetune.recipe import load
from tests.finetune.short_training import run, write_recipe
from tests.tiny_base import mood_rows, tiny_base

pytestmark = pytest.mark.slow
# The new head's rate is another one than the encoder's, and the last batch of a pass is odd.
SHORT = {
    "epochs": "1",
    "eval_every": "0.5",
    "watch_rows": "20",
    "head_learning_rate": "6e-3",
    "clip": "0.0",
    "batch": "15",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run folders ``one``, and ``stage1``, ``plain`` and ``stage2`` of two processes."""
    folder = tmp_path_factory.mktemp("parallel")
    base = tiny_base(folder / "base")
    recipes = {
        name: write_recipe(folder / f"{name}-recipe", base=base, rows=mood_rows(160), train={**SHORT, **more})
        for name, more in {
            "stage1": {"sharding": '"stage1"'},  # first: Paddle makes the groups that it shards by only once
            "plain": {},
            "stage2": {"sharding": '"stage2"'},
        }.items()
    }
    run(recipes["plain"], folder / "one")
    order = ("stage1", "stage1", "plain", "stage2")
    arguments = [str(part) for name in order for part in (recipes[name], folder / name)]
    assert parallel.launch(2, arguments, Path(__file__).with_name("two_processes.py")) == 0
    return folder


def losses(folder: Path, kind: str) -> list[Any]:
    return [point["loss"] for point in read(folder).of(kind)]


@pytest.mark.parametrize("how", ["plain", "stage1"])
def test_the_loss_curve_of_two_processes_is_that_of_one(trained: Path, how: str) -> None:
    for kind in ("train", "dev"):
        one, two = losses(trained / "one", kind), losses(trained / how, kind)
        assert len(one) == len(two) > 1
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)
    assert (trained / how / "process-1" / "curve.jsonl").is_file(), "there were two"


def test_each_process_keeps_its_share_of_the_optimizers_state(trained: Path) -> None:
    def sizes(how: str) -> list[int]:
        last = max((trained / how / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
        return sorted(path.stat().st_size for path in last.glob("optimizer*.pdopt"))

    (whole,) = sizes("plain")
    shares = sizes("stage1")
    assert len(shares) == 2 and max(shares) < 0.75 * whole


def test_two_processes_resume_to_the_same_weights(trained: Path) -> None:
    folder = trained / "stage1"
    assert int((folder / "resumed.txt").read_text(encoding="utf-8")) > 0
    wanted = read_paddle_state(folder / "before" / "model_state.pdparams")
    last = max((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    for name, value in read_paddle_state(last / "model_state.pdparams").items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-6, err_msg=name)


def test_what_paddle_refuses_on_a_cpu_is_refused_with_what_is_needed(trained: Path) -> None:
    refused = (trained / "stage2" / "refused.txt").read_text(encoding="utf-8")
    assert "train.sharding: stage2 needs GPUs, one for each process" in refused and "stage1 runs on one" in refused


def test_sharding_without_processes_is_refused(tmp_path: Path) -> None:
    recipe = load(str(write_recipe(tmp_path, base=tmp_path, train={"sharding": '"stage1"'})))
    with pytest.raises(RecipeError, match="needs several processes: python -m finetune run RECIPE --processes 2"):
        parallel.check(recipe, on_gpu=False)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_mixed_precision_is_refused_on_a_cpu(tmp_path: Path, kind: str) -> None:
    recipe = write_recipe(tmp_path, base=tiny_base(tmp_path / "base"), train={"amp": f'"{kind}"'})
    with pytest.raises(RecipeError, match=rf"train\.amp: {kind} needs a GPU"):
        run(recipe, tmp_path / "run")
