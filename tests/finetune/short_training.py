"""Real trainings that take a second or two: two layers of 32, made-up rows, everything in this process."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.prepare import prepare
from finetune.recipe import load
from finetune.train import Trained, train
from tests.tiny_base import mood_rows, tiny_base

HEALTHY = {
    "epochs": "4",
    "batch": "16",
    "learning_rate": "3e-3",
    "eval_every": "0.1",
    "watch_rows": "80",
    "patience": "99",
}
# What a record begins with, of a training that there was not.
RUN = {
    "steps": 100,
    "chance": 0.7,
    "dev_chance": 0.7,
    "majority": 0.5,
    "train_majority": 0.5,
    "rms": 0.1,
    "clip": 1.0,
    "layers": ["layer.0", "head"],
    "trained": [True, True],
}


def write_recipe(
    folder: Path,
    *,
    rows: Sequence[tuple[str, str]] | None = None,
    dev: Sequence[tuple[str, str]] | None = None,
    base: Path | None = None,
    train: dict[str, str] | None = None,
    curve: str = "",
    data: str = "",
    text: str = "max_tokens = 32\noverlap = 8",
) -> Path:
    """A recipe with its rows and its base model.

    Args:
        train: keys of ``[train]`` as TOML writes their values, in the place of the healthy ones.
        curve: lines of ``[curve]`` and its sub-tables.
        data: further lines of ``[data]``.
        text: lines of ``[text]``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "rows.csv", rows or mood_rows(400))
    _write(folder / "dev.csv", dev or mood_rows(120, seed=77))
    _write(folder / "test.csv", mood_rows(20, seed=78))
    base = base or tiny_base(folder / "base")
    settings = "\n".join(f"{name} = {value}" for name, value in {**HEALTHY, **(train or {})}.items())
    path = folder / "mood.toml"
    path.write_text(
        f"""
summary = "mood of made-up sentences"
task = "single-label"
[data]
train = "rows.csv"
dev = "dev.csv"
test = "test.csv"
{data}
[base]
model = "{base}"
licence = "made by the tests"
[text]
{text}
[train]
{settings}
[curve]
{curve}
""",
        encoding="utf-8",
    )
    return path


def run(recipe: Path, folder: Path, *, watched: bool = True) -> Trained:
    """Trains; ``folder`` becomes the run folder."""
    return train(prepare(load(str(recipe)), lambda _: None), folder, lambda _: None, watched)


def weights(trained: Trained) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.numpy() for name, value in trained.model.state_dict().items()}


def _write(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(rows)


if __name__ == "__main__":
    import sys

    run(Path(sys.argv[1]), Path(sys.argv[2]))
