"""What is wrong with a training, told from its record alone.

Each detector is a pure function of the history and the thresholds: the same record always gets the same diagnosis,
while the run goes on, after it was resumed, and later by ``python -m finetune diagnose``. A detector looks at what
happened since the last rollback, since nothing before it is left in the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.curve.record import History, Point
from finetune.curve.settings import Thresholds


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        name: one of `FINDINGS`.
        step: when it was found.
        evidence: the numbers it rests on.
        sentence: what it means and what usually helps.
    """

    name: str
    step: int
    sentence: str
    evidence: dict[str, Any] = field(default_factory=dict)


# After a rate was lowered: how many updates tell whether it is low enough, and the multiple of chance above which their
# mean loss says that it is not. Rates that are learned from had at most 1.17 there, ten times such a rate on m3e-small
# 1.22 to 1.91 (docs/decisions/0007-curve.md).
TELLING, THROWN_ABOUT = 20, 1.2

Detector = Callable[["View", Thresholds], tuple[str, dict[str, Any]] | None]


class View:
    """A history since its last rollback, with what most detectors ask for."""

    def __init__(self, history: History) -> None:
        run = history.run
        rollbacks = [
            place
            for place, point in enumerate(history.points)
            if point["kind"] == "event" and "rollback" in point and not point.get("dry_run")
        ]
        before = history.points[: rollbacks[-1]] if rollbacks else []
        points = history.points[len(before) + 1 :] if rollbacks else history.points
        # The step of the last rollback, if it was for a rate that was too high.
        last = history.points[rollbacks[-1]] if rollbacks else {}
        self.lowered = int(last["step"]) if last.get("finding") in ("rate-too-high", "not-finite") else None
        self.first = next((point["loss"] for point in history.points if point["kind"] == "train"), None)
        self.run, self.step = run, history.step
        self.begun = history.begun
        self.progress = (history.step - self.begun) / max(1, run["steps"])
        self.train = [point for point in points if point["kind"] == "train"]
        self.dev = [point for point in points if point["kind"] == "dev"]
        self.looks = [point for point in self.train if "grad" in point]
        self.inside = [point for point in points if point["kind"] == "deep"]
        gone = next((point["travel"] for point in reversed(before) if point["kind"] == "train"), 0.0)
        # How far the weights can have come, as a share of their size.
        self.travel = (self.train[-1]["travel"] - gone) / run["rms"] if self.train else 0.0
        self.chance, self.dev_chance = float(run["chance"]), float(run["dev_chance"])
        self.majority = float(run["majority"])

    def loss(self, share: float = 0.25, skip: float = 0.0) -> float | None:
        """Mean train loss of the newest share of the points, after leaving out the very newest ``skip``."""
        end = round(len(self.train) * (1 - skip))
        values = [p["loss"] for p in self.train[: end or None][-max(1, round(len(self.train) * share)) :]]
        return None if not values or None in values else float(np.mean(values))

    def last_dev(self, count: int) -> list[Point]:
        """The last evaluations, or none if there are fewer."""
        return self.dev[-count:] if len(self.dev) >= count else []

    def trained_layers(self) -> list[int]:
        return [place for place, trained in enumerate(self.run["trained"]) if trained]

    def learned(self, before: int) -> bool:
        """Whether an evaluation had half of the rows right that the most common answer gets wrong.

        Args:
            before: how many of the last evaluations do not count.
        """
        return any(point["right"] >= (1 + self.majority) / 2 for point in self.dev[:-before])


def not_finite(view: View, _: Thresholds) -> tuple[str, dict[str, Any]] | None:
    recent = [point for point in view.train[-3:] if point.get("bad")]
    if not recent:
        return None
    return (
        "the loss or a gradient is not a number; a rate too high, no clipping or a broken row usually does this",
        {"batches": sum(point["bad"] for point in recent), "since": recent[0]["step"]},
    )


def rate_too_high(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    """The symptoms are a dev loss above chance, or one that was learned and is lost; a step that replaces the weights
    within some tens of updates is the cause, and makes fewer symptoms enough."""
    advice = "the learning rate is too high: a tenth of it usually learns"
    last = view.last_dev(limits.patience)
    unlearned = limits.unlearned * view.chance
    lost = all(point["train_loss"] is None or point["train_loss"] > unlearned for point in last)
    if last and lost and all((point["loss"] or np.inf) > limits.rise * view.dev_chance for point in last):
        return (
            f"the dev loss is above that of a model which only knows how frequent each label is; {advice}",
            {"dev_loss": [point["loss"] for point in last], "chance": view.dev_chance},
        )
    earlier = [point["loss"] for point in view.dev[: -limits.patience] if point["loss"] is not None]
    if last and lost and earlier and min(earlier) < limits.unlearned * view.dev_chance:
        bar = max(limits.rise * min(earlier), limits.unlearned * view.dev_chance)
        if all((point["loss"] or np.inf) > bar for point in last):
            return (
                f"what was learned is lost again, on train and on dev; {advice}",
                {"dev_loss": [point["loss"] for point in last], "best_dev_loss": min(earlier)},
            )
    violent = []
    for point in reversed(view.train):
        if point["rate"] / view.run["rms"] <= limits.step:
            break
        violent.append(point)
    updates = violent[0]["step"] - violent[-1]["step"] + 1 if violent else 0
    losses = [point["loss"] for point in violent[: max(3, len(violent) // 2)]]
    if updates >= 8 and len(losses) >= 3 and (None in losses or float(np.mean(losses)) > 0.95 * view.chance):
        return (
            f"one update moves the weights by up to {violent[0]['rate'] / view.run['rms']:.0%} of their size and the "
            f"train loss is no better than chance; {advice}",
            {"step_share": violent[0]["rate"] / view.run["rms"], "train_loss": _mean(losses), "chance": view.chance},
        )
    if still := _still_too_high(view, limits):
        symptom, evidence = still
        return f"the rate was lowered at step {view.lowered:,}, and since then {symptom}; {advice}", evidence
    return None


def _still_too_high(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    """A rate that was lowered once and is still too high: how that shows, if it does.

    A pretrained encoder is lost at steps that a new, small one learns from, so the size of a step tells nothing here.
    But no model need be worse than one that only knows how frequent each label is, nor than it began, unless its own
    steps throw it about. Where labels are many or rare, a healthy model begins far above chance and comes down slowly.
    What is left of an encoder once it was thrown about gives every text the same answer, at the loss of chance.
    """
    if view.lowered is None or view.step < view.lowered + TELLING:
        return None
    if any(point["loss"] is not None and point["loss"] < (1 - limits.flat) * view.dev_chance for point in view.dev):
        return None
    # The first point is the loss of what the run went back to.
    since = view.train[1:]
    told = [point for point in since if point["step"] > view.step - TELLING]
    told = since[-3:] if len(told) < 3 else told
    if len(told) < 3:
        return None
    loss = _mean([point["loss"] for point in told])
    evidence = {"train_loss": loss, "chance": view.chance, "first_loss": view.first}
    begun = view.first if view.first is not None and view.first > THROWN_ABOUT * view.chance else view.chance
    if loss is None or loss > THROWN_ABOUT * begun:
        return "the train loss is above that of a model which only knows how frequent each label is", evidence
    alike = [point["top_answer"] for point in view.dev]
    # Several labels, none or the usual one may be answered everywhere for long by a model that learns.
    chooses = view.run.get("task") in ("single-label", "text-pair") and view.run["train_majority"] < 0.7
    long = view.step >= view.lowered + 2 * TELLING and len(alike) >= limits.patience
    if chooses and long and min(alike) >= limits.majority and loss > limits.unlearned * view.chance:
        return "every row gets the same answer, at the loss of chance", evidence | {"top_answer": alike[-1]}
    return None


def rate_too_low(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    loss = view.loss()
    if view.progress < 0.4 or loss is None or loss < limits.unlearned * view.chance or view.travel > limits.travel:
        return None
    return (
        "the learning rate is too low: added up over the run so far it cannot have moved the weights, and the train "
        "loss is still near chance; ten times the rate is worth a try",
        {"travel": view.travel, "train_loss": loss, "chance": view.chance},
    )


def stagnation(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    now, before = view.loss(0.25), view.loss(0.25, skip=0.5)
    if view.progress < 0.5 or now is None or before is None or now < limits.unlearned * view.chance:
        return None
    # Dropout may hold the train loss above chance; a fall up there is nothing learned.
    falls = now < view.chance and before - now > limits.flat * view.chance
    if falls or rate_too_low(view, limits) or rate_too_high(view, limits):
        return None
    evidence = {"train_loss": now, "before": before, "chance": view.chance}
    if view.inside:
        evidence["cosine"] = view.inside[-1]["cosine"]
    return (
        "the model underfits: its train loss stands still near chance; less dropout, fewer frozen layers, a larger "
        "base or cleaner labels may help",
        evidence,
    )


def overfitting(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    last = view.last_dev(limits.rises + 1)[1:]
    earlier = [point for point in view.dev[: -limits.rises] if point["loss"] is not None]
    if not last or not earlier or any(point["loss"] is None or point["gap"] is None for point in last):
        return None
    best = min(earlier, key=lambda point: float(point["loss"]))
    margin = 0.05 * view.dev_chance
    rises = all(point["loss"] > best["loss"] + margin for point in last)
    if not rises or last[-1]["gap"] <= limits.gap or last[-1]["train_loss"] > best["train_loss"] + margin:
        return None
    return (
        f"the model overfits: dev was best at step {best['step']:,}, and since then train goes on falling while dev "
        "does not; fewer passes, more rows, dropout or weight decay may help",
        {
            "best_dev_loss": best["loss"],
            "dev_loss": [point["loss"] for point in last],
            "train_loss": last[-1]["train_loss"],
            "gap": last[-1]["gap"],
        },
    )


def oscillation(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    last = view.last_dev(6)
    losses = np.array([np.nan if point["loss"] is None else point["loss"] for point in last])
    if not last or np.isnan(losses).any() or losses.mean() < 0.1 * view.dev_chance:
        return None
    swings = np.diff(losses)
    turns = int((np.sign(swings[1:]) != np.sign(swings[:-1])).sum())
    size = float(np.median(np.abs(swings)) / losses.mean())
    trend = abs(float(losses[3:].mean() - losses[:3].mean()))
    if turns < 3 or size < limits.swing or trend > np.median(np.abs(swings)):
        return None
    return (
        "the dev loss swings up and down and gets nowhere; a lower rate, a larger batch or a decaying schedule helps",
        {"dev_loss": losses.tolist(), "swing": size, "turns": turns},
    )


def vanishing_gradient(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    looks, loss = view.looks[-limits.patience :], view.loss()
    # A layer that is not trained yet has no gradient, and that is no finding.
    layers = [
        place
        for place in view.trained_layers()
        if view.run["layers"][place].startswith("layer") and all(look["grad_spread"][place] for look in looks)
    ]
    if len(looks) < limits.patience or not layers or loss is None or loss < 0.1 * view.chance:
        return None
    largest = max((look["grad"][place] or 0.0) for look in looks for place in layers)
    if largest >= limits.vanishing:
        return None
    return (
        "no gradient reaches the encoder, though there is something left to learn: a layer above it is saturated, "
        "often by a rate that was too high",
        {"largest_norm": largest, "train_loss": loss},
    )


def exploding_gradient(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    bar = limits.exploding * (view.run["clip"] or 1.0)
    wild = [look for look in view.looks[-3:] if look["norm"] is None or look["norm"] > bar]
    if not wild:
        return None
    return (
        f"the gradient explodes: its norm is above {bar:g}; clip it, lower the rate or look at the batch",
        {"norm": wild[-1]["norm"], "step": wild[-1]["step"]},
    )


def dead_layer(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    looks, trained = view.looks[-limits.patience :], view.trained_layers()
    if len(looks) < limits.patience or len(trained) < 3:
        return None
    dead = set(trained)
    for look in looks:
        largest = {place: look["grad_spread"][place][2] for place in trained if look["grad_spread"][place]}
        if not largest or None in largest.values():
            return None
        middle = float(np.median(list(largest.values())))
        dead &= {place for place, value in largest.items() if value < limits.dead * middle}
    # With most of the layers still, it is the gradient that vanishes and not a layer that died.
    if not dead or len(dead) * 2 >= len(trained):
        return None
    names = [view.run["layers"][place] for place in sorted(dead)]
    return (
        f"{' and '.join(names)} learns nothing: its weights get no gradient while those of other layers do; its "
        "activations are saturated, or the base weights are broken",
        {"layers": names},
    )


def imbalance_collapse(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    last = view.last_dev(limits.patience)
    lopsided = view.run["train_majority"] >= 0.7 and view.majority < limits.majority
    if not last or view.progress < 0.3 or not lopsided or any(p["top_answer"] < limits.majority for p in last):
        return None
    return (
        "every row gets the most frequent label; train.class_balance between 0.5 and 1, or more rows of the others, "
        "may help",
        {"top_answer": last[-1]["top_answer"], "share_in_train": view.run["train_majority"]},
    )


def label_noise(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    known = [p for p in view.dev if p.get("suspects") is not None and p["loss"] is not None and p["train_loss"]]
    if view.progress < 0.6 or len(known) < 2:
        return None
    later = [point for point in known if point["step"] - view.begun >= 0.3 * view.run["steps"]]
    best = min(later or known, key=lambda point: float(point["loss"]))
    above = max(point["right"] for point in known) - view.majority
    if above >= 0.1 * (1 - view.majority) and best["suspects"] >= limits.suspects:
        return (
            f"labels may be wrong: of the rows of train, {best['suspects']:.0%} look confidently like another label "
            "than their own; look at the rows named in the record",
            {"suspects": best["suspects"], "rows": best["suspicious"], "at": best["step"]},
        )
    if above < 0.1 * (1 - view.majority) and known[-1]["train_loss"] < 0.5 * view.chance:
        return (
            "labels may be wrong, or dev is unlike train: train is learned by heart and dev is answered no better than "
            "by the most frequent label",
            {"train_loss": known[-1]["train_loss"], "right_above_majority": above},
        )
    return None


def forgetting(view: View, limits: Thresholds) -> tuple[str, dict[str, Any]] | None:
    last = view.last_dev(limits.patience)
    # What a model that only knows the most common label has right is nothing that it could forget.
    if (
        not last
        or not view.learned(before=limits.patience)
        or any(point.get("forgotten", 0) < limits.forgotten for point in last)
    ):
        return None
    best = max(point["right"] for point in view.dev)
    return (
        "the model forgets: it answers wrong what it had right before; a lower rate, fewer trained layers or the best "
        "checkpoint may help",
        {"forgotten": [point["forgotten"] for point in last], "right": last[-1]["right"], "best_right": best},
    )


FINDINGS: dict[str, Detector] = {
    "not-finite": not_finite,
    "exploding-gradient": exploding_gradient,
    "vanishing-gradient": vanishing_gradient,
    "dead-layer": dead_layer,
    "rate-too-high": rate_too_high,
    "rate-too-low": rate_too_low,
    "oscillation": oscillation,
    "forgetting": forgetting,
    "imbalance-collapse": imbalance_collapse,
    "label-noise": label_noise,
    "overfitting": overfitting,
    "stagnation": stagnation,
}


def diagnose(history: History, limits: Thresholds | None = None) -> list[Finding]:
    """What is wrong at the end of a history, gravest first.

    Args:
        limits: other thresholds than those the run was recorded with.
    """
    if limits is None:
        limits = Thresholds.model_validate(history.run.get("thresholds", {}))
    view = View(history)
    found = []
    for name, detector in FINDINGS.items():
        result = detector(view, limits)
        if result is not None:
            found.append(Finding(name, history.step, *result))
    return found


@dataclass(frozen=True)
class Spell:
    """A finding with its first and last step; ``last`` is None if the run ended with it."""

    finding: Finding
    first: int
    last: int | None


def timeline(history: History, limits: Thresholds | None = None) -> list[Spell]:
    """What was wrong when: the diagnosis after each point, joined to spells."""
    spells: list[Spell] = []
    current: dict[str, Spell] = {}
    steps = sorted({point["step"] for point in history.points if point["kind"] in ("train", "dev")})
    for step in steps:
        found = {finding.name: finding for finding in diagnose(history.until(step), limits)}
        for name in [name for name in current if name not in found]:
            spell = current.pop(name)
            spells.append(Spell(spell.finding, spell.first, step))
        for name, finding in found.items():
            first = current[name].first if name in current else step
            current[name] = Spell(finding, first, None)
    return sorted([*spells, *current.values()], key=lambda spell: spell.first)


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else float(np.mean([value for value in values if value is not None]))
