"""The recipe's table ``[curve]``: how closely a training is watched and when it counts as ill."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune.strict import Strict


class Thresholds(Strict):
    """When a finding is made.

    Losses are compared with the chance loss, that of a model which knows nothing but how frequent each label is: a gap
    of 0.15 means the same for two labels as for twenty. Where a default has no source it was set by the trainings of
    ``python -m tests.finetune.faults``, so that each made fault is found and no healthy run is called ill.
    """

    gap: float = Field(
        default=0.15,
        gt=0,
        description="overfitting: dev loss above train loss, as a share of the chance loss. 15% is a rule of thumb",
    )
    rises: int = Field(
        default=2, ge=1, description="overfitting: dev evaluations in a row whose loss is above the one before"
    )
    unlearned: float = Field(
        default=0.85, gt=0, le=1, description="underfitting: train loss that is still above this share of chance"
    )
    flat: float = Field(
        default=0.05, gt=0, description="stagnation: train loss fell by less than this share of chance in half the run"
    )
    travel: float = Field(
        default=0.02,
        gt=0,
        description="rate too low: sum of the rates so far over the weights' root mean square. Adam moves no weight by "
        "more than about the rate in a step (Kingma and Ba 2015, section 2.1), so this bounds how far it came",
    )
    step: float = Field(
        default=0.05,
        gt=0,
        description="rate too high: rate over the weights' root mean square. Fine-tuning usually has 0.001 to 0.01",
    )
    rise: float = Field(
        default=1.15, gt=1, description="rate too high: a loss above this multiple of chance, or of its own best"
    )
    swing: float = Field(
        default=0.05, gt=0, description="oscillation: each swing of the loss, as a share of its mean; +-5%"
    )
    vanishing: float = Field(
        default=1e-7, gt=0, description="vanishing gradient: the norm of every encoder layer is below this"
    )
    exploding: float = Field(
        default=100.0,
        gt=1,
        description="exploding gradient: a norm of so many times the clip (of 1 without one). A clip of 1 is usual "
        "for BERT (Devlin et al. 2019, reference code); Pascanu et al. 2013 describe the fault",
    )
    dead: float = Field(
        default=1e-4, gt=0, description="dead layer: its largest weight gradient over the median of the other layers"
    )
    majority: float = Field(
        default=0.98, gt=0, le=1, description="imbalance collapse: share of dev rows that get one and the same answer"
    )
    suspects: float = Field(
        default=0.15,
        gt=0,
        description="label noise: share of train rows for which another label is confidently right (confident "
        "learning, Northcutt et al. 2021, who find 3 to 10% in public test sets)",
    )
    forgotten: float = Field(
        default=0.2,
        gt=0,
        description="forgetting: share of the dev rows that the best evaluation had right and that are wrong now "
        "(forgetting events, Toneva et al. 2019)",
    )
    patience: int = Field(default=2, ge=1, description="evaluations, or looks at the layers, that must agree")


class Firing(Strict):
    """How often a strategy may fire."""

    use: bool = False
    cool_down: float = Field(default=0.1, ge=0, le=1, description="share of the run before it may fire again")
    budget: int = Field(default=1, ge=1, description="firings in one run")


class SkipBadBatch(Firing):
    """A batch whose loss or gradient is no number is left out; under AMP the loss scale is halved."""

    use: bool = True
    budget: int = Field(default=50, ge=1)


class BackOff(Firing):
    """A lower rate, from the best checkpoint that had learned something, else from the start.

    From the start a run begins anew by default, with the warm-up and all of its updates: what a rate that was too high
    took of them is made up for, at the price of a longer run. Each firing costs as many updates as were made before.
    """

    use: bool = True
    cool_down: float = Field(default=0.02, ge=0, le=1)
    budget: int = Field(default=3, ge=1)
    factor: float = Field(default=0.1, gt=0, lt=1, description="on every learning rate")
    rollback: bool = True
    restart: bool = Field(default=True, description="a run that goes back to the start begins anew, as a whole run")


class Noise(Firing):
    """Gaussian noise, to leave a plateau."""

    on: Literal["weights", "gradients"] = "weights"
    sigma: float = Field(default=0.01, gt=0, description="standard deviation, as a share of each tensor's own")


class RaiseDropout(Firing):
    to: float = Field(default=0.3, gt=0, lt=1)


class RaiseDecay(Firing):
    factor: float = Field(default=10.0, gt=1)


class LabelSmoothing(Firing):
    epsilon: float = Field(default=0.1, gt=0, lt=1)


class RDrop(Firing):
    alpha: float = Field(default=1.0, gt=0, description="weight of the divergence; the model needs dropout for it")


class Fgm(Firing):
    epsilon: float = Field(default=1.0, gt=0, description="length of the step on the word embeddings")


class Layers(Firing):
    layers: int = Field(default=1, ge=1, description="so many more, or fewer, of the lowest layers")


class EarlyStop(Firing):
    """Beside train.patience, which knows no tolerance."""

    patience: int = Field(default=3, ge=1, description="evaluations that must be better")
    min_delta: float = Field(default=0.0, ge=0, description="by more than this")
    watch: Literal["metric", "loss"] = "metric"


class Curve(Strict):
    """How a training is watched and, from `control` on, what may be done about it."""

    level: Literal[1, 2, 3] = Field(
        default=1, description="1 losses and scores; 2 also gradients and updates by layer; 3 also the model's inside"
    )
    every: int | None = Field(
        default=None, ge=1, description="updates between two recorded points; default: a hundredth of the run"
    )
    layers_every: int = Field(default=10, ge=1, description="level 2: updates between two looks at the layers")
    deep_every: int = Field(default=50, ge=1, description="level 3: updates between two looks inside the model")
    window: int = Field(default=20, ge=2, description="level 2: updates over which the variance of the loss is taken")
    probe_rows: int = Field(default=16, ge=2, description="level 3: dev rows that are read to look inside the model")
    thresholds: Thresholds = Thresholds()
    control: Literal["off", "dry-run", "on"] = Field(
        default="off", description="off only diagnoses; dry-run also says what it would do; on does it"
    )
    skip_bad_batch: SkipBadBatch = SkipBadBatch()
    back_off: BackOff = BackOff()
    early_stop: EarlyStop = EarlyStop()
    dropout: RaiseDropout = RaiseDropout()
    weight_decay: RaiseDecay = RaiseDecay()
    label_smoothing: LabelSmoothing = LabelSmoothing()
    r_drop: RDrop = RDrop()
    fgm: Fgm = Fgm()
    freeze: Layers = Layers()
    unfreeze: Layers = Layers()
    noise: Noise = Noise()
