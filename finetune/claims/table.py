"""Rows → what they say of each claim, as the Markdown of docs/claims.md.

The verdict is a rule, not an opinion: seeds are pairs (the same rows and first weights in both arms), and a difference
counts where the 95% interval of its mean (Student's t over the seeds) leaves out zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from finetune.claims.arms import ARMS, SEEDS, TASKS

Row = dict[str, Any]
# Two-sided 95% quantiles of Student's t, by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
NOTHING = "–"


@dataclass(frozen=True)
class Comparison:
    """Two arms and a figure.

    Attributes:
        figure: of the two rows of a seed, theirs; None where a row has none.
        claimed: relative change of the second against the first, as a fraction; None where only a direction is claimed.
        up: whether the claim says that the figure grows.
    """

    what: str
    first: str
    second: str
    figure: Callable[[Row, Row], tuple[float, float] | None]
    claimed: float | None = None
    up: bool = True
    digits: int = 3


@dataclass(frozen=True)
class Claim:
    """A claim of the articles and how it is tried.

    Attributes:
        says: the claim.
        tried: what was done, in a sentence or two.
        comparisons: the first one decides the verdict.
        not_here: why it cannot be measured on a machine like this, in the place of comparisons.
    """

    name: str
    title: str
    says: str
    tried: str
    comparisons: tuple[Comparison, ...] = ()
    not_here: str = ""

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(arm for one in self.comparisons for arm in (one.second, one.first)))


def _key(name: str) -> Callable[[Row, Row], tuple[float, float] | None]:
    def figure(first: Row, second: Row) -> tuple[float, float] | None:
        a, b = first.get(name), second.get(name)
        return None if a is None or b is None else (float(a), float(b))

    return figure


def _steps_to(first: Row, second: Row) -> tuple[float, float] | None:
    """Steps until the dev loss is as low as both runs get at some time."""
    losses = [[(point[0], point[1]) for point in row["dev"] if point[1] is not None] for row in (first, second)]
    if not all(losses):
        return None
    target = max(min(loss for _, loss in own) for own in losses)
    found = [next(float(step) for step, loss in own if loss <= target) for own in losses]
    return found[0], found[1]


def _memory(first: Row, second: Row) -> tuple[float, float] | None:
    """Peak of memory beyond what the process held before the training, MiB."""
    found = _key("peak_mib")(first, second), _key("before_mib")(first, second)
    return None if found[0] is None or found[1] is None else (found[0][0] - found[1][0], found[0][1] - found[1][1])


SCORE = _key("score")


def _control(names: Iterable[str]) -> tuple[Comparison, ...]:
    return tuple(Comparison(f"`{name}`: test score", f"{name}-off", f"{name}-on", SCORE) for name in names)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "control-imperfect",
        "The controller on recipes that are wrong",
        "Watching the curve and intervening makes a model 17% better.",
        "Reviews with a rate 100 times too high, with 8 passes over 96 rows (overfitting; "
        "dropout, decay, "
        "label smoothing and early stopping may fire), and news with a rate 30 times too high; `[curve] control` "
        "off and on.",
        tuple(
            Comparison(c.what, c.first, c.second, c.figure, claimed=0.17)
            for c in _control(("reviews-rate-100x", "reviews-overfit", "news-rate-30x"))
        ),
    ),
    Claim(
        "control-shipped",
        "The controller on the shipped recipes",
        "Control is never worse than none.",
        "Each shipped recipe that needs no model hub, reduced; `[curve] control` off and on with its default "
        "strategies. "
        "Where nothing fired both are the same training, which is then made once.",
        _control(TASKS),
    ),
    Claim(
        "two-stage",
        "Two-stage freezing on few rows",
        "First the head, then all layers: 21% better with fewer than 1,000 rows.",
        "Reviews; all layers from the start, against the head by itself for 30% of the steps (`head_first = 0.3`).",
        (Comparison("test macro-F1", "few-full", "few-two-stage", SCORE, 0.21),),
    ),
    Claim(
        "cosine",
        "Cosine against a fixed rate",
        "25% faster convergence.",
        "Reviews; steps until the dev loss is as low as both runs get at some time, and the score at the end.",
        (
            Comparison(
                "steps to the same dev loss", "few-constant", "few-cosine", _steps_to, -0.25, up=False, digits=1
            ),
            Comparison("test macro-F1", "few-constant", "few-cosine", SCORE),
        ),
    ),
    Claim(
        "last-layers",
        "Training the last layers only",
        "40% less time and 60% less memory with the last two or three layers trained.",
        "News, 128 tokens, batches of 12; all of 4 layers and the embeddings, against the last two. Memory is "
        "the peak of "
        "the process beyond what it held before the training.",
        (
            Comparison("memory, MiB", "all-layers", "last-two", _memory, -0.60, up=False, digits=0),
            Comparison("tokens/s", "all-layers", "last-two", _key("tokens_s"), 1 / 0.6 - 1, digits=0),
        ),
    ),
    Claim(
        "recompute",
        "Recomputed activations",
        "Much less memory for some time (Chen et al. 2016: 30% more).",
        "Six steps of forward, backward and AdamW on one batch of 12 × 128 tokens, 4 layers.",
        (
            Comparison("memory, MiB", "no-recompute", "recompute", _memory, up=False, digits=0),
            Comparison("a step, ms", "no-recompute", "recompute", _key("step_ms"), 0.30, digits=0),
        ),
    ),
    Claim(
        "early-stopping",
        "Early stopping",
        "Saves time and loses nothing.",
        "Reviews, five passes; stopped after three evaluations without a better score, or not. Both keep the "
        "best checkpoint.",
        (
            Comparison("steps made", "few-long", "few-long-early", _key("steps"), up=False, digits=0),
            Comparison("test macro-F1", "few-long", "few-long-early", SCORE),
        ),
    ),
    Claim(
        "delay",
        "Delay compensation",
        "Late gradients with compensation let computing and communicating overlap by 91% in the place of 72%.",
        "The overlap needs several machines and was not measured. Measured is what late gradients cost and what the "
        "compensation (Zheng et al. 2017) gives back: reviews with gradients two updates late, without and with it.",
        (
            Comparison("test macro-F1", "few-late", "few-late-compensated", SCORE),
            Comparison("test macro-F1, late at all", "few", "few-late", SCORE, up=False),
        ),
    ),
    Claim(
        "clipping",
        "Gradient clipping",
        "A norm of 1 keeps training stable.",
        "Reviews with and without clipping, with the recipe's rate and ten times that.",
        (
            Comparison("test macro-F1, rate × 10", "few-10x-unclipped", "few-10x", SCORE),
            Comparison("test macro-F1", "few-unclipped", "few", SCORE),
        ),
    ),
    Claim(
        "xavier",
        "Xavier's first weights of the head",
        "Faster and better than small normal ones.",
        "Reviews; `head_init`, PaddleNLP's own against Xavier's.",
        (
            Comparison("steps to the same dev loss", "few", "few-xavier", _steps_to, up=False, digits=1),
            Comparison("test macro-F1", "few", "few-xavier", SCORE),
        ),
    ),
    Claim(
        "amp",
        "Mixed precision",
        "Twice as fast or more.",
        "`train.amp` is in recipes and needs a GPU.",
        not_here="not measured: no GPU was at hand, and Paddle has no half-precision kernels for training on this CPU.",
    ),
)


@dataclass(frozen=True)
class Measured:
    """A comparison's figures, one pair a seed."""

    comparison: Comparison
    pairs: tuple[tuple[float, float], ...]
    fired: int = 0

    @property
    def changes(self) -> list[float]:
        """Relative, by seed."""
        return [(b - a) / abs(a) if a else 0.0 for a, b in self.pairs]

    @property
    def differences(self) -> list[float]:
        return [b - a for a, b in self.pairs]

    def verdict(self) -> str:
        """What the rule says."""
        if not self.pairs:
            return "not run"
        if len(self.pairs) < 2:
            return "one seed: no verdict"
        if not any(self.differences):
            return "no difference at all"
        half = T95[min(len(self.pairs) - 1, max(T95))] * stdev(self.differences) / len(self.pairs) ** 0.5
        middle = mean(self.differences)
        if abs(middle) <= half:
            return "not told from noise"
        if (middle > 0) != self.comparison.up:
            return "**the reverse**"
        if self.comparison.claimed is None or abs(mean(self.changes)) >= abs(self.comparison.claimed):
            return "**holds**"
        return "**smaller than claimed**"


def measured(rows: Sequence[Row], comparison: Comparison) -> Measured:
    """The pairs of a comparison; rows whose recipe has changed since do not count."""
    known = {
        (r["arm"], r["seed"]): r for r in rows if r["arm"] in ARMS and r["sha256"] == ARMS[r["arm"]].checksum(r["seed"])
    }
    pairs, fired = [], 0
    for seed in sorted({seed for _, seed in known}):
        first, second = (known.get((name, seed)) for name in (comparison.first, comparison.second))
        if first is None or second is None:
            continue
        found = comparison.figure(first, second)
        if found is not None:
            pairs.append(found)
            fired += bool(second.get("events"))
    return Measured(comparison, tuple(pairs), fired)


def render(rows: Sequence[Row]) -> str:
    """The tables of docs/claims.md."""
    found = {claim.name: [measured(rows, one) for one in claim.comparisons] for claim in CLAIMS}
    lines = ["| claim | measured | verdict |", "| --- | --- | --- |"]
    for claim in CLAIMS:
        first = found[claim.name][0] if claim.comparisons else None
        if first is None:
            lines.append(f"| [{claim.title}](#{claim.name}): {claim.says} | – | {claim.not_here} |")
        elif claim.name.startswith("control"):
            lines.append(f"| [{claim.title}](#{claim.name}): {claim.says} | {_together(found[claim.name])} |")
        else:
            lines.append(f"| [{claim.title}](#{claim.name}): {claim.says} | {_change(first)} | {first.verdict()} |")
    parts = ["\n".join(lines)]
    for claim in CLAIMS:
        if claim.comparisons:
            parts.append(_details(claim, found[claim.name]))
    return "\n\n".join(parts) + "\n\n" + _origin(rows)


def _details(claim: Claim, found: Sequence[Measured]) -> str:
    control = claim.name.startswith("control")
    head = [
        "figure",
        "without" if control else "first",
        "with" if control else "second",
        "change",
        "claimed",
        "seeds",
        "verdict",
    ]
    lines = [
        f'<a id="{claim.name}"></a>\n\n### {claim.title}\n\n*{claim.says}* {claim.tried}',
        "| "
        + " | ".join([*head, *(["fired"] if control else [])])
        + " |\n| --- |"
        + " ---: |" * (len(head) - 1 + control),
    ]
    rows = []
    for one in found:
        digits = one.comparison.digits
        cells = [
            one.comparison.what
            if control
            else f"{one.comparison.what}: `{one.comparison.first}` → `{one.comparison.second}`",
            _spread([a for a, _ in one.pairs], digits),
            _spread([b for _, b in one.pairs], digits),
            _change(one),
            NOTHING if one.comparison.claimed is None else f"{one.comparison.claimed:+.0%}",
            str(len(one.pairs)),
            one.verdict(),
            *([f"{one.fired} of {len(one.pairs)}"] if control else []),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n\n".join(lines) + "\n" + "\n".join(rows)


def _together(found: Sequence[Measured]) -> str:
    """Over all tasks of a control claim: the mean change and whether any is worse beyond noise."""
    known = [one for one in found if one.pairs]
    if not known:
        return f"{NOTHING} | not run"
    changes = [mean(one.changes) for one in known]
    worse = [one.comparison.what.split("`")[1] for one in known if one.verdict() == "**the reverse**"]
    seeds = min(len(one.pairs) for one in known)
    what = f"{mean(changes):+.1%} on average over {len(known)} of {len(found)} tasks, from {seeds} seed(s) each"
    if not any(one.fired for one in known):
        made = sum(len(one.pairs) for one in known)
        return f"{what} | fired in none of {made} trainings, which are therefore the same ones without it"
    if worse:
        return f"{what} | worse beyond noise: {', '.join(worse)}"
    return f"{what} | {'nowhere worse beyond noise' if seeds > 1 else 'too few seeds for a verdict'}"


def _change(one: Measured) -> str:
    if not one.pairs:
        return NOTHING
    spread = f" ± {stdev(one.changes):.1%}" if len(one.pairs) > 1 else ""
    return f"{mean(one.changes):+.1%}{spread}"


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return NOTHING
    return f"{mean(values):,.{digits}f}" + (f" ± {stdev(values):,.{digits}f}" if len(values) > 1 else "")


def _origin(rows: Sequence[Row]) -> str:
    wanted = len({(name, seed) for claim in CLAIMS for name in claim.arms for seed in SEEDS})
    if not rows:
        return f"Nothing was run yet: `make claims` trains {wanted} small models."
    loads = [row["load"] for row in rows]
    machines = "; ".join(sorted({row["machine"] for row in rows}))
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    return (
        f"± is the standard deviation over seeds. {len(rows)} of {wanted} trainings were run, by `make claims`, "
        f"{min(row['created'] for row in rows)[:10]}, commit {commits}, {machines}, busy with other work (load "
        f"{min(loads):.0f} to {max(loads):.0f})."
    )
