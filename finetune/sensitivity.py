"""``python -m finetune sensitivity RECIPE``: which layers matter most to a task, and what to train under a budget.

Two measures, both of the base model with a head that was trained alone for some batches (a head drawn at random would
say nothing of what is below it), and both the mean of batches of train:

- gradient × weight, Σ |g·w|: the loss that leaving its weights out would cost, to first order (Molchanov et al. 2017)
- Fisher, Σ g²: how much the answers change with the weights (its diagonal, estimated by the gradients of the labels;
  Kirkpatrick et al. 2017)

Both depend on how large a layer is, so layers are ranked by the mean over their parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bundle.folder import write_atomic
from bundle.predict import encode_rows
from finetune.lr_range import first
from finetune.machine import quiet_paddle
from finetune.prepare import Prepared, Say


@dataclass(frozen=True)
class Layer:
    """What a layer of the base model weighs.

    Attributes:
        size: parameters in it.
        taylor: gradient × weight, mean over its parameters.
        fisher: mean of squared gradients over its parameters.
    """

    name: str
    size: int
    taylor: float
    fisher: float


def measure(prepared: Prepared, batches: int, warm: int) -> list[Layer]:
    """The layers from below.

    Args:
        batches: of train that are measured.
        warm: updates of the head alone before.
    """
    quiet_paddle()
    import paddle

    from finetune.losses import loss_of
    from finetune.model.heads import draw_head
    from finetune.model.layers import place_of
    from finetune.windows import Windows

    train = prepared.recipe.train
    paddle.seed(train.seed)
    encoded = encode_rows(prepared.lessons, prepared.encoder)
    plan = first(prepared, encoded, warm + batches)
    windows = Windows(prepared, encoded)
    with paddle.utils.unique_name.guard():
        model = prepared.base.build(prepared.task, 0.0)
        draw_head(model, train)
        named = [(place_of(name), parameter) for name, parameter in model.named_parameters()]
        new = [parameter for place, parameter in named if place in ("head", "pooler")]
        optimizer = paddle.optimizer.AdamW(train.head_learning_rate or train.learning_rate, parameters=new)
        sums: dict[str, list[float]] = {place: [0.0, 0.0] for place, _ in named}
        sizes: dict[str, int] = dict.fromkeys(sums, 0)
        for place, parameter in named:
            sizes[place] += int(np.prod(parameter.shape))
        for number, batch in enumerate(plan):
            arrays = windows.collate([windows[item] for item in batch])
            inputs = {name: paddle.to_tensor(values) for name, values in arrays.items()}
            for place, parameter in named:
                parameter.stop_gradient = number < warm and place not in ("head", "pooler")
            outputs = model(inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
            loss_of(outputs if isinstance(outputs, tuple) else (outputs,), inputs, prepared.task, None).backward()
            if number < warm:
                optimizer.step()
            else:
                for place, parameter in named:
                    if parameter.grad is not None:
                        gradient = parameter.grad.astype("float32")
                        sums[place][0] += float((gradient * parameter).abs().sum())
                        sums[place][1] += float((gradient * gradient).sum())
            for _, parameter in named:
                parameter.clear_gradient(set_to_zero=False)
    measured = max(1, len(plan) - warm)
    return [
        Layer(place, sizes[place], taylor / measured / sizes[place], fisher / measured / sizes[place])
        for place, (taylor, fisher) in sums.items()
    ]


def propose(layers: Sequence[Layer], budget: float, by: str = "fisher") -> list[str]:
    """The layers to train: those that weigh most for each parameter, as long as the budget lasts; from below.

    Args:
        budget: share of the encoder's parameters, pooler included and head not.
        by: ``fisher`` or ``taylor``.
    """
    encoder = [layer for layer in layers if layer.name != "head"]
    left = budget * sum(layer.size for layer in encoder)
    chosen = set()
    for layer in sorted(encoder, key=lambda one: -float(getattr(one, by))):
        if layer.size <= left:
            chosen.add(layer.name)
            left -= layer.size
    return [layer.name for layer in encoder if layer.name in chosen]


def agreement(layers: Sequence[Layer]) -> float:
    """Spearman's rank correlation of the two measures over the encoder's layers, -1 to 1."""
    encoder = [layer for layer in layers if layer.name != "head"]
    ranks = [np.argsort(np.argsort([getattr(layer, by) for layer in encoder])) for by in ("taylor", "fisher")]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if len(encoder) > 1 else 1.0


def analyse(prepared: Prepared, folder: Path, say: Say, *, batches: int, warm: int, budget: float) -> dict[str, Any]:
    """Measures, ranks, proposes, and writes ``sensitivity.json``."""
    layers = measure(prepared, batches, warm)
    encoder = [layer for layer in layers if layer.name != "head"]
    total = sum(layer.size for layer in encoder)
    for layer in sorted(encoder, key=lambda one: -one.fisher):
        say(f"{layer.name}: Fisher {layer.fisher:.2e}, gradient × weight {layer.taylor:.2e}, {layer.size / total:.0%}")
    same = agreement(layers)
    say(f"the two measures rank alike by {same:.2f} (Spearman; 1 is the same order)")
    chosen = propose(layers, budget)
    lines = _recipe_lines(chosen)
    used = sum(layer.size for layer in encoder if layer.name in chosen) / total
    say(f"within {budget:.0%} of the encoder's parameters, by Fisher: {lines} ({used:.0%})")
    record: Mapping[str, Any] = {
        "recipe": prepared.recipe.name,
        "batches": batches,
        "warm": warm,
        "budget": budget,
        "layers": [vars(layer) for layer in layers],
        "agreement": same,
        "proposed": chosen,
        "used": used,
        "train": lines,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "sensitivity.json", json.dumps(record, indent=1) + "\n")
    say(f"wrote {folder / 'sensitivity.json'}")
    return dict(record)


def _recipe_lines(chosen: Sequence[str]) -> str:
    return f"train_only = {json.dumps(list(chosen))}" if chosen else "train_layers = 0"
