"""How the learning rate runs over a training: one factor on every peak rate for each update, and each layer's peak.

Plain functions of the recipe, without Paddle: what a recipe will do can be drawn and tested before it is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from bundle.errors import RecipeError
from finetune.recipe import Recipe
from finetune.train_settings import Train


def warmup_updates(settings: Train, updates: int) -> int:
    """Updates in which the rate rises."""
    if settings.warmup_steps is not None:
        return min(settings.warmup_steps, updates)
    return math.ceil(updates * settings.warmup)


def factor(settings: Train, updates: int) -> Callable[[int], float]:
    """The share of its peak rate with which an update is made.

    Linear, cosine and constant are those of PaddleNLP, to the last bit. A cosine with restarts is SGDR (Loshchilov and
    Hutter 2017), one-cycle that of Smith and Topin 2018 without its cycle of the momentum.

    Args:
        updates: of the whole run.

    Returns:
        from the updates made so far to the factor, 0 to 1, of the next one.
    """
    rise = warmup_updates(settings, updates)
    rest = max(1, updates - rise)
    floor = settings.floor
    ends = _ends(settings.restarts, settings.restart_growth)

    def fall(done: int) -> float:
        if settings.schedule == "constant":
            return 1.0
        if settings.schedule == "linear":
            return max(0.0, (updates - done) / rest)
        share = (done - rise) / rest
        if settings.schedule == "polynomial":
            return float(max(0.0, 1.0 - share) ** settings.power)
        if settings.restarts:
            share = min(share, 1.0)
            place = next((number for number, end in enumerate(ends) if share < end), len(ends) - 1)
            start = ends[place - 1] if place else 0.0
            share = (share - start) / (ends[place] - start)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * share)))

    def now(done: int) -> float:
        if done < rise:
            share = done / max(1, rise)
            if settings.schedule != "one-cycle":
                return share
            return settings.start + (1.0 - settings.start) * 0.5 * (1.0 - math.cos(math.pi * share))
        return floor + (1.0 - floor) * fall(done)

    return now


def _ends(restarts: int, growth: float) -> list[float]:
    """Where each stretch of a cosine with restarts ends, as a share of the run after the warm-up."""
    sizes = list(accumulate(growth**number for number in range(restarts + 1)))
    return [size / sizes[-1] for size in sizes]


def peak_rates(recipe: Recipe, layers: Sequence[str]) -> dict[str, float]:
    """The peak rate of each layer.

    ``learning_rate`` is that of the uppermost encoder layer and of the pooler; ``layer_decay`` lowers it from layer to
    layer (Howard and Ruder 2018; Clark et al. 2020), embeddings being the lowest. ``rates`` says it outright.

    Args:
        layers: names as `finetune.model.layers` gives them: ``embeddings``, ``layer.0`` …, ``pooler``,
            ``head``.

    Raises:
        RecipeError: ``rates`` names a layer that the model has not.
    """
    settings = recipe.train
    unknown = [name for name in settings.rates if name not in layers and name != "encoder"]
    if unknown:
        raise RecipeError(recipe.name, f"train.rates.{unknown[0]}", "the model has no such layer", ["encoder", *layers])
    encoder = settings.rates.get("encoder", settings.learning_rate)
    depth = sum(name.startswith("layer.") for name in layers)
    usual = {"head": settings.head_learning_rate or settings.learning_rate, "embeddings": encoder}
    usual["embeddings"] *= settings.layer_decay**depth
    for name in layers:
        if name.startswith("layer."):
            usual[name] = encoder * settings.layer_decay ** (depth - 1 - int(name.removeprefix("layer.")))
    return {name: settings.rates.get(name, usual.get(name, encoder)) for name in layers}
