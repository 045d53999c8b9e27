"""Paddle's schedule and optimizer for a recipe: AdamW with a rate for every layer."""

from __future__ import annotations

from typing import Any

from finetune.freezing import Freezer
from finetune.prepare import Prepared
from finetune.schedules import factor, peak_rates


def make_schedule(prepared: Prepared, updates: int) -> Any:
    """The schedule of a run of so many updates; its base rate is the recipe's ``learning_rate``."""
    import paddle

    settings = prepared.recipe.train
    return paddle.optimizer.lr.LambdaDecay(settings.learning_rate, factor(settings, updates))


def make_optimizer(prepared: Prepared, freezer: Freezer, scheduler: Any) -> Any:
    """AdamW; each layer has the rate that the recipe gives it; norms and biases do not decay.

    Paddle clips each parameter group on its own. There are two of them, encoder and head; the layers' rates stand on
    the parameters, so that a recipe with many rates is clipped as one with two.
    """
    import paddle

    settings = prepared.recipe.train
    curve = prepared.recipe.curve
    # What the controller may unfreeze must have its place; Paddle's step leaves out what needs no gradient.
    all_of_them = curve.control == "on" and curve.unfreeze.use
    layers = list(dict.fromkeys(place for _, place, _ in freezer.parameters))
    peaks = peak_rates(prepared.recipe, layers)
    encoder: list[Any] = []
    head: list[Any] = []
    decayed: set[str] = set()
    ratios: list[tuple[Any, float]] = []
    for name, place, parameter in freezer.parameters:
        if not (all_of_them or freezer.may_train(name, place)):
            continue
        (head if place == "head" else encoder).append(parameter)
        ratios.append((parameter, peaks[place] / settings.learning_rate))
        if not any(part in name for part in ("bias", "norm")):
            decayed.add(parameter.name)
    if settings.sharding != "off":
        # Paddle shards no parameter groups: encoder and head are clipped together then.
        groups: list[Any] = [*encoder, *head]
    else:
        groups = [{"params": encoder, "learning_rate": 1.0}] if encoder else []
        groups.append({"params": head, "learning_rate": peaks["head"] / settings.learning_rate})
    optimizer = paddle.optimizer.AdamW(
        learning_rate=scheduler,
        parameters=groups,
        weight_decay=settings.weight_decay,
        apply_decay_param_fun=decayed.__contains__,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(settings.clip) if settings.clip else None,
    )
    for parameter, ratio in ratios:
        parameter.optimize_attr["learning_rate"] = ratio
    return optimizer
