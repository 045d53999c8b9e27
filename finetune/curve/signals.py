"""What is measured of a running training: losses and scores, gradients by layer, and the model's inside.

Nothing here changes a weight or draws a random number: a watched training ends with the weights of an unwatched one.
Paddle is imported where it is used, so that a record can be read without it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.decode import sigmoid, softmax
from bundle.encode import pad
from bundle.manifest import Joining, Task
from bundle.predict import Predicted, answers_of, encode_rows, gold_of, judged, readable
from bundle.rows import Row
from finetune.batches import Item
from finetune.curve.record import NAME, Point, Record
from finetune.freezing import Freezer
from finetune.losses import class_weights
from finetune.model.layers import by_layer
from finetune.parallel import share
from finetune.prepare import Prepared
from finetune.targets import class_target, tag_target

Array = npt.NDArray[Any]
STATE = "curve.npz"
# Suspicious rows that are named in an evaluation's line.
NAMED = 10


class Signals:
    """Measures one training and records it.

    The trainer calls, in the order of a step: `seen` for each batch, `gradients` before the optimizer and `updated`
    after it, `stepped`; and `evaluated` after an evaluation.

    Args:
        batches: the plan, by which a batch's rows are known.
        run: the run folder.
        freezer: knows which layers are trained later; by default those that are trained now.
    """

    def __init__(
        self, prepared: Prepared, batches: list[list[Item]], run: Path, freezer: Freezer | None = None
    ) -> None:
        self.settings, self.task = prepared.recipe.curve, prepared.task
        self.prepared, self.batches, self.freezer = prepared, batches, freezer
        train = prepared.recipe.train
        self.clip, self.batch, self.accumulate = train.clip, train.batch, train.accumulate
        self.steps = max(1, len(batches) // train.accumulate)
        self.every = self.settings.every or max(1, self.steps // 100)
        self.record = Record(run / NAME)
        self.layers: dict[str, list[Any]] = {}
        # Since the last point:
        self.losses: list[float] = []
        self.bad = 0
        self.clipped: list[bool] = []
        # Since the last evaluation:
        self.since: list[float] = []
        self.window: deque[float] = deque(maxlen=self.settings.window)
        self.noise: list[float] = [0.0, 0.0]
        self.rate = self.travel = 0.0
        self.number = 0  # of the next batch in the plan
        self.best_right: Array | None = None
        weights = class_weights(prepared.train, prepared)
        self.weights = None if weights is None else np.array(weights)
        self.targets: Array | None = None
        self.believed: Array | None = None
        if self.task.classifies and self.task.kind != "multi-label":
            found = [class_target(row, self.task) for row in prepared.lessons]
            self.targets = np.array([-1 if one is None else one for one in found])
            self.believed = np.full((len(found), len(self.task.labels)), np.nan)
        self._held: dict[str, Any] | None = None
        self._weights: dict[str, Any] | None = None
        self._look: Point = {}

    # The trainer's calls

    def begin(self, model: Any, step: int) -> None:
        """Before the first step, or the first of a resumed run."""
        self.layers = by_layer(model)
        self.number = step * self.accumulate
        self.started, self.first_step = time.monotonic(), step
        self.tokens = 0
        ever = {id(parameter) for parameter in self._ever_trained(model)}
        weights = [p for parameters in self.layers.values() for p in parameters if id(p) in ever and p.ndim > 1]
        chance, dev_chance = chance_losses(self.prepared)
        self.record.begin(
            {
                "name": self.prepared.recipe.name,
                "task": self.task.kind,
                "steps": self.steps,
                "batch": self.batch * self.accumulate,
                "level": self.settings.level,
                "metric": self.prepared.recipe.metric,
                "labels": len(self.task.token_labels or self.task.labels),
                "chance": chance,
                "dev_chance": dev_chance,
                "majority": most_common(gold_answers(self.prepared.dev_watch, self.task)),
                "train_majority": most_common(gold_answers(self.prepared.train, self.task)),
                "clip": self.clip,
                # The median, since one odd matrix should not speak for all.
                "rms": float(np.median([(square(p) / p.size) ** 0.5 for p in weights])),
                "layers": list(self.layers),
                "trained": [any(id(p) in ever for p in own) for own in self.layers.values()],
                "thresholds": self.settings.thresholds.model_dump(),
            },
            step,
        )

    def seen(self, loss: float, inputs: Any, outputs: Any) -> None:
        """After a batch's forward pass.

        Args:
            loss: of the batch.
            inputs: what `finetune.train` collates.
            outputs: the model's, in the order of the signature.
        """
        items = share(self.batches[self.number % len(self.batches)])
        self.number += 1
        self.tokens += int(np.prod(inputs["input_ids"].shape))
        if not np.isfinite(loss):
            self.bad += 1
            return
        if self.task.kind == "token-classification":
            # Paddle's mean counts what is ignored; without it the loss is comparable with that of dev.
            tags = inputs["token_labels"].numpy()
            loss *= tags.size / max(1, int((tags >= 0).sum()))
        told = self._of_telling_windows(loss, inputs, outputs)
        if told is not None:
            self.losses.append(told)
            self.since.append(told)
            self.window.append(told)
        if self.believed is not None:
            # A window that tells nothing of its row's label says nothing about that label either.
            tells = inputs["labels"].numpy() >= 0
            rows = np.array([row for row, _ in items])[tells]
            found = softmax(outputs[0].astype("float32").numpy())[tells]
            # The newest pass counts half, so that what the model believed before it learned anything fades.
            old = self.believed[rows]
            self.believed[rows] = np.where(np.isnan(old), found, (old + found) / 2)

    def gradients(self, step: int, scale: float = 1.0) -> None:
        """Before the optimizer: norms by layer; a gradient is held to be compared with the next one.

        Args:
            step: updates made so far.
            scale: of the loss, under AMP.
        """
        if self.settings.level == 1:
            return
        deep = self.settings.level == 3 and step % self.settings.deep_every == 0
        due = deep or step % self.settings.layers_every == 0
        if self._held is None and not due:
            return
        grads = {
            layer: [(p, p.grad) for p in parameters if not p.stop_gradient and p.grad is not None]
            for layer, parameters in self.layers.items()
        }
        if self._held is not None:
            self._compare(grads, scale)
        if not due:
            return
        squares = {layer: [(p.ndim, square(g) / scale**2) for p, g in own] for layer, own in grads.items()}
        norms = {layer: sum(value for _, value in own) ** 0.5 for layer, own in squares.items()}
        # Paddle clips each parameter group on its own: the new head by itself, the encoder by itself.
        groups = [sum(norms[layer] ** 2 for layer in norms if _is_head(layer) == head) ** 0.5 for head in (False, True)]
        if self.clip:
            self.clipped.append(any(norm > self.clip for norm in groups))
        self._look = {
            "grad": [norms[layer] for layer in self.layers],
            "grad_spread": [spread([value**0.5 for ndim, value in own if ndim > 1]) for own in squares.values()],
            "norm": float(np.hypot(*groups)),
        }
        self._held = {p.name: g.clone() for own in grads.values() for p, g in own}
        self._held_square = float(np.hypot(*groups)) ** 2
        self._weights = {p.name: p.clone() for own in grads.values() for p, _ in own}
        if deep:
            self._look["grad_correlation"] = self._correlation(grads)

    def updated(self) -> None:
        """After the optimizer: how far each layer moved, as a share of its weights."""
        if self._weights is None:
            return
        ratios = []
        for parameters in self.layers.values():
            own = [(p, self._weights[p.name]) for p in parameters if p.name in self._weights]
            moved = sum(square(p - before) for p, before in own)
            ratios.append((moved / max(sum(square(before) for _, before in own), 1e-30)) ** 0.5 if own else None)
        self._look["update"] = ratios
        self._weights = None

    def stepped(self, model: Any, step: int, rate: float) -> Point | None:
        """After an update; returns the point, where one was due.

        Args:
            step: updates made.
            rate: of the update just made.
        """
        self.rate = rate
        self.travel += rate
        if self.settings.level == 3 and (step - 1) % self.settings.deep_every == 0:
            self.record.add("deep", step, **self._inside(model))
        end = self.record.history.planned
        if step % self.every and step != end:
            return None
        seconds = max(time.monotonic() - self.started, 1e-9)
        values: dict[str, Any] = {
            "loss": float(np.mean(self.losses)) if self.losses else None,
            "rate": rate,
            "travel": self.travel,
            "tokens_s": round(self.tokens / seconds),
            "left_s": round(seconds / max(step - self.first_step, 1) * (end - step)),
        }
        if self.bad:
            values["bad"] = self.bad
        if self.settings.level > 1:
            values["loss_var"] = float(np.var(self.window)) if self.window else None
            if self.clipped:
                values["clipped"] = float(np.mean(self.clipped))
            if self.noise[1] > 0:
                values["noise_scale"] = max(self.noise[0], 0.0) / self.noise[1]
            values |= self._look
            self._look = {}
        self.losses, self.bad, self.clipped = [], 0, []
        return self.record.add("train", step, **values)

    def diverged(self, step: int) -> Point:
        """The loss is no number; the training stops with this point."""
        values = {"loss": None, "rate": self.rate, "travel": self.travel, "bad": max(self.bad, 1)}
        return self.record.add("train", step, **values, **self._look)

    def evaluated(self, step: int, metrics: dict[str, float], predicted: list[Predicted], joining: Joining) -> Point:
        """After an evaluation of the watched dev rows."""
        rows = self.prepared.dev_watch
        answers = answers_of(predicted, self.task, joining)
        scores = {name.removeprefix("eval_"): value for name, value in metrics.items() if isinstance(value, float)}
        loss = scores.pop("loss")
        # The weights changed since the last evaluation: its second half is nearer to what dev was measured with.
        train = float(np.mean(self.since[len(self.since) // 2 :])) if self.since else None
        chance = self.record.history.run["dev_chance"]
        words = [repr(readable(answer, self.task)) for answer in answers]
        right = np.array(
            [
                judged([row], [answer], self.task) == judged([row], [_gold(row, self.task)], self.task)
                for row, answer in zip(rows, answers, strict=True)
            ]
        )
        values: dict[str, Any] = {
            "loss": loss,
            "scores": scores,
            "train_loss": train,
            "gap": None if train is None else (loss - train) / chance,
            "top_answer": most_common(words),
            "right": float(right.mean()),
        }
        if self.best_right is not None and self.best_right.any():
            values["forgotten"] = float(1 - right[self.best_right].mean())
        if self.best_right is None or right.sum() >= self.best_right.sum():
            self.best_right = right
        if self.believed is not None and self.targets is not None:
            share, worst = suspects(self.believed, self.targets)
            values |= {"suspects": share, "suspicious": worst}
        if self.settings.level == 3:
            confidence, hit, entropy = certainty(predicted, rows, self.task)
            values |= {"entropy": entropy, "calibration": calibration_error(confidence, hit)}
        self.since = []
        return self.record.add("dev", step, **values)

    # What a checkpoint must keep for a resumed run to measure as an uninterrupted one.

    def save(self, folder: Path) -> None:
        """Writes it into a checkpoint's folder."""
        plain = {
            "losses": self.losses,
            "bad": self.bad,
            "clipped": self.clipped,
            "since": self.since,
            "window": list(self.window),
            "noise": self.noise,
            "travel": self.travel,
            "look": self._look,
        }
        arrays: dict[str, Any] = {"plain": np.array(json.dumps(plain))}
        arrays |= {"believed": self.believed} if self.believed is not None else {}
        arrays |= {"best_right": self.best_right} if self.best_right is not None else {}
        # The held gradient is as large as the model; a resumed run rather makes one comparison less.
        np.savez(folder / STATE, **arrays)

    def load(self, folder: Path) -> None:
        """A checkpoint without such a state is one of an earlier version: the measures start anew."""
        if not (folder / STATE).is_file():
            return
        with np.load(folder / STATE, allow_pickle=False) as arrays:
            plain = json.loads(str(arrays["plain"]))
            self.losses, self.bad, self.clipped = plain["losses"], plain["bad"], plain["clipped"]
            self.since, self.noise, self.travel = plain["since"], plain["noise"], plain["travel"]
            self.window.extend(plain["window"])
            self._look = plain["look"]
            self.believed = arrays.get("believed", self.believed)
            self.best_right = arrays.get("best_right", None)

    # Inner looks

    def _of_telling_windows(self, loss: float, inputs: Any, outputs: Any) -> float | None:
        """The loss of a batch without its windows that tell nothing; None where none tells anything.

        Such a window is best answered evenly, at a loss that is that of chance: counted in, it would make a model that
        learns look like one that does not. Dev rows have none of them.
        """
        if self.task.kind != "single-label" or not self.prepared.recipe.data.neutral:
            return loss
        gold = inputs["labels"].numpy()
        rows = np.flatnonzero(gold >= 0)
        if not len(rows):
            return None
        if len(rows) == len(gold):
            return loss
        logits, own = outputs[0].astype("float32").numpy()[rows], gold[rows]
        losses = -np.log(np.clip(softmax(logits)[np.arange(len(rows)), own], 1e-12, None))
        return float(np.average(losses, weights=None if self.weights is None else self.weights[own]))

    def _ever_trained(self, model: Any) -> list[Any]:
        if self.freezer is None or not self.freezer.staged:
            return [parameter for parameter in model.parameters() if not parameter.stop_gradient]
        return [parameter for name, place, parameter in self.freezer.parameters if self.freezer.may_train(name, place)]

    def _compare(self, grads: dict[str, list[tuple[Any, Any]]], scale: float) -> None:
        """The gradient noise scale, from this gradient and the one before.

        McCandlish et al. 2018 (An Empirical Model of Large-Batch Training, appendix A.1) compare the norm of a
        small batch's gradient with that of a large one. Here two batches in a row are the small ones and their mean the
        large one, the weights having moved by one update between them; both estimates are averaged, not their ratio.
        """
        assert self._held is not None
        newer = dot = 0.0
        for own in grads.values():
            for parameter, gradient in own:
                held = self._held.get(parameter.name)
                if held is not None:
                    newer += square(gradient) / scale**2
                    dot += (square(held + gradient) - square(held - gradient)) / 4 / scale
        trace = self.batch * self.accumulate * ((newer + self._held_square) / 2 - dot)
        for place, value in enumerate((trace, dot)):
            if np.isfinite(value):
                self.noise[place] = 0.8 * self.noise[place] + 0.2 * value
        self._held = None

    def _correlation(self, grads: dict[str, list[tuple[Any, Any]]]) -> list[float | None]:
        """Cosine between the gradients of neighbouring encoder layers, whose parameters have the same shapes."""
        names = [layer for layer in self.layers if layer.startswith("layer")]
        result: list[float | None] = []
        for lower, upper in itertools.pairwise(names):
            pairs = list(zip(grads[lower], grads[upper], strict=False))
            if not pairs or len(grads[lower]) != len(grads[upper]):
                result.append(None)
                continue
            dot = sum((square(a + b) - square(a - b)) / 4 for (_, a), (_, b) in pairs)
            norms = [sum(square(g) for _, g in grads[layer]) ** 0.5 for layer in (lower, upper)]
            result.append(dot / (norms[0] * norms[1]) if all(norms) else None)
        return result

    def _inside(self, model: Any) -> Point:
        """Attention entropy and the cosine between examples, on some dev rows' first windows."""
        import paddle

        encoder = self.prepared.encoder
        encoded = encode_rows(self.prepared.dev_watch[: self.settings.probe_rows], encoder)
        ids, types = pad([encoder.row(item, 0) for item in encoded], encoder.spec.pad_id)
        was_training = model.training
        model.eval()
        try:
            with paddle.no_grad():
                inner = getattr(model, model.base_model_prefix)
                output = inner(
                    paddle.to_tensor(ids),
                    token_type_ids=paddle.to_tensor(types),
                    output_attentions=True,
                    return_dict=True,
                )
        finally:
            for layer in inner.encoder.layers:
                layer.self_attn.need_weights = False
            if was_training:
                model.train()
        real = ids != encoder.spec.pad_id
        return {
            "attention": [attention_entropy(weights.numpy(), real) for weights in output.attentions],
            "cosine": mean_cosine(output.last_hidden_state[:, 0].numpy()),
        }


def _is_head(layer: str) -> bool:
    return layer == "head"


def square(tensor: Any) -> float:
    """Sum of squares. Paddle's own clipping uses this kernel: it is 15 times as fast as (x * x).sum() on a CPU."""
    from paddle.nn.clip import _squared_l2_norm

    return float(_squared_l2_norm(tensor.detach()))


def spread(norms: Sequence[float]) -> list[float] | None:
    """Smallest, median and largest of a layer's weight matrices' gradient norms."""
    return [float(np.min(norms)), float(np.median(norms)), float(np.max(norms))] if norms else None


def attention_entropy(weights: Array, real: Array) -> list[float]:
    """How evenly each head looks around: 0 at one token, 1 at all tokens alike.

    Args:
        weights: (texts, heads, tokens, tokens), each row of which sums to 1.
        real: bool (texts, tokens); False is padding.
    """
    entropy = -(weights * np.log(np.clip(weights, 1e-12, None))).sum(axis=-1)  # (texts, heads, tokens)
    share = entropy / np.log(np.maximum(real.sum(axis=1), 2))[:, None, None]
    mask = real[:, None, :]
    found: list[float] = ((share * mask).sum(axis=(0, 2)) / mask.sum(axis=(0, 2))).tolist()
    return found


def mean_cosine(vectors: Array) -> float:
    """Mean cosine between two different examples, of vectors (examples, width); 1 is collapse."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = len(unit)
    return float((np.square(unit.sum(axis=0)).sum() - count) / (count * (count - 1)))


def calibration_error(confidence: Array, right: Array, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): mean distance of confidence and accuracy over equal bins."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for number in range(bins):
        own = place == number
        if own.any():
            error += own.mean() * abs(confidence[own].mean() - right[own].mean())
    return float(error)


def certainty(predicted: Sequence[Predicted], rows: Sequence[Row], task: Task) -> tuple[Array, Array, float]:
    """Of each answer of a model on windows' means (a tagger: of each token): confidence, whether it is right, and the
    mean entropy of all answers as a share of the most that is possible."""
    confidence: list[Array] = []
    right: list[Array] = []
    entropies: list[Array] = []
    for item, row in zip(predicted, rows, strict=True):
        if task.classifies:
            gold = class_target(row, task)
            if gold is None:
                continue
            logits = np.stack(item.logits)
            if task.kind == "multi-label":
                own = sigmoid(logits).mean(axis=0)
                scores = np.stack([1 - own, own], axis=-1)
                truth = gold.astype(int)
            else:
                scores, truth = softmax(logits).mean(axis=0)[None], np.array([gold])
        else:
            tags = tag_target(item.encoded, row, task)
            if tags is None:
                continue
            scores = softmax(np.concatenate(item.logits))
            truth = np.concatenate([tags[window.first : window.last] for window in item.encoded.windows])
        confidence.append(scores.max(axis=-1))
        right.append(scores.argmax(axis=-1) == truth)
        entropies.append(-(scores * np.log(np.clip(scores, 1e-12, None))).sum(axis=-1) / np.log(scores.shape[-1]))
    return np.concatenate(confidence), np.concatenate(right), float(np.concatenate(entropies).mean())


def suspects(believed: Array, labels: Array) -> tuple[float | None, list[int]]:
    """Rows whose label the model contradicts with confidence: their share, and the rows it contradicts most.

    Confident learning (Northcutt, Jiang and Chuang 2021): a label is confidently given where its probability reaches
    the mean probability that rows of that label get. A row counts as suspicious if another label than its own is the
    likeliest of those.

    Args:
        believed: (rows, labels), what the model said of each row when it was last read; NaN where it was not.
        labels: (rows,), -1 where a row has none.
    """
    known = ~np.isnan(believed[:, 0]) & (labels >= 0)
    if not known.any():
        return None, []
    rows, scores, own = np.flatnonzero(known), believed[known], labels[known]
    bars = np.array(
        [scores[own == label, label].mean() if (own == label).any() else 2.0 for label in range(scores.shape[1])]
    )
    reached = np.where(scores >= bars, scores, -1.0)
    counted = reached.max(axis=1) > 0
    other = counted & (reached.argmax(axis=1) != own)
    margin = scores[np.arange(len(own)), own] - scores.max(axis=1)
    order = np.argsort(margin, kind="stable")[:NAMED]
    return float(other.sum() / max(counted.sum(), 1)), [int(rows[place]) for place in order if margin[place] < 0]


def gold_answers(rows: Sequence[Row], task: Task) -> list[str]:
    return [repr(gold_of(row, task)) for row in rows]


def most_common(answers: Sequence[str]) -> float:
    """Share of the most common answer, 0 to 1."""
    _, counts = np.unique(np.array(answers), return_counts=True)
    return float(counts.max() / counts.sum())


def _gold(row: Row, task: Task) -> Any:
    """A row's own answer, in the form of `bundle.predict.answers_of`."""
    spans = tuple(row.spans) if task.tags and row.entities is not None else ()
    if task.kind == "multi-label":
        return tuple(index for index, label in enumerate(task.labels) if label in (row.labels or ()))
    label = task.labels.index(row.label) if row.label is not None else None
    if task.kind == "multi-task":
        return label, spans
    return spans if task.tags else label


def chance_losses(prepared: Prepared) -> tuple[float, float]:
    """The loss on train, and on the watched dev rows, of a model that only knows how frequent each label (a tagger:
    each tag) is in train.

    Where classes have weights in the training loss, it answers what is best under them: its loss on train is weighted
    as that of the training is, its loss on dev is not, as no dev loss is.
    """
    task = prepared.task
    losses = [0.0, 0.0]
    splits = (prepared.train, prepared.dev_watch)
    if task.classifies:
        golds = [[found for row in rows if (found := class_target(row, task)) is not None] for rows in splits]
        weights = np.array(class_weights(prepared.train, prepared) or np.ones(len(task.labels)))
        if task.kind == "multi-label":
            own = np.clip(np.mean(golds[0], axis=0), 1e-3, 1 - 1e-3)
            known = weights * own / (weights * own + 1 - own)
            for place, gold in enumerate(golds):
                share = np.mean(gold, axis=0)
                positive = share if place else share * weights
                losses[place] += float(-(positive * np.log(known) + (1 - share) * np.log(1 - known)).mean())
        else:
            for place, value in enumerate(_cross_entropies(golds, weights)):
                losses[place] += value
    if task.tags:
        tags: list[list[int]] = [[], []]
        # Rows may stand in the order of their labels or sources, so some of everywhere.
        some = prepared.train[:: len(prepared.train) // 500 or 1]
        for place, rows in enumerate((some, splits[1])):
            for item, row in zip(encode_rows(rows, prepared.encoder), rows, strict=True):
                found = tag_target(item, row, task)
                tags[place] += [] if found is None else found.tolist()
        for place, value in enumerate(_cross_entropies(tags, np.ones(len(task.token_labels or task.labels)))):
            losses[place] += value
    return max(losses[0], 1e-6), max(losses[1], 1e-6)


def _cross_entropies(golds: Sequence[Sequence[int]], weights: Array) -> tuple[float, float]:
    """Of both splits with the weighted shares of the first, in which a label that it lacks counts as one row."""
    counts = np.maximum(np.bincount(np.array(golds[0], dtype=int), minlength=len(weights)), 1) * weights
    surprise = -np.log(counts / counts.sum())
    first, second = (np.array(gold, dtype=int) for gold in golds)
    return (
        float(np.average(surprise[first], weights=weights[first])) if len(first) else 0.0,
        float(surprise[second].mean()) if len(second) else 0.0,
    )
