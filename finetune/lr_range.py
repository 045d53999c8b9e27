"""``python -m finetune lr-range RECIPE``: which learning rate a recipe could start from.

The range test of Smith 2017: the rate is raised from update to update on a log scale, and the loss is looked at. What
it suggests is a hint and no more. Read naively it misleads for transformers: the loss falls fastest where the new head
learns, at rates at which an encoder that goes on for a whole run forgets what it knew. So the suggestion is tried in a
short run, and so is a tenth of it, and both are told.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bundle.encode import Encoded
from bundle.errors import TrainingDiverged
from bundle.folder import write_atomic
from bundle.predict import encode_rows
from finetune.batches import Item
from finetune.machine import quiet_paddle
from finetune.prepare import Prepared, Say
from finetune.windows import Windows, planned

# The sweep ends where the smoothed loss is so many times its best.
DIVERGED = 2.0
WARNING = (
    "a hint, not a finding: the range test looks at some updates each, and for a transformer that is to be trained for "
    "a whole run it suggests too much"
)


@dataclass(frozen=True)
class Sweep:
    """A range test.

    Attributes:
        rates, losses, smooth: of each update, until the loss was lost.
        steepest: the rate at which the smoothed loss falls fastest.
        suggested: the hint: the steepest, but at most a tenth of the rate of the lowest loss.
    """

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    steepest: float
    suggested: float


def sweep(prepared: Prepared, low: float, high: float, updates: int) -> Sweep:
    """Trains with a rate that rises from ``low`` to ``high``; every other setting is the recipe's."""
    quiet_paddle()
    import paddle

    from finetune.freezing import Freezer
    from finetune.losses import class_weights, loss_of
    from finetune.model.heads import draw_head
    from finetune.optimizer import make_optimizer

    train = prepared.recipe.train
    paddle.seed(train.seed)
    encoded = encode_rows(prepared.lessons, prepared.encoder)
    batches = first(prepared, encoded, updates)
    windows = Windows(prepared, encoded)
    weights = class_weights(prepared.train, prepared)
    weight = None if weights is None else paddle.to_tensor(weights, dtype="float32")
    rates = [float(rate) for rate in np.geomspace(low, high, updates)]
    losses: list[float] = []
    with paddle.utils.unique_name.guard():
        model = prepared.base.build(prepared.task, train.dropout)
        draw_head(model, train)
        freezer = Freezer(model, prepared.recipe, updates)
        freezer.finish()  # stages would make the sweep one of the head alone
        ratios = [rate / train.learning_rate for rate in rates]
        schedule = paddle.optimizer.lr.LambdaDecay(train.learning_rate, lambda update: ratios[min(update, updates - 1)])
        optimizer = make_optimizer(prepared, freezer, schedule)
        model.train()
        for batch in batches:
            arrays = windows.collate([windows[item] for item in batch])
            inputs = {name: paddle.to_tensor(values) for name, values in arrays.items()}
            outputs = model(inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = loss_of(outputs, inputs, prepared.task, weight)
            losses.append(float(loss))
            if not np.isfinite(losses[-1]) or smoothed(losses)[-1] > DIVERGED * min(smoothed(losses)):
                break
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            schedule.step()
    return read_sweep(rates, losses)


def read_sweep(rates: Sequence[float], losses: Sequence[float]) -> Sweep:
    """What a sweep's losses suggest."""
    finite = [loss for loss in losses if np.isfinite(loss)]
    smooth = smoothed(finite)
    used = list(rates[: len(finite)])
    lowest = int(np.argmin(smooth))
    # What is far above the start, or after the lowest point, is no fall that could be kept.
    falls = np.gradient(smooth, np.log(used)) if len(used) > 2 else np.zeros(len(used))
    first = min(len(used) // 10, lowest)
    steepest = used[first + int(np.argmin(falls[first : lowest + 1]))] if lowest > first else used[lowest]
    return Sweep(used, finite, smooth, steepest, min(steepest, used[lowest] / 10))


def smoothed(losses: Sequence[float], keep: float = 0.9) -> list[float]:
    """Exponential mean, corrected for its start (Kingma and Ba 2015, section 3)."""
    found, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = keep * mean + (1 - keep) * loss
        found.append(mean / (1 - keep**number))
    return found


def try_rate(prepared: Prepared, rate: float, updates: int, run: Path) -> dict[str, Any]:
    """A short run of the recipe at a rate: its dev loss and score; None where the loss was lost.

    The new head keeps its ratio to the encoder.
    """
    from finetune.train import train

    settings = prepared.recipe.train
    scale = rate / settings.learning_rate
    share = updates * settings.batch * settings.accumulate / max(1, len(prepared.lessons))
    short: dict[str, Any] = {
        "learning_rate": rate,
        "epochs": share,
        "eval_every": 1.0,
        "rates": {name: value * scale for name, value in settings.rates.items()},
    }
    if settings.head_learning_rate is not None:
        short["head_learning_rate"] = settings.head_learning_rate * scale
    recipe = prepared.recipe.model_copy(update={"train": settings.model_copy(update=short)})
    try:
        done = train(replace(prepared, recipe=recipe), run, lambda _: None)
    except TrainingDiverged:
        return {"rate": rate, "updates": updates, "dev_loss": None, recipe.metric: None}
    loss = next(point["dev_loss"] for point in reversed(done.history) if "dev_loss" in point)
    return {"rate": rate, "updates": done.steps, "dev_loss": loss, recipe.metric: done.best}


def range_test(
    prepared: Prepared, folder: Path, say: Say, *, low: float, high: float, updates: int, check: int
) -> dict[str, Any]:
    """Sweeps, tries the suggestion and a tenth of it, writes ``lr-range.json`` and ``lr-range.png``.

    Args:
        check: updates of each of the two short runs; 0 leaves them out.
    """
    import tempfile

    random.seed(prepared.recipe.train.seed)
    found = sweep(prepared, low, high, updates)
    lowest = min(found.smooth)
    say(f"{len(found.rates)} updates from {low:g} to {found.rates[-1]:.2g}; lowest smoothed loss {lowest:.3f}")
    say(f"suggestion: learning_rate = {found.suggested:.1g} ({WARNING})")
    tried = []
    for rate in (found.suggested, found.suggested / 10) if check else ():
        with tempfile.TemporaryDirectory() as run:
            tried.append(try_rate(prepared, rate, check, Path(run)))
        dev = tried[-1]["dev_loss"]
        metric = prepared.recipe.metric
        told = "lost" if dev is None else f"dev loss {dev:.3f}, {metric} {tried[-1][metric]:.3f}"
        say(f"a run of {check} updates at {rate:.1g}: {told}")
    known = [one for one in tried if one["dev_loss"] is not None]
    better = min(known, key=lambda one: float(one["dev_loss"]))["rate"] if known else None
    if better is not None:
        say(f"of the two, {better:.1g} has the lower dev loss; the recipe has {prepared.recipe.train.learning_rate:g}")
    record = {
        "recipe": prepared.recipe.name,
        "recipe_rate": prepared.recipe.train.learning_rate,
        "suggested": found.suggested,
        "steepest": found.steepest,
        "is_a": WARNING,
        "tried": tried,
        "better": better,
        "rates": found.rates,
        "losses": found.losses,
        "smooth": found.smooth,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "lr-range.json", json.dumps(record, indent=1) + "\n")
    _draw(folder / "lr-range.png", found, tried, prepared.recipe.train.learning_rate)
    say(f"wrote {folder / 'lr-range.json'} and lr-range.png")
    return record


def first(prepared: Prepared, encoded: list[Encoded], updates: int) -> list[list[Item]]:
    """The first batches of a run that is long enough for so many updates."""
    epochs = updates * prepared.recipe.train.batch / len(encoded) + 1
    return planned(prepared, encoded, epochs)[:updates]


def _draw(path: Path, found: Sweep, tried: list[dict[str, Any]], recipe_rate: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.4), constrained_layout=True)
    axes.plot(found.rates, found.losses, color="#4c78a8", alpha=0.3, label="train loss")
    axes.plot(found.rates, found.smooth, color="#4c78a8", label="smoothed")
    axes.axvline(found.suggested, color="#e45756", linestyle="--", label=f"suggestion {found.suggested:.1g}, a hint")
    axes.axvline(recipe_rate, color="#54a24b", linestyle=":", label=f"the recipe's {recipe_rate:g}")
    for one in tried:
        if one["dev_loss"] is not None:
            axes.plot([one["rate"]], [one["dev_loss"]], "s", color="#f58518")
            axes.annotate(f"dev loss after {one['updates']} updates", (one["rate"], one["dev_loss"]), fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_ylim(top=min(max(found.losses), 2.5 * found.smooth[0]))
    axes.legend(fontsize=8)
    temporary = path.with_name(f".{path.name}.tmp.png")
    figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    temporary.replace(path)
