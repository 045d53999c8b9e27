"""What of a model is trained when: the recipe's choice of layers and parts, and their unfreezing from the top.

Layers are frozen from below, where features are general (Howard and Ruder 2018): the backward pass ends at the lowest
trained layer, so that a frozen layer above a trained one saves memory of the optimizer and no time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bundle.errors import RecipeError
from finetune.curve.diagnosis import Finding
from finetune.curve.record import History, Point, Record
from finetune.model.layers import place_of
from finetune.recipe import Recipe

# Names the events by which unfreezing by diagnosis is recorded.
UNFREEZE = "train.unfreeze"


class Freezer:
    """Turns the gradient of a model's parameters on and off as the recipe plans it.

    Args:
        model: a PaddleNLP model with its heads.
        updates: of the whole run.

    Raises:
        RecipeError: a layer is named that the model has not, or more layers than there are.
    """

    def __init__(self, model: Any, recipe: Recipe, updates: int) -> None:
        self.settings, self.updates = recipe.train, updates
        self.parameters = [(name, place_of(name), parameter) for name, parameter in model.named_parameters()]
        places = list(dict.fromkeys(place for _, place, _ in self.parameters))
        self.layers = sum(place.startswith("layer.") for place in places)
        settings = recipe.train
        self.lowest = settings.freeze_layers
        if settings.train_layers is not None:
            if settings.train_layers > self.layers:
                reason = f"{settings.train_layers} layers are to be trained, the model has {self.layers}"
                raise RecipeError(recipe.name, "train.train_layers", reason)
            self.lowest = self.layers - settings.train_layers
        known = [place for place in places if place != "head"]
        for name in settings.train_only or ():
            if name not in known:
                raise RecipeError(recipe.name, "train.train_only", f"the model has no {name}", known)
        self._set: tuple[int, int | None] | None = None

    @property
    def frozen(self) -> int:
        """Lowest encoder layers that the recipe's own plan does not train now."""
        return max(self.lowest, self._set[0] if self._set is not None else self.frozen_at(0))

    @property
    def staged(self) -> bool:
        """Whether what is trained changes in the run."""
        return self.settings.head_first > 0 or self.settings.unfreeze != "at-once"

    def frozen_at(self, update: int) -> int:
        """Lowest encoder layers that the schedule does not train yet, with the embeddings, at an update from 0 on."""
        settings, share = self.settings, update / max(1, self.updates)
        if settings.unfreeze == "by-diagnosis" or share < settings.head_first:
            return self.layers
        if settings.unfreeze == "at-once" or share >= settings.unfreeze_until:
            return 0
        stretch = (settings.unfreeze_until - settings.head_first) / max(1, self.layers - self.lowest)
        # So near to a border, what floats lose must not decide on which side of it an update is.
        return max(0, self.layers - 1 - int((share - settings.head_first) / stretch + 1e-9))

    def may_train(self, name: str, place: str) -> bool:
        """Whether the recipe ever trains a parameter."""
        return self._part(name, place) and self._depth(place)

    def trains(self, name: str, place: str, frozen: int, turned: int | None) -> bool:
        """Whether a parameter is trained.

        Args:
            frozen: from `frozen_at`.
            turned: lowest layers that the controller froze, embeddings included; None where it has not.
        """
        if not self._part(name, place):
            return False
        if place in ("head", "pooler"):
            return self._depth(place)
        bar = frozen if turned is None else turned
        above = bar == 0 if place == "embeddings" else _number(place) >= bar
        # What the controller unfreezes is trained even where the recipe would not; by diagnosis the recipe decides.
        controlled = turned is not None and self.settings.unfreeze != "by-diagnosis"
        return above and (controlled or self._depth(place))

    def apply(self, update: int, turned: int | None = None) -> None:
        """Before an update; see `trains`."""
        frozen = self.frozen_at(update)
        if self._set == (frozen, turned):
            return
        self._set = frozen, turned
        for name, place, parameter in self.parameters:
            parameter.stop_gradient = not self.trains(name, place, frozen, turned)

    def finish(self) -> None:
        """Trains at once what the recipe trains in the end."""
        for name, place, parameter in self.parameters:
            parameter.stop_gradient = not self.may_train(name, place)

    def next(self, history: History) -> Finding | None:
        """By diagnosis: why the next layer should be trained now, after an evaluation.

        It is, where the dev loss fell since the evaluation before by less than ``curve.thresholds.flat`` of chance.
        """
        if self.settings.unfreeze != "by-diagnosis":
            return None
        turned = [e for e in history.of("event") if e["strategy"] == UNFREEZE or "rollback" in e]
        since = max((event["step"] for event in turned if not event.get("dry_run")), default=-1)
        losses = [point["loss"] for point in history.of("dev") if point["step"] > since]
        if len(losses) < 2 or None in losses[-2:]:
            return None
        fell, bar = losses[-2] - losses[-1], history.run["thresholds"]["flat"] * history.run["dev_chance"]
        if fell >= bar:
            return None
        sentence = f"the dev loss fell by {fell:.3g}, less than {bar:.3g}, with the layers trained so far"
        return Finding("standstill", history.step, sentence)

    def unfreeze(self, record: Record, turned: int | None) -> Point | None:
        """By diagnosis: records that the next layer is trained from now on, where it is time for it."""
        now = self.layers if turned is None else turned
        reason = self.next(record.history) if now > self.lowest else None
        if reason is None:
            return None
        return record.add(
            "event",
            record.history.step,
            strategy=UNFREEZE,
            finding=reason.name,
            reason=reason.sentence,
            before={"frozen": turned},
            after={"frozen": now - 1},
        )

    def says(self) -> str:
        """What the recipe never trains, and what it does not train yet; empty where it trains all."""
        frozen = [(name, place, p) for name, place, p in self.parameters if not self.may_train(name, place)]
        told = []
        if frozen:
            places = dict.fromkeys(place for _, place, _ in frozen)
            layers = sum(place.startswith("layer.") for place in places)
            names = [place for place in places if not place.startswith("layer.")]
            names += [f"{layers} of {self.layers} layers"] * bool(layers)
            if self.settings.train_parts != "all":
                names = [f"all but {self.settings.train_parts}, pooler and head"]
            count = sum(int(np.prod(p.shape)) for _, _, p in frozen)
            told.append(f"frozen: {' and '.join(names)}, {count / 1e6:.1f} M parameters")
        if self.settings.head_first:
            until = round(self.settings.head_first * self.updates)
            told.append(f"until step {until:,} only pooler and head are trained")
        if self.settings.unfreeze == "by-schedule":
            until = round(self.settings.unfreeze_until * self.updates)
            told.append(f"layers are unfrozen from the top until step {until:,}")
        if self.settings.unfreeze == "by-diagnosis":
            told.append("layers are unfrozen from the top whenever the dev loss stands still")
        return "; ".join(told)

    def _part(self, name: str, place: str) -> bool:
        parts = self.settings.train_parts
        if parts == "all" or place in ("head", "pooler"):
            return True
        return place.startswith("layer.") and ".self_attn.out_proj." in name

    def _depth(self, place: str) -> bool:
        settings = self.settings
        if place == "head":
            return True
        if settings.train_only is not None:
            return place in settings.train_only
        if place == "embeddings":
            return not settings.freeze_embeddings and self.lowest == 0
        return _number(place) >= self.lowest if place.startswith("layer.") else True


def _number(place: str) -> int:
    return int(place.removeprefix("layer."))
