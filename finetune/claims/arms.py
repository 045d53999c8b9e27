"""What is compared: the claims, and the arms (a shipped recipe, reduced, with some keys changed) that test them.

Everything is small on purpose: all arms with three seeds are to be trained in about an hour on two cores. A reduced
recipe keeps its data, base model, rates and frozen layers; it loses rows, tokens and windows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from finetune.recipe import Recipe, load

SEEDS = (13, 14, 15)
# Layers of the base model that the recipes name, m3e-small.
SHIPPED_LAYERS = 4
Probe = Literal["", "recompute", "no-recompute"]

# Of every arm. Two windows of a text are read in evaluations, so that long articles cost no more than reviews.
REDUCED: dict[str, dict[str, Any]] = {
    "data": {"rows": 480, "dev_rows": 120, "test_rows": 400, "neutral": None, "join_share": 0.0},
    "text": {"max_tokens": 40, "overlap": 8, "pooling": "mean"},
    "train": {
        "batch": 8,
        "epochs": 2,
        "watch_rows": 60,
        "watch_windows": 2,
        "eval_every": 0.2,
        "patience": 99,
    },
    "curve": {"every": 1},
}
# The lowest layers of the recipe's own base model; its frozen layers become fewer by the same share.
LAYERS = 2
# What most claims are tried on: few reviews, nothing frozen but the embeddings.
FEW: dict[str, dict[str, Any]] = {"train": {"freeze_layers": 0, "eval_every": 0.125}}
ON: dict[str, dict[str, Any]] = {"curve": {"control": "on"}}
# What may be done about overfitting, beside what is used by default.
USE = {"use": True}
EVERYTHING: dict[str, dict[str, Any]] = {
    "curve": {
        "control": "on",
        **dict.fromkeys(("dropout", "weight_decay", "label_smoothing", "early_stop"), USE),
    }
}
TASKS = ("reviews", "news", "titles", "mentions", "ner", "news-names")


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        recipe: the shipped recipe that it is a reduced form of.
        changes: by table, keys in the place of the recipe's and of `REDUCED`.
        layers: how many of the base model's layers are used, from below.
        alone: in a process of its own, whose peak of memory is then this training's.
        probe: no training but steps of one batch, with or without recomputed activations.
        twin: an arm with the controller on. Where it did not fire, that training is this one bit by bit (a test
            proves it), and its row is taken.
    """

    name: str
    recipe: str = "reviews"
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    layers: int = LAYERS
    alone: bool = False
    probe: Probe = ""
    twin: str = ""

    def build(self, seed: int) -> Recipe:
        """The whole recipe.

        Raises:
            RecipeError: the shipped recipe is wrong.
        """
        table = load(self.recipe).model_dump(exclude_unset=True)
        table["train"]["freeze_layers"] = table["train"].get("freeze_layers", 0) * self.layers // SHIPPED_LAYERS
        for more in (REDUCED, self.changes):
            table = merged(table, more)
        # Without neutral text nothing else that is said of it acts.
        table["data"] = {key: value for key, value in table["data"].items() if not key.startswith("neutral_")}
        table["train"]["seed"] = seed
        table["name"] = f"claim-{self.name}"
        return Recipe.model_validate(table)

    def checksum(self, seed: int) -> str:
        """Of what decides the row."""
        # Without defaults: a key that recipes learn later changes no training that does not use it.
        recipe = self.build(seed).model_dump(mode="json", exclude_defaults=True, exclude={"summary", "expect"})
        meaning = [recipe, self.layers, self.probe]
        return sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]


def merged(table: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested tables with other values."""
    result = dict(table)
    for name, value in more.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _few(name: str, train: dict[str, Any] | None = None, **more: Any) -> Arm:
    changes = merged(FEW, {"train": merged(FEW["train"], train or {})})
    return Arm(name, changes=changes, **more)


def _pair(name: str, recipe: str, changes: dict[str, dict[str, Any]], on: dict[str, dict[str, Any]] = ON) -> list[Arm]:
    """With the controller on and off, in this order."""
    return [Arm(f"{name}-on", recipe, merged(changes, on)), Arm(f"{name}-off", recipe, changes, twin=f"{name}-on")]


WIDER = {"text": {"max_tokens": 64}}  # a title stands in every window
HOT_REVIEWS = {"train": {"learning_rate": 2e-2, "head_learning_rate": 1e-1}}
HOT_NEWS = {"train": {"learning_rate": 6e-3, "head_learning_rate": 3e-2}}
OVERFIT: dict[str, dict[str, Any]] = {
    "data": {"rows": 96},
    "train": {"epochs": 8, "learning_rate": 4e-4, "freeze_layers": 0, "freeze_embeddings": False, "eval_every": 0.1},
}
# Twelve windows of 128 tokens a step and all four layers: activations are to weigh something beside the weights.
MEMORY: dict[str, dict[str, Any]] = {
    "data": {"rows": 120, "test_rows": 20},
    "text": {"max_tokens": 128},
    "train": {"batch": 12, "epochs": 1, "watch_rows": 20, "eval_every": 1.0},
}
ALL_LAYERS = merged(MEMORY, {"train": merged(MEMORY["train"], {"freeze_layers": 0, "freeze_embeddings": False})})
LAST_TWO = merged(MEMORY, {"train": merged(MEMORY["train"], {"freeze_layers": 2, "freeze_embeddings": True})})

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        *(arm for name in TASKS for arm in _pair(name, name, WIDER if name == "titles" else {})),
        *_pair("reviews-rate-100x", "reviews", HOT_REVIEWS),
        *_pair("news-rate-30x", "news", HOT_NEWS),
        *_pair("reviews-overfit", "reviews", OVERFIT, EVERYTHING),
        _few("few"),
        _few("few-full", {"freeze_embeddings": False}),
        _few("few-two-stage", {"freeze_embeddings": False, "head_first": 0.3}),
        _few("few-cosine", {"schedule": "cosine"}),
        _few("few-constant", {"schedule": "constant"}),
        _few("few-unclipped", {"clip": 0.0}),
        _few("few-10x", {"learning_rate": 2e-3, "head_learning_rate": 1e-2}),
        _few("few-10x-unclipped", {"learning_rate": 2e-3, "head_learning_rate": 1e-2, "clip": 0.0}),
        _few("few-late", {"delay": 2}),
        _few("few-late-compensated", {"delay": 2, "delay_compensation": 0.1}),
        _few("few-xavier", {"head_init": "xavier"}),
        _few("few-long", {"epochs": 5, "eval_every": 0.1}),
        _few("few-long-early", {"epochs": 5, "eval_every": 0.1, "patience": 3}),
        Arm("all-layers", "news", ALL_LAYERS, layers=4, alone=True),
        Arm("last-two", "news", LAST_TWO, layers=4, alone=True),
        Arm("no-recompute", "news", ALL_LAYERS, layers=4, alone=True, probe="no-recompute"),
        Arm("recompute", "news", ALL_LAYERS, layers=4, alone=True, probe="recompute"),
    )
}
