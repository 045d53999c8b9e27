"""PaddleNLP's Trainer over planned windows: our loss, our dev evaluation, our schedule.

It imports PaddleNLP, which takes seconds: import it where a training begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddlenlp.trainer import EarlyStoppingCallback, Trainer, TrainingArguments
from paddlenlp.trainer.trainer_callback import PrinterCallback, ProgressCallback

from bundle.encode import Encoded
from bundle.errors import TrainingDiverged
from bundle.manifest import Joining
from bundle.predict import metrics_of
from finetune import parallel
from finetune.answers import dev_loss, predict_rows
from finetune.batches import Item
from finetune.curve.intervention import Hands
from finetune.curve.signals import Signals
from finetune.delay import Delay
from finetune.freezing import Freezer
from finetune.losses import class_weights, loss_of, regularized
from finetune.optimizer import make_optimizer, make_schedule
from finetune.prepare import Prepared
from finetune.resume import save_spent
from finetune.windows import Planned, Windows

# While training, windows of a watched row are pooled by this; which pooling is best is decided at the end.
WATCH_JOINING = Joining(pooling="mean")


class WindowTrainer(Trainer):  # type: ignore[misc]
    """PaddleNLP's Trainer over planned windows.

    Args:
        batches: the plan; the run reads it in order, and again from its beginning where it begins anew.
        signals: measures the training, or None.
        more: PaddleNLP's own arguments.
    """

    control: Any
    hands: Hands | None = None
    delay: Delay | None = None
    adversarial = False
    # Seconds of training until now.
    spent: Callable[[], float] = staticmethod(float)

    def __init__(
        self,
        prepared: Prepared,
        windows: Windows,
        batches: list[list[Item]],
        signals: Signals | None,
        **more: Any,
    ) -> None:
        self.prepared, self.windows, self.signals = prepared, windows, signals
        self.plan = Planned(batches, endless=prepared.recipe.curve.control == "on" and signals is not None)
        weights = class_weights(prepared.train, prepared)
        self.loss_weight = None if weights is None else paddle.to_tensor(weights, dtype="float32")
        super().__init__(train_dataset=windows, eval_dataset=prepared.dev_watch, data_collator=windows.collate, **more)

    def get_train_dataloader(self) -> Any:
        return paddle.io.DataLoader(
            self.windows,
            batch_sampler=self.plan,
            collate_fn=self._collate,
            num_workers=0,
            return_list=True,
        )

    def _collate(self, items: list[Any]) -> dict[str, Any]:
        """A batch; of several processes, this one's rows of it, as long as those of the whole batch."""
        batch = self.windows.collate(items)
        if parallel.processes() > 1:
            rows = parallel.share(list(range(len(items))))
            batch = {name: values[rows] for name, values in batch.items()}
            batch["of_rows"] = np.array([len(items)])
        return batch

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        outputs = model(inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        task = self.prepared.task
        loss = loss_of(outputs, inputs, task, self.loss_weight)
        if self.hands is not None:
            knobs = self.hands.controller.knobs
            loss = regularized(loss, outputs, inputs, task, self.loss_weight, knobs, self.model)
        if "of_rows" in inputs:
            loss = loss * parallel.weight(int(inputs["of_rows"]))
        if self.signals is not None and not self.adversarial:
            self.signals.seen(parallel.mean(float(loss)), inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], step_control: int = 0) -> Any:
        if self.hands is None or not self.hands.controller.on:
            return super().training_step(model, inputs, step_control=step_control)
        return self._guarded_step(model, inputs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        prepared = self.prepared
        predicted = predict_rows(self.model, prepared.dev_watch, prepared, windows=prepared.recipe.train.watch_windows)
        scores = metrics_of(prepared.dev_watch, predicted, prepared.task, WATCH_JOINING)
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        metrics["eval_loss"] = dev_loss(prepared, predicted)
        if self.signals is not None:
            self.signals.evaluated(self.state.global_step, metrics, predicted, WATCH_JOINING)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, metrics: Any = None) -> None:
        # First of all files: a checkpoint counts as whole once its last one is there.
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        if parallel.rank() == 0:
            save_spent(folder, self.spent())
            if self.signals is not None:
                self.signals.save(folder)
        if self.delay is not None:
            self.delay.save(folder)
        super()._save_checkpoint(model, metrics=metrics)

    def _check_loss_valid(self, loss: Any) -> None:
        value = float(loss)
        if not self.args.fp16 and not math.isfinite(value):
            if self.signals is not None:
                self.signals.diverged(self.state.global_step + 1)
            raise TrainingDiverged(self.state.global_step + 1, value)

    def _guarded_step(self, model: Any, inputs: dict[str, Any]) -> Any:
        """A step of PaddleNLP's Trainer that can leave a batch out and add an adversarial pass.

        Returns:
            the loss; of a batch that is left out the last known one, so that the mean that is logged stays a number.
        """
        model.train()
        inputs = self._prepare_inputs(inputs)

        def backward() -> Any:
            with self.autocast_smart_context_manager():
                loss = self.compute_loss(model, inputs) / self.args.gradient_accumulation_steps
            if math.isfinite(float(loss)):
                (self.scaler.scale(loss) if self.do_grad_scaling else loss).backward()
            return loss.detach()

        loss = backward()
        hands = self.hands
        assert hands is not None
        if not math.isfinite(float(loss)):
            if not hands.may_skip():
                return loss
            hands.skip(self.state.global_step + 1, "loss")
            known = self.signals.since[-1] if self.signals is not None and self.signals.since else 0.0
            return paddle.to_tensor(known / self.args.gradient_accumulation_steps, dtype="float32")
        epsilon = hands.controller.knobs.fgm
        embeddings = model.get_input_embeddings().weight
        if epsilon and not embeddings.stop_gradient and embeddings.grad is not None:
            # Miyato et al. 2017: the step that raises the loss most, of a fixed length, and the gradient there too.
            norm = float(embeddings.grad.norm())
            if norm > 0 and math.isfinite(norm):
                kept = embeddings.clone()
                with paddle.no_grad():
                    embeddings.add_(embeddings.grad * (epsilon / norm))
                self.adversarial = True
                backward()
                self.adversarial = False
                with paddle.no_grad():
                    embeddings.set_value(kept)
        return loss


def make_trainer(
    model: Any,
    prepared: Prepared,
    encoded: list[Encoded],
    batches: list[list[Item]],
    run: Path,
    own: Path,
    signals: Signals | None,
    freezer: Freezer,
) -> WindowTrainer:
    """The trainer of a recipe.

    Args:
        encoded: of ``prepared.lessons``.
        batches: the plan.
        run: the run folder, in which the processes share their checkpoints.
        own: that of this process.
    """
    settings = prepared.recipe.train
    windows = Windows(prepared, encoded)
    updates = freezer.updates
    every = max(1, math.ceil(updates * settings.eval_every))
    on_gpu = paddle.device.get_device() != "cpu"
    amp = settings.amp if on_gpu else "off"
    arguments = TrainingArguments(
        output_dir=str(run / "checkpoints"),
        logging_dir=str(own / "visualdl"),
        num_train_epochs=1,  # the plan already holds every pass
        per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.clip,
        weight_decay=settings.weight_decay,
        logging_strategy="steps",
        logging_steps=max(1, updates // 50),
        evaluation_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{prepared.recipe.metric}",
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
        recompute=settings.recompute,
        sharding="" if settings.sharding == "off" else settings.sharding,
    )
    scheduler = make_schedule(prepared, updates)
    trainer = WindowTrainer(
        prepared,
        windows,
        batches,
        signals,
        model=model,
        args=arguments,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=settings.patience)],
    )
    # Not by its argument, which it refuses where it shards.
    trainer.optimizer, trainer.lr_scheduler = make_optimizer(prepared, freezer, scheduler), scheduler
    if settings.delay:
        trainer.delay = Delay(model, settings.delay, settings.delay_compensation)
        trainer.add_callback(trainer.delay)
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    return trainer
