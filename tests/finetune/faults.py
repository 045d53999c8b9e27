"""Trainings that are ill in a known way, and healthy ones: each a recipe, its rows and its base model.

``python -m tests.finetune.faults`` trains the ill ones and prints what is found in each; ``--healthy --seeds 3`` trains
the healthy ones with several seeds and counts false alarms.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.finetune.short_training import run, write_recipe
from tests.tiny_base import mood_rows, tiny_base

Rows = list[tuple[str, str]]
LOOK = "level = 3\nlayers_every = 4\ndeep_every = 20\n"


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        finding: what must be found; None of a healthy one.
        spoil: changes the base model's weights, by name.
        dev: other dev rows than the usual ones.
    """

    finding: str | None
    rows: Callable[[int], Rows] = lambda seed: mood_rows(400, seed)
    train: dict[str, str] = field(default_factory=dict)
    spoil: Callable[[dict[str, Any]], None] | None = None
    dev: Rows | None = None


def flipped(rows: Rows, share: float, seed: int = 5) -> Rows:
    """Rows of which a share has the other label."""
    generator = random.Random(seed)
    other = {"好评": "差评", "差评": "好评"}
    return [(text, other[label] if generator.random() < share else label) for text, label in rows]


def lopsided(rows: Rows, keep: int) -> Rows:
    """Rows of which only a few have the second label."""
    few = [row for row in rows if row[1] == "差评"][:keep]
    return [row for row in rows if row[1] == "好评"] + few


def _saturated_pooler(state: dict[str, Any]) -> None:
    state["pooler.dense.weight"] = state["pooler.dense.weight"] * 1e4


def _loud_encoder(state: dict[str, Any]) -> None:
    for name in list(state):
        if name.endswith("norm2.weight"):
            state[name] = state[name] * 300
    state["pooler.dense.weight"] = state["pooler.dense.weight"] / 100


def _dead_layer(state: dict[str, Any]) -> None:
    """Layer 1 passes its input on: no attention and no feed-forward output, and none of their inputs."""
    for name in ("self_attn.v_proj", "self_attn.out_proj", "linear1", "linear2"):
        for part in ("weight", "bias"):
            state[f"encoder.layers.1.{name}.{part}"] = state[f"encoder.layers.1.{name}.{part}"] * 0
    # A GELU far below zero lets nothing through, forwards or backwards.
    state["encoder.layers.1.linear1.bias"] = state["encoder.layers.1.linear1.bias"] - 1e4


FAULTS: dict[str, Case] = {
    "a tiny set, read often": Case(
        "overfitting", lambda seed: mood_rows(24, seed), {"epochs": "30", "batch": "8", "learning_rate": "3e-3"}
    ),
    "dropout of 0.95": Case("stagnation", train={"dropout": "0.95"}),
    "a rate 100 times too high": Case("rate-too-high", train={"learning_rate": "0.3"}),
    "a rate 1000 times too low": Case("rate-too-low", train={"learning_rate": "3e-6"}),
    "a constant rate in small batches": Case(
        "oscillation",
        lambda seed: flipped(mood_rows(400, seed), 0.15),
        {"epochs": "6", "batch": "8", "schedule": '"constant"', "eval_every": "0.06"},
    ),
    "a saturated pooler": Case("vanishing-gradient", spoil=_saturated_pooler),
    "a loud encoder": Case("exploding-gradient", spoil=_loud_encoder),
    "a dead layer": Case("dead-layer", spoil=_dead_layer),
    "one row in thirteen has the other label": Case(
        "imbalance-collapse", lambda seed: lopsided(mood_rows(400, seed), 16), dev=lopsided(mood_rows(300, 77), 12)
    ),
    "a quarter of the labels wrong": Case(
        "label-noise", lambda seed: flipped(mood_rows(800, seed), 0.25), {"epochs": "5", "batch": "32"}
    ),
    "a rate that grows after it was learned": Case(
        "forgetting", train={"learning_rate": "8e-2", "warmup": "0.95", "epochs": "8"}
    ),
    "no clipping and an absurd rate": Case("not-finite", train={"learning_rate": "1e30", "clip": "0"}),
}
HEALTHY: dict[str, Case] = {
    "as it should be": Case(None),
    "half the rate, more passes": Case(None, train={"learning_rate": "1.5e-3", "epochs": "8"}),
    "cosine, batch 32": Case(None, train={"schedule": '"cosine"', "batch": "32", "epochs": "8"}),
    "dropout 0.1": Case(None, train={"dropout": "0.1", "epochs": "6"}),
    "three of ten are good": Case(
        None, lambda seed: lopsided(mood_rows(500, seed), 110), {"epochs": "6"}, dev=lopsided(mood_rows(160, 77), 34)
    ),
    "5% of the labels wrong": Case(None, lambda seed: flipped(mood_rows(400, seed), 0.05), {"epochs": "5"}),
}


def train_case(case: Case, folder: Path, seed: int = 3) -> Path:
    """Trains it; returns the run folder, whose record is there even if the training broke off."""
    from bundle.errors import TrainingDiverged

    base = tiny_base(folder / "base", seed=seed + 4)
    if case.spoil is not None:
        import paddle

        path = base / "model_state.pdparams"
        state = paddle.load(str(path))
        case.spoil(state)
        paddle.save(state, str(path))
    settings = {"seed": str(seed), **case.train}
    recipe = write_recipe(folder, rows=case.rows(seed), dev=case.dev, base=base, train=settings, curve=LOOK)
    with contextlib.suppress(TrainingDiverged):
        run(recipe, folder / "run")
    return folder / "run"


def main(arguments: list[str] | None = None) -> None:
    """Prints a line for each training: what must be found, and what was found when."""
    import argparse
    import tempfile
    from collections import Counter

    from finetune.curve.diagnosis import timeline
    from finetune.curve.record import read

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--healthy", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names; default: all")
    chosen = parser.parse_args(arguments)
    alarms: Counter[str] = Counter()
    runs = missed = false = 0
    for name, case in (HEALTHY if chosen.healthy else FAULTS).items():
        if not any(part in name for part in chosen.only):
            continue
        for seed in range(3, 3 + chosen.seeds):
            with tempfile.TemporaryDirectory() as folder:
                spells = timeline(read(train_case(case, Path(folder), seed)))
            found = {spell.finding.name for spell in spells}
            runs += 1
            missed += case.finding is not None and case.finding not in found
            false += case.finding is None and bool(found)
            alarms.update(found)
            told = ", ".join(f"{s.finding.name} {s.first}-{s.last or 'end'}" for s in spells) or "nothing"
            print(f"| {name} | {seed} | {case.finding or 'nothing'} | {told} |", flush=True)
    if chosen.healthy:
        print(f"{false} of {runs} healthy trainings were called ill: {dict(alarms)}")
    else:
        print(f"{runs - missed} of {runs} faults were found")


if __name__ == "__main__":
    main()
