"""Successive halving (Jamieson and Talwalkar 2016): candidates train on few rows, the better half goes on with more.

Every rung trains anew on more rows and measures on the same dev rows, so that scores of a rung compare.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from bundle.errors import AssetUnavailable, DataError
from finetune.prepare import Say, prepare
from finetune.recipe import Recipe

# Rows of the first rung at least: fewer say nothing.
LEAST = 64


def rungs(rows: int, racers: int) -> list[int]:
    """Rows of each rung: the last one has all, each one before it half as many."""
    count = max(1, math.ceil(math.log2(racers)))
    return [max(min(LEAST, rows), rows >> (count - 1 - place)) for place in range(count)]


def survivors(scores: dict[str, float]) -> list[str]:
    """The better half, best first; of equals the one that was named first."""
    order = sorted(scores, key=lambda name: -scores[name])
    return order[: max(1, len(order) // 2)]


def run_race(recipes: dict[str, Recipe], folder: Path, say: Say) -> str:
    """Trains the candidates against each other and returns the winner's name.

    Raises:
        DataError: rows that cannot be trained on, or no base model can be had.
    """
    from finetune.train import train

    left, rows_of_all = [], 0
    for name, recipe in recipes.items():
        try:
            rows_of_all = len(prepare(recipe, lambda _: None).train)
            left.append(name)
        except AssetUnavailable as error:
            say(f"{name} does not run: {str(error).splitlines()[0]}")
    if not left:
        raise DataError("none of the candidates' base models can be had here")
    for number, rows in enumerate(rungs(rows_of_all, len(left)), 1):
        if len(left) == 1:
            break
        scores = {}
        for name in left:
            given = recipes[name].model_dump(exclude_unset=True)
            given["data"] |= {"rows": rows}
            recipe = Recipe.model_validate(given)
            own = folder / f"rung-{number}" / name
            shutil.rmtree(own, ignore_errors=True)
            scores[name] = train(prepare(recipe, lambda _: None), own, lambda _: None).best
            shutil.rmtree(own / "checkpoints", ignore_errors=True)
            say(f"rung {number}, {rows:,} rows: {name} dev {recipe.metric} {scores[name]:.4f}")
        left = survivors(scores)
    say(f"the race is won by {left[0]}")
    return left[0]
