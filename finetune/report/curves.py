"""Pictures of a training over its steps: losses and score, several runs over each other, layers, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.report.drawing import SERIES, Figure, Palette
from finetune.report.source import Json, Run


def curves(run: Run) -> Figure:
    """Losses, score and rate over the steps; findings as bars below, interventions as lines through all."""
    spells, events = run.spells, run.events
    names = list(dict.fromkeys(spell.finding.name for spell in spells))
    bars = max(1, len(names))

    def draw(figure: Any, palette: Palette) -> None:
        ratios = [3.0, 2.0, 1.0, 0.3 * bars + 0.15]
        losses, score, rate, found = figure.subplots(4, 1, sharex=True, height_ratios=ratios)
        train = [(p["step"], p["loss"]) for p in run.history.of("train") if p["loss"] is not None]
        dev = [(p["step"], p["loss"]) for p in run.dev if p["loss"] is not None]
        if train:
            steps, values = zip(*train, strict=True)
            losses.plot(steps, values, color=palette.series[0], alpha=0.35, linewidth=1)
            losses.plot(steps, _smooth(values), color=palette.series[0], linewidth=1.8, label="train (smoothed)")
        if dev:
            losses.plot(*zip(*dev, strict=True), "o-", color=palette.series[1], linewidth=1.8, label="dev")
        losses.axhline(
            run.history.run["dev_chance"], color=palette.ink, linestyle=":", linewidth=1, label="chance, dev"
        )
        losses.set_title("loss")
        losses.legend(loc="upper right", ncols=3)
        known = [(p["step"], p["scores"][run.metric]) for p in run.dev if p["scores"].get(run.metric) is not None]
        if known:
            score.plot(*zip(*known, strict=True), "o-", color=palette.series[2], linewidth=1.8)
            best = max(known, key=lambda point: point[1])
            score.plot(*best, "*", color=palette.series[2], markersize=15)
            score.annotate(f"{best[1]:.3f}", best, textcoords="offset points", xytext=(8, -12))
        score.set_title(f"dev {run.metric.replace('_', ' ')} (star: the checkpoint that was kept)")
        rates = [(p["step"], p["rate"]) for p in run.history.of("train") if p.get("rate") is not None]
        if rates:
            rate.plot(*zip(*rates, strict=True), color=palette.series[3], linewidth=1.8)
        rate.set_title("learning rate of the encoder")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        end = max(run.history.step, 1)
        for spell in spells:
            last = end if spell.last is None else spell.last
            place = names.index(spell.finding.name)
            found.barh(place, max(last - spell.first, end / 200), left=spell.first, height=0.6, color=palette.series[4])
        found.set_yticks(range(bars), names or ["none"])
        found.set_ylim(bars - 0.4, -0.6)
        found.set_title("findings: what was wrong, from when to when")
        for axes in (losses, score, rate):
            axes.grid(True)
        mark_events(figure.axes, events, palette.ink)
        found.set_xlabel("step")
        found.set_xlim(0, end * 1.01)

    height = 6.4 + 0.3 * bars
    return Figure(
        "curves",
        "The training",
        (10, height),
        draw,
        "Losses of train and dev, the dev score by which the checkpoint was chosen, and the rate, by step. Below: what "
        "the diagnosis found, and when. A dashed vertical line with a number is an intervention of the controller.",
        "Both losses should fall well below the dotted line, the loss of a model that only knows how frequent "
        "each label "
        "is. Dev rising while train falls is overfitting; both flat near the line is underfitting.",
    )


def mark_events(axes: Sequence[Any], events: Sequence[Json], colour: str) -> None:
    """A numbered line through all axes at each intervention; those of a dry run are dotted."""
    for number, event in enumerate(events, 1):
        for one in axes:
            one.axvline(event["step"], color=colour, linestyle=":" if event.get("dry_run") else "--", linewidth=1)
        axes[0].annotate(
            str(number), (event["step"], 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", color=colour
        )


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean over a twentieth of the run, in the middle of it."""
    width = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, n - width) : n + width + 1])) for n in range(len(values))]


def overlay(runs: Sequence[Run], names: Sequence[str]) -> Figure:
    """Several runs in one picture."""

    def draw(figure: Any, palette: Palette) -> None:
        losses, score = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        for number, (run, name) in enumerate(zip(runs, names, strict=True)):
            colour = palette.series[number % SERIES]
            style = "-" if number < SERIES else "--"
            train = [(p["step"], p["loss"]) for p in run.history.of("train") if p["loss"] is not None]
            if train:
                steps, values = zip(*train, strict=True)
                losses.plot(steps, _smooth(values), style, color=colour, linewidth=1, alpha=0.6)
            dev = [(p["step"], p["loss"]) for p in run.dev if p["loss"] is not None]
            if dev:
                losses.plot(*zip(*dev, strict=True), "o" + style, color=colour, linewidth=1.8, label=name)
            known = [(p["step"], p["scores"][run.metric]) for p in run.dev if p["scores"].get(run.metric) is not None]
            if known:
                score.plot(*zip(*known, strict=True), "o" + style, color=colour, linewidth=1.8, label=name)
        losses.set_title("loss: dots dev, thin line train (smoothed)")
        metrics = sorted({run.metric.replace("_", " ") for run in runs})
        score.set_title(f"dev {' / '.join(metrics)}")
        score.set_xlabel("step")
        for axes in (losses, score):
            axes.grid(True)
        losses.legend(loc="upper right")

    return Figure(
        "overlay",
        "The runs beside each other",
        (10, 6.2),
        draw,
        "Losses and dev scores of all runs by step, one colour each.",
        "Which run falls fastest, which ends best, and whether one that is ahead early stays ahead. Scores of "
        "different "
        "dev rows or of different metrics do not compare.",
    )


def layers(run: Run) -> Figure | None:
    """Gradient norms and update ratios by layer and step; None without level 2."""
    looks = [point for point in run.history.of("train") if "grad" in point]
    if not looks:
        return None
    names = run.history.run["layers"]

    def draw(figure: Any, palette: Palette) -> None:
        pair = figure.subplots(2, 1, sharex=True)
        for axes, key, title in (
            (pair[0], "grad", "norm of the gradient, log10"),
            (pair[1], "update", "size of an update over the size of the weights, log10"),
        ):
            steps = [look["step"] for look in looks]
            none = [None] * len(names)
            # Nothing moves in the first update of a warm-up: no colour, or it would take up the whole range.
            values = np.array([[one or np.nan for one in look.get(key, none)] for look in looks], dtype=float)
            _heat(figure, axes, steps, np.log10(values.T), names)
            axes.set_title(title)
        pair[1].set_xlabel("step")

    return Figure(
        "layers",
        "Layers",
        (10, 1.8 + 0.5 * len(names)),
        draw,
        "A row is a layer, from the embeddings at the bottom to the head at the top; a column is a look at them. Grey "
        "rows are frozen.",
        "Gradients of all trained layers within two or three orders of magnitude, and updates of about -3 (a "
        "thousandth of the weights a step) that fade with the rate. A dark row learns nothing; a bright flash is "
        "a step "
        "that threw away what was there.",
    )


def _heat(figure: Any, axes: Any, steps: Sequence[int], values: Any, names: Sequence[str], **more: Any) -> None:
    """A heat map (names, steps); columns reach halfway to their neighbours."""
    middle = np.array(steps, dtype=float)
    gaps = np.diff(middle) / 2 if len(middle) > 1 else np.array([0.5])
    edges = np.concatenate([[middle[0] - gaps[0]], middle[:-1] + gaps[: len(middle) - 1], [middle[-1] + gaps[-1]]])
    axes.set_facecolor("#8080804d")
    mesh = axes.pcolormesh(edges, np.arange(len(names) + 1), values, cmap="viridis", **more)
    mesh.set_edgecolor("face")  # without it a browser draws a hairline between two cells
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=12)
    bar.solids.set_rasterized(False)
    bar.outline.set_visible(False)


def attention(run: Run) -> Figure | None:
    """Attention entropy by layer and step, and by head at the end; None without level 3."""
    looks = run.history.of("deep")
    if not looks:
        return None
    heads = np.array(looks[-1]["attention"], dtype=float)  # (layers, heads)
    names = [f"layer {number}" for number in range(len(heads))]

    def draw(figure: Any, palette: Palette) -> None:
        grid = figure.add_gridspec(2, 2, width_ratios=[2, 1], height_ratios=[1.5, 1])
        over, last, cosine = (figure.add_subplot(grid[place]) for place in ((0, 0), (0, 1), (1, 0)))
        steps = [look["step"] for look in looks]
        values = np.array([[np.mean(own) for own in look["attention"]] for look in looks], dtype=float)
        _heat(figure, over, steps, values.T, names, vmin=0, vmax=1)
        over.set_title("attention entropy, mean of the heads")
        _heat(figure, last, list(range(heads.shape[1])), heads, names, vmin=0, vmax=1)
        last.set_title("by head, at the end")
        last.set_xlabel("head")
        points = [(look["step"], look["cosine"]) for look in looks if look["cosine"] is not None]
        if points:
            cosine.plot(*zip(*points, strict=True), "o-", color=palette.series[0])
        cosine.set_ylim(0, 1.05)
        cosine.grid(True)
        cosine.set_title("mean cosine between two examples ([CLS] of the last layer)")
        cosine.set_xlabel("step")

    return Figure(
        "attention",
        "Attention",
        (10, 2.6 + 0.5 * len(names)),
        draw,
        "How evenly attention is spread, on some dev rows: 0 is one token, 1 is all tokens alike. Beside it "
        "every head at "
        "the end; below, how alike the model holds two different texts to be.",
        "Some spread between heads is healthy. A layer near 1 throughout looks at nothing in particular; one "
        "that drops "
        "to 0 sees a single token, often [CLS] or [SEP]. A cosine near 1 means that all texts look the same to "
        "the model.",
    )
