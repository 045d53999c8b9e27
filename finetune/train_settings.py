"""The recipe's table ``[train]``: rates, schedule, what is trained when, and what makes a training lighter."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from finetune.strict import Strict

Rate = Annotated[float, Field(gt=0)]


class Train(Strict):
    """How PaddleNLP's Trainer trains."""

    epochs: float = Field(
        default=2.0, gt=0, description="passes over the rows; each pass reads one window of every row"
    )
    batch: int = Field(default=16, ge=1, description="windows in one step")
    accumulate: int = Field(default=1, ge=1, description="steps whose gradients are added before an update")
    learning_rate: float = Field(default=1e-4, gt=0, description="peak rate of the encoder")
    head_learning_rate: float | None = Field(
        default=None, gt=0, description="peak rate of the new head; default: the same"
    )
    rates: dict[str, Rate] = Field(
        default_factory=dict,
        description="peak rate of single groups: encoder, embeddings, layer.0 (the lowest), pooler, head",
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="factor on the rate from each encoder layer to the one below it"
    )
    schedule: Literal["linear", "cosine", "polynomial", "constant", "one-cycle"] = Field(
        default="linear", description="how the rate falls after the warm-up"
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    warmup_steps: int | None = Field(default=None, ge=0, description="the same in updates, in the place of warmup")
    floor: float = Field(default=0.0, ge=0, lt=1, description="share of the peak rate at which the fall ends")
    restarts: int = Field(default=0, ge=0, description="cosine: how often the rate is set back to its peak")
    restart_growth: float = Field(
        default=1.0, ge=1, description="cosine: each stretch is so many times as long as the one before"
    )
    power: float = Field(default=2.0, gt=0, description="polynomial: exponent of the fall; 1 is linear")
    start: float = Field(
        default=0.04, ge=0, lt=1, description="one-cycle: share of the peak rate with which the run begins"
    )
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 does not clip")
    dropout: float | None = Field(default=None, ge=0, lt=1, description="default: as the base model was trained")
    head_init: Literal["default", "normal", "xavier"] = Field(
        default="default", description="first weights of the new head; default: as PaddleNLP draws them"
    )
    head_init_std: float = Field(default=0.02, gt=0, description="normal: standard deviation")
    freeze_embeddings: bool = False
    freeze_layers: int = Field(default=0, ge=0, description="lowest encoder layers that are not trained")
    train_layers: int | None = Field(
        default=None, ge=0, description="in the place of freeze_layers: uppermost encoder layers that are trained"
    )
    train_only: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="in the place of both: the layers that are trained beside the head, such as layer.3 or pooler",
    )
    train_parts: Literal["all", "attention-output"] = Field(
        default="all", description="what is trained inside an encoder layer: all, or only attention's output projection"
    )
    head_first: float = Field(
        default=0.0, ge=0, lt=1, description="share of the run in which only pooler and head are trained"
    )
    unfreeze: Literal["at-once", "by-schedule", "by-diagnosis"] = Field(
        default="at-once",
        description="after head_first: all layers at once; from the top, evenly spread until unfreeze_until; or from "
        "the top, the next one whenever the dev loss stands still",
    )
    unfreeze_until: float = Field(
        default=0.5, gt=0, le=1, description="by-schedule: share of the run after which all layers are trained"
    )
    class_balance: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="exponent of the loss weight (mean count / class count); 0 weighs all alike",
    )
    windows: Literal["first", "random", "head-heavy"] = Field(
        default="head-heavy",
        description="which window of a long row a pass reads: the first, any, or the first with head_share",
    )
    head_share: float = Field(default=0.5, ge=0, le=1, description="how often head-heavy reads the first window")
    amp: Literal["off", "fp16", "bf16"] = Field(default="off", description="mixed precision; needs a GPU")
    recompute: bool = Field(
        default=False, description="keep no activations of the encoder's layers and compute them anew: memory for time"
    )
    sharding: Literal["off", "stage1", "stage2", "stage3"] = Field(
        default="off",
        description="ZeRO among the processes of `run --processes`: what each keeps only a share of is the optimizer's "
        "state; from stage2 on also the gradients; stage3 also the weights",
    )
    delay: int = Field(
        default=0, ge=0, description="updates by which each gradient comes late, as among asynchronous workers"
    )
    delay_compensation: float = Field(
        default=0.0, ge=0, description="λ of g + λ g⊙g⊙(w_now − w_then), which makes up for the delay"
    )
    eval_every: float = Field(default=0.25, gt=0, le=1, description="share of the run between two dev evaluations")
    patience: int = Field(default=3, ge=1, description="dev evaluations without a better score before the run stops")
    metric: Literal["accuracy", "macro_f1", "micro_f1", "exact_match", "f1", "mean_f1"] | None = Field(
        default=None, description="what best means on dev"
    )
    watch_rows: int = Field(default=200, ge=2, description="dev rows measured while training; all of dev at the end")
    watch_windows: int = Field(default=4, ge=1, description="windows of a watched row that are read, from its start")
    seed: int = 13

    @model_validator(mode="after")
    def _keys_belong_together(self) -> Self:
        given = self.model_fields_set
        for key, schedules in _ONLY_FOR.items():
            if key in given and self.schedule not in schedules:
                raise ValueError(f"{key} is for the schedule {' or '.join(schedules)}, not for {self.schedule}")
        if "restart_growth" in given and not self.restarts:
            raise ValueError("restart_growth needs restarts")
        if "head_init_std" in given and self.head_init != "normal":
            raise ValueError(f'head_init_std is for head_init = "normal", not for {self.head_init!r}')
        for first, second in _EITHER:
            # A full form may take back what the quick one says.
            if first in given and second in given and getattr(self, first):
                raise ValueError(f"give either {first} or {second}, not both")
        if self.delay_compensation and not self.delay:
            raise ValueError("delay_compensation needs delay")
        if "head" in self.rates and self.head_learning_rate is not None:
            raise ValueError("give either head_learning_rate or rates.head, not both")
        if self.unfreeze == "by-schedule" and self.head_first >= self.unfreeze_until:
            raise ValueError("unfreeze_until must be after head_first")
        if self.unfreeze == "by-diagnosis" and self.head_first:
            raise ValueError('unfreeze = "by-diagnosis" begins with the head by itself; leave out head_first')
        if "unfreeze_until" in given and self.unfreeze != "by-schedule":
            raise ValueError(f'unfreeze_until is for unfreeze = "by-schedule", not for {self.unfreeze!r}')
        return self


_FALLING = ("linear", "cosine", "polynomial", "one-cycle")
_ONLY_FOR = {
    "floor": _FALLING,
    "restarts": ("cosine",),
    "restart_growth": ("cosine",),
    "power": ("polynomial",),
    "start": ("one-cycle",),
}
_EITHER = (
    ("warmup", "warmup_steps"),
    ("freeze_layers", "train_layers"),
    ("freeze_layers", "train_only"),
    ("train_layers", "train_only"),
    ("freeze_embeddings", "train_only"),
)
# Keys that came after the first bundles were made: at their default they leave a recipe's checksum as it was.
LATER = (
    "rates",
    "layer_decay",
    "warmup_steps",
    "floor",
    "restarts",
    "restart_growth",
    "power",
    "start",
    "head_init",
    "head_init_std",
    "train_layers",
    "train_only",
    "train_parts",
    "head_first",
    "unfreeze",
    "unfreeze_until",
    "recompute",
    "sharding",
    "delay",
    "delay_compensation",
)
