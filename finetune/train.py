"""Prepared rows → a trained PaddleNLP model: PaddleNLP's Trainer does the training.

What is added to it: batches planned ahead (`finetune.batches`), a loss with class weights, frozen lower layers, a
rate of its own for the new head, and a dev evaluation that pools windows exactly as serving does.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bundle.decode import FloatArray
from bundle.encode import Encoded, Encoder, IntArray, Window
from bundle.errors import TrainingDiverged
from bundle.folder import write_atomic
from bundle.manifest import Joining, Task
from bundle.predict import Predicted, Progress, encode_rows, metrics_of, predict
from bundle.rows import Row
from finetune.batches import Item, plan
from finetune.curve.intervention import Controller, Hands, strategies
from finetune.curve.record import NAME, read
from finetune.curve.signals import Signals
from finetune.data.compose import tells
from finetune.machine import quiet_paddle
from finetune.prepare import Prepared, Say
from finetune.targets import IGNORED, class_target, tag_target

# Padded tokens in one forward pass of an evaluation: enough to keep the cores busy, little enough to stay in cache.
EVAL_TOKENS = 4096
# While training, windows of a watched row are pooled by this; which pooling is best is decided at the end.
WATCH_JOINING = Joining(pooling="mean")


@dataclass(frozen=True)
class Trained:
    """A trained model and how it got there.

    Attributes:
        model: the PaddleNLP model, best dev checkpoint restored, in evaluation mode.
        steps: optimizer updates made, of ``planned``.
        seconds: of this process; a resumed run adds only its own part.
        history: every logged point: step, loss, learning rate, or a dev evaluation.
    """

    model: Any
    steps: int
    planned: int
    seconds: float
    best: float
    resumed_from: int
    history: list[dict[str, float]] = field(default_factory=list)


def train(prepared: Prepared, run: Path, say: Say, watched: bool = True) -> Trained:
    """Trains, or goes on with an interrupted training of the same recipe and data.

    Args:
        run: the run folder: checkpoints, VisualDL log, history.jsonl, curve.jsonl.
        watched: False trains without any of `finetune.curve`, to compare with.

    Raises:
        TrainingDiverged: the loss is no number any more.
    """
    quiet_paddle()
    import paddle

    from finetune.watch import Watch

    recipe, seed = prepared.recipe, prepared.recipe.train.seed
    random.seed(seed)
    np.random.seed(seed)
    paddle.seed(seed)
    encoded = encode_rows(prepared.lessons, prepared.encoder)
    batches = plan(
        [item.window_tokens.tolist() for item in encoded],
        epochs=recipe.train.epochs,
        batch=recipe.train.batch,
        windows=recipe.train.windows,
        head_share=recipe.train.head_share,
        seed=seed,
    )
    tokens = sum(int(encoded[row].window_tokens[window]) + 2 for batch in batches for row, window in batch)
    say(
        f"{len(prepared.lessons):,} rows, {sum(len(item.windows) for item in encoded):,} windows; the run reads "
        f"{sum(map(len, batches)):,} of them, {tokens:,} tokens, in {len(batches):,} batches"
    )
    checkpoint = _checkpoint(prepared, run, say)
    # The guard makes parameter names repeat, so that a second model in one process finds its optimizer state again.
    with paddle.utils.unique_name.guard():
        model = prepared.base.build(prepared.task, recipe.train.dropout)
        frozen = freeze(model, prepared)
        if frozen:
            say(f"frozen: {frozen}")
        signals = Signals(prepared, batches, run) if watched else None
        watch = Watch(run, prepared, [_tokens(batch, encoded) for batch in batches], say, signals)
        trainer = _trainer(model, prepared, encoded, batches, run, say, signals)
        trainer.add_callback(watch)
        if signals is not None and recipe.curve.control != "off":
            watch.hands = trainer.hands = _hands(trainer, prepared, signals, run)
        start = time.monotonic()
        resumed = _step_of(checkpoint)
        if checkpoint is not None:
            say(f"resuming at step {resumed:,} of {len(batches) // recipe.train.accumulate:,}")
            if signals is not None:
                signals.load(checkpoint)
            if _stopped(trainer, run, resumed, recipe.train.patience):
                # PaddleNLP forgets that a run had stopped; with nothing left in the plan it only restores the best.
                del batches[resumed * recipe.train.accumulate :]
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            watch.close()
    model.eval()
    return Trained(
        model,
        trainer.state.global_step,
        trainer.state.max_steps,
        time.monotonic() - start,
        float(trainer.state.best_metric or 0.0),
        resumed,
        _read_history(run / "history.jsonl"),
    )


def predict_rows(
    model: Any,
    rows: list[Row],
    prepared: Prepared,
    progress: Progress | None = None,
    windows: int | None = None,
) -> list[Predicted]:
    """The model's logits for rows, in evaluation mode and without gradients.

    Args:
        windows: read at most so many windows of a row; by default as many as serving would.
    """
    import paddle

    def forward(ids: IntArray, types: IntArray) -> list[Any]:
        with paddle.no_grad():
            outputs = model(paddle.to_tensor(ids), token_type_ids=paddle.to_tensor(types))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [logits.numpy().astype(np.float32) for logits in outputs]

    was_training = model.training
    model.eval()
    try:
        encoder = prepared.encoder
        if windows is not None:
            encoder = Encoder(encoder.tokenizer, encoder.spec.model_copy(update={"max_windows": windows}))
        return predict(encode_rows(rows, encoder), encoder, forward, batch_tokens=EVAL_TOKENS, progress=progress)
    finally:
        if was_training:
            model.train()


def freeze(model: Any, prepared: Prepared) -> str:
    """Stops the gradient of the embeddings and lowest layers that the recipe freezes; says which.

    Layers are frozen from below, where features are general; a frozen layer above a trained one would save nothing.
    """
    settings = prepared.recipe.train
    layers = settings.freeze_layers
    embeddings = settings.freeze_embeddings or layers > 0
    count = 0
    for name, parameter in model.named_parameters():
        _, _, inner = name.partition(".")
        in_layer = inner.startswith("encoder.layers.") and int(inner.split(".")[2]) < layers
        if (embeddings and inner.startswith("embeddings.")) or in_layer:
            parameter.stop_gradient = True
            count += int(np.prod(parameter.shape))
    if not count:
        return ""
    what = "embeddings" + (
        f" and the lowest {layers} of {prepared.base.config['num_hidden_layers']} layers" if layers else ""
    )
    return f"{what}, {count / 1e6:.1f} M parameters"


class _Windows:
    """The training set as the Trainer sees it: one item is one (row, window)."""

    def __init__(self, prepared: Prepared, encoded: list[Encoded]) -> None:
        self.prepared, self.encoded = prepared, encoded
        task = prepared.task
        # Per row, what its classification and its tagging head should say; None where the row does not tell.
        self.classes = [class_target(row, task) for row in prepared.lessons] if task.classifies else None
        self.tags = [tag_target(item, row, task) for item, row in zip(encoded, prepared.lessons, strict=True)]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, item: Item) -> tuple[IntArray, IntArray, Any, Any]:
        row, window = item
        encoded = self.encoded[row]
        inputs = self.prepared.encoder.row(encoded, window)
        tags = np.full(len(inputs.ids), IGNORED, dtype=np.int64)
        gold = self.tags[row]
        if gold is not None:
            place = encoded.windows[window]
            tags[inputs.content] = gold[place.first : place.last]
        return inputs.ids, inputs.types, self._class(row, encoded.windows[window]), tags

    def _class(self, row: int, window: Window) -> Any:
        """What the classification head should say of a window; None where it tells nothing."""
        if self.classes is None:
            return None
        lesson, task = self.prepared.lessons[row], self.prepared.task
        silent = task.kind == "single-label" and not tells(lesson, window.start, window.end)
        return None if silent else self.classes[row]

    def collate(self, items: list[tuple[IntArray, IntArray, Any, Any]]) -> dict[str, Any]:
        """What one step reads.

        int64 input_ids and token_type_ids (batch, longest); labels int64 (batch,), or float32 (batch, labels) of a
        multi-label task; token_labels int64 (batch, longest). `IGNORED` where a row does not tell.
        """
        longest = max(len(ids) for ids, *_ in items)
        task = self.prepared.task
        batch = {
            "input_ids": np.full((len(items), longest), self.prepared.encoder.spec.pad_id, dtype=np.int64),
            "token_type_ids": np.zeros((len(items), longest), dtype=np.int64),
        }
        if task.tags:
            batch["token_labels"] = np.full((len(items), longest), IGNORED, dtype=np.int64)
        for place, (own, kinds, _, tags) in enumerate(items):
            batch["input_ids"][place, : len(own)] = own
            batch["token_type_ids"][place, : len(own)] = kinds
            if task.tags:
                batch["token_labels"][place, : len(own)] = tags
        if task.classifies:
            batch["labels"] = np.array([IGNORED if gold is None else gold for _, _, gold, _ in items])
        return batch


def class_weights(rows: list[Row], prepared: Prepared) -> list[float] | None:
    """Loss weight of each class: (mean count / count) ** class_balance, scaled to a mean of 1 over the rows.

    Of a multi-label task: the weight of a label's positive rows, (negative rows / positive rows) ** class_balance.
    """
    exponent, task = prepared.recipe.train.class_balance, prepared.task
    if not exponent or not task.classifies:
        return None
    if task.kind == "multi-label":
        given = Counter(label for row in rows for label in row.labels or ())
        positive = np.array([max(given[label], 1) for label in task.labels], dtype=np.float64)
        return [float(value) for value in (np.maximum(len(rows) - positive, 1) / positive) ** exponent]
    counts = Counter(row.label for row in rows if row.label is not None)
    sizes = np.array([max(counts[label], 1) for label in task.labels], dtype=np.float64)
    weights = (sizes.mean() / sizes) ** exponent
    scaled = weights * sizes.sum() / (weights * sizes).sum()
    return [float(value) for value in scaled]


def loss_of(outputs: tuple[Any, ...], inputs: dict[str, Any], task: Task, weight: Any) -> Any:
    """The training loss of a batch.

    Cross-entropy of a classifier, and of a tagger's tokens; binary cross-entropy of a multi-label task. A window that
    tells a single-label model nothing should be answered evenly, so its target is the uniform distribution. A
    multi-task model's loss is the mean over the batch's rows of what each row tells: the entropy of its label, plus the
    mean entropy of its tokens. So a lonely row of one kind counts no more than its neighbours.

    Args:
        outputs: the model's, in the order of the signature.
        weight: float32 (labels,) from `class_weights`, or None.
    """
    import paddle

    functional = paddle.nn.functional
    if task.kind == "multi-label":
        return functional.binary_cross_entropy_with_logits(
            outputs[0].astype("float32"), inputs["labels"], pos_weight=weight
        )

    def entropy(logits: Any, gold: Any, weight: Any = None, reduction: str = "mean") -> Any:
        flat = logits.reshape([-1, logits.shape[-1]]).astype("float32")
        return functional.cross_entropy(
            flat, gold.reshape([-1]), weight=weight, ignore_index=IGNORED, reduction=reduction
        )

    if task.kind == "single-label" and bool((inputs["labels"] == IGNORED).any()):
        silent = (inputs["labels"] == IGNORED).astype("float32")
        even = -functional.log_softmax(outputs[0].astype("float32"), axis=-1).mean(axis=-1)
        return (entropy(outputs[0], inputs["labels"], weight, "none") + silent * even).mean()
    if task.kind != "multi-task":
        return entropy(outputs[0], inputs["labels" if task.classifies else "token_labels"], weight)
    # Paddle's own mean would count what is ignored, as long as the ignored index is negative.
    tags = inputs["token_labels"]
    of_tokens = entropy(outputs[1], tags, reduction="none").reshape(tags.shape).sum(axis=1)
    told = (tags != IGNORED).astype("float32").sum(axis=1).clip(min=1)
    return entropy(outputs[0], inputs["labels"], weight, "none").mean() + (of_tokens / told).mean()


def _trainer(
    model: Any,
    prepared: Prepared,
    encoded: list[Encoded],
    batches: list[list[Item]],
    run: Path,
    say: Say,
    signals: Signals | None,
) -> Any:
    import paddle
    from paddlenlp.trainer import EarlyStoppingCallback, Trainer, TrainingArguments
    from paddlenlp.trainer.trainer_callback import PrinterCallback, ProgressCallback

    settings, metric = prepared.recipe.train, prepared.recipe.metric
    windows = _Windows(prepared, encoded)
    updates = max(1, len(batches) // settings.accumulate)
    every = max(1, math.ceil(updates * settings.eval_every))
    on_gpu = paddle.device.get_device() != "cpu"
    if settings.amp != "off" and not on_gpu:
        say(f"train.amp = {settings.amp!r} needs a GPU; training in fp32")
    amp = settings.amp if on_gpu else "off"
    weights = class_weights(prepared.train, prepared)
    loss_weight = None if weights is None else paddle.to_tensor(weights, dtype="float32")
    arguments = TrainingArguments(
        output_dir=str(run / "checkpoints"),
        logging_dir=str(run / "visualdl"),
        num_train_epochs=1,  # the plan already holds every pass
        per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.clip,
        lr_scheduler_type=settings.schedule,
        warmup_ratio=settings.warmup,
        weight_decay=settings.weight_decay,
        logging_strategy="steps",
        logging_steps=max(1, updates // 50),
        evaluation_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{metric}",
        greater_is_better=True,
        fp16=amp == "fp16",
        bf16=amp == "bf16",
        fp16_opt_level="O1",
        seed=settings.seed,
        report_to=["visualdl"],
        disable_tqdm=True,
        skip_memory_metrics=True,
        device="gpu" if on_gpu else "cpu",
        dataloader_num_workers=0,
    )

    class WindowTrainer(Trainer):  # type: ignore[misc]
        """PaddleNLP's Trainer over planned windows."""

        control: Any
        hands: Hands | None = None
        adversarial = False

        def get_train_dataloader(self) -> Any:
            return paddle.io.DataLoader(
                windows, batch_sampler=_Planned(batches), collate_fn=windows.collate, num_workers=0, return_list=True
            )

        def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
            outputs = model(inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = loss_of(outputs, inputs, prepared.task, loss_weight)
            if self.hands is not None:
                loss = self._regularized(loss, outputs, inputs)
            if signals is not None and not self.adversarial:
                signals.seen(float(loss), inputs, outputs)
            return (loss, outputs) if return_outputs else loss

        def _regularized(self, loss: Any, outputs: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
            """The loss with what the controller switched on; of a pass that FGM adds, as it is."""
            assert self.hands is not None
            knobs = self.hands.controller.knobs
            functional = paddle.nn.functional
            if knobs.r_drop:
                other = self.model(inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
                twice = (
                    loss_of(outputs, inputs, prepared.task, loss_weight),
                    loss_of((other,), inputs, prepared.task, loss_weight),
                )
                first, second = (functional.log_softmax(one.astype("float32"), axis=-1) for one in (outputs[0], other))
                apart = functional.kl_div(first, second.exp(), "batchmean") + functional.kl_div(
                    second, first.exp(), "batchmean"
                )
                loss = sum(twice) / 2 + knobs.r_drop * apart / 4
            if knobs.smoothing:
                even = -functional.log_softmax(outputs[0].astype("float32"), axis=-1).mean()
                loss = (1 - knobs.smoothing) * loss + knobs.smoothing * even
            return loss

        def training_step(self, model: Any, inputs: dict[str, Any], step_control: int = 0) -> Any:
            if self.hands is None or not self.hands.controller.on:
                return super().training_step(model, inputs, step_control=step_control)
            return _guarded_step(self, model, inputs, signals)

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            predicted = predict_rows(self.model, prepared.dev_watch, prepared, windows=settings.watch_windows)
            scores = metrics_of(prepared.dev_watch, predicted, prepared.task, WATCH_JOINING)
            metrics = {f"eval_{name}": value for name, value in scores.items()}
            metrics["eval_loss"] = dev_loss(prepared, predicted)
            if signals is not None:
                signals.evaluated(self.state.global_step, metrics, predicted, WATCH_JOINING)
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def _save_checkpoint(self, model: Any, metrics: Any = None) -> None:
            if signals is not None:
                # First of all files: a checkpoint counts as whole once its last one is there.
                folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                folder.mkdir(parents=True, exist_ok=True)
                signals.save(folder)
            super()._save_checkpoint(model, metrics=metrics)

        def _check_loss_valid(self, loss: Any) -> None:
            value = float(loss)
            if not self.args.fp16 and not math.isfinite(value):
                if signals is not None:
                    signals.diverged(self.state.global_step + 1)
                raise TrainingDiverged(self.state.global_step + 1, value)

    scheduler = _schedule(settings.schedule, settings.learning_rate, settings.warmup, updates)
    trainer = WindowTrainer(
        model=model,
        args=arguments,
        train_dataset=windows,
        eval_dataset=prepared.dev_watch,
        data_collator=windows.collate,
        callbacks=[
            EarlyStoppingCallback(early_stopping_patience=settings.patience),
        ],
        optimizers=(_optimizer(model, prepared, scheduler), scheduler),
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    return trainer


def _hands(trainer: Any, prepared: Prepared, signals: Signals, run: Path) -> Hands:
    recipe = prepared.recipe
    usual = prepared.base.config.get("hidden_dropout_prob", 0.1)
    found = strategies(
        recipe.curve,
        dropout=usual if recipe.train.dropout is None else recipe.train.dropout,
        decay=recipe.train.weight_decay,
        frozen=recipe.train.freeze_layers,
        single=prepared.task.kind in ("single-label", "text-pair"),
    )
    return Hands(trainer, run, Controller(recipe.curve, signals.record, found, recipe.metric))


def _guarded_step(trainer: Any, model: Any, inputs: dict[str, Any], signals: Signals | None) -> Any:
    """A step of PaddleNLP's Trainer that can leave a batch out and add an adversarial pass.

    Returns:
        the loss; of a batch that is left out the last known one, so that the mean that is logged stays a number.
    """
    import paddle

    model.train()
    inputs = trainer._prepare_inputs(inputs)

    def backward() -> Any:
        with trainer.autocast_smart_context_manager():
            loss = trainer.compute_loss(model, inputs) / trainer.args.gradient_accumulation_steps
        if math.isfinite(float(loss)):
            (trainer.scaler.scale(loss) if trainer.do_grad_scaling else loss).backward()
        return loss.detach()

    loss = backward()
    hands = trainer.hands
    if not math.isfinite(float(loss)):
        if not hands.may_skip():
            return loss
        hands.skip(trainer.state.global_step + 1, "loss")
        known = signals.since[-1] if signals is not None and signals.since else 0.0
        return paddle.to_tensor(known / trainer.args.gradient_accumulation_steps, dtype="float32")
    epsilon = hands.controller.knobs.fgm
    embeddings = model.get_input_embeddings().weight
    if epsilon and not embeddings.stop_gradient and embeddings.grad is not None:
        # Miyato et al. 2017: the step that raises the loss most, of a fixed length, and the gradient there too.
        norm = float(embeddings.grad.norm())
        if norm > 0 and math.isfinite(norm):
            kept = embeddings.clone()
            with paddle.no_grad():
                embeddings.add_(embeddings.grad * (epsilon / norm))
            trainer.adversarial = True
            backward()
            trainer.adversarial = False
            with paddle.no_grad():
                embeddings.set_value(kept)
    return loss


def _stopped(trainer: Any, run: Path, step: int, patience: int) -> bool:
    """Whether the run had stopped early at the step from which it is resumed.

    PaddleNLP forgets at a resume how many evaluations were no better; the history knows, and its callback is told.
    """
    from paddlenlp.trainer import EarlyStoppingCallback

    path = run / NAME
    events = read(path).until(step).of("event") if path.is_file() else []
    events = [event for event in events if not event.get("dry_run")]
    since = max((event["step"] for event in events if "rollback" in event), default=0)
    name = f"dev_{trainer.args.metric_for_best_model.removeprefix('eval_')}"
    best, count = None, 0
    for point in _read_history(run / "history.jsonl"):
        if name not in point or point["step"] > step:
            continue
        better = best is None or point[name] > best
        best = point[name] if best is None else max(best, point[name])
        # A rollback at an evaluation comes after it was counted.
        count = 0 if better or point["step"] <= since else count + 1
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter = count
    return count >= patience or any(event["strategy"] == "early-stop" for event in events)


def _tokens(batch: list[Item], encoded: list[Encoded]) -> int:
    return sum(int(encoded[row].window_tokens[window]) + 2 for row, window in batch)


class _Planned:
    """A batch sampler that hands out the plan."""

    def __init__(self, batches: list[list[Item]]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def dev_loss(prepared: Prepared, predicted: list[Predicted]) -> float:
    """Mean loss over the watched rows' windows (taggers: over their tokens); of two heads the sum of both means."""
    task = prepared.task
    heads: list[list[float]] = [[], []]
    for row, answer in zip(prepared.dev_watch, predicted, strict=True):
        target = class_target(row, task) if task.classifies else None
        if target is not None:
            heads[0].append(_entropy(np.stack(answer.logits), target))
        tags = tag_target(answer.encoded, row, task)
        if tags is not None:
            places = np.concatenate([tags[w.first : w.last] for w in answer.encoded.windows])
            heads[1].append(_entropy(np.concatenate(answer.outputs[-1]), places))
    return float(sum(np.mean(losses) for losses in heads if losses))


def _entropy(logits: FloatArray, gold: Any) -> float:
    """Mean cross-entropy; binary where ``gold`` is float32 (labels,) and not an index or an array of them."""
    values = logits.astype(np.float64)
    if isinstance(gold, np.ndarray) and gold.dtype == np.float32:
        return float((np.logaddexp(0, values) - values * gold).mean())
    values -= values.max(axis=1, keepdims=True)
    log_probabilities = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return float(-log_probabilities[np.arange(len(values)), gold].mean())


def _schedule(kind: str, rate: float, warmup: float, updates: int) -> Any:
    from paddlenlp.trainer.trainer_utils import get_scheduler

    names = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
    return get_scheduler(
        names[kind],
        learning_rate=rate,
        num_warmup_steps=math.ceil(updates * warmup),
        num_training_steps=updates,
    )


def _optimizer(model: Any, prepared: Prepared, scheduler: Any) -> Any:
    """AdamW; the new head may have a rate of its own; norms and biases do not decay."""
    import paddle

    settings = prepared.recipe.train
    encoder: list[Any] = []
    head: list[Any] = []
    decayed: set[str] = set()
    # What the controller may unfreeze must have its place; Paddle's step leaves out what needs no gradient.
    curve = prepared.recipe.curve
    all_of_them = curve.control == "on" and curve.unfreeze.use
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient and not all_of_them:
            continue
        (head if name.startswith(("classifier", "token_classifier")) else encoder).append(parameter)
        if not any(part in name for part in ("bias", "norm")):
            decayed.add(parameter.name)
    ratio = (settings.head_learning_rate or settings.learning_rate) / settings.learning_rate
    groups = [{"params": head, "learning_rate": ratio}]
    if encoder:
        groups.insert(0, {"params": encoder, "learning_rate": 1.0})
    return paddle.optimizer.AdamW(
        learning_rate=scheduler,
        parameters=groups,
        weight_decay=settings.weight_decay,
        apply_decay_param_fun=decayed.__contains__,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(settings.clip) if settings.clip else None,
    )


def _checkpoint(prepared: Prepared, run: Path, say: Say) -> Path | None:
    """The last whole checkpoint of the same recipe and data; another run's checkpoints are removed."""
    run.mkdir(parents=True, exist_ok=True)
    mark = run / "run.json"
    wanted = {"recipe_sha256": prepared.recipe.checksum(), "data_sha256": prepared.data_sha256}
    known = json.loads(mark.read_text()) if mark.is_file() else None
    folder = run / "checkpoints"
    if known != wanted:
        if folder.is_dir():
            say(f"recipe or data changed: the checkpoints in {folder} are dropped")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(run / "visualdl", ignore_errors=True)
        (run / NAME).unlink(missing_ok=True)
        (run / "history.jsonl").unlink(missing_ok=True)
        write_atomic(mark, json.dumps(wanted))
        return None
    # trainer_state.json is the first file of a checkpoint to be written, rng_state and the scheduler the last.
    whole = [path for path in folder.glob("checkpoint-*") if (path / "scheduler.pdparams").is_file()]
    return max(whole, key=_step_of, default=None)


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint is not None else 0


def _read_history(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().split("\n") if line]
